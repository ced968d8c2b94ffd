//! What a configuration means for the rooms below.

use std::path::Path;

use super::{Backend, Config, ContentStore, OnError, Sync};
use crate::budget::Budget;
use crate::budget::rate::RateLimit;
use crate::{compression, fetch, pull, registry, snapshots, timeline, unpack};

/// What the process needs beside what a pull holds: program, threads, runtime, database.
const PROCESS_BYTES: u64 = 32 << 20;

impl Config {
    /// What pulls may hold at once. `limits.memory_budget` is a promise about the whole process, so
    /// the process's own share comes off first, and then a quarter: an HTTP client's read buffers
    /// are larger than what lies in them, and an allocator keeps some of what it was given back
    /// (measured: 351 MiB resident where 256 MiB were reserved).
    pub fn budget(&self) -> Budget {
        let left = self.limits.memory_budget_bytes.saturating_sub(PROCESS_BYTES);
        Budget::new(left - left / 4)
    }

    /// For the registry client.
    pub fn registry_settings(&self) -> registry::Settings {
        registry::Settings {
            hosts_dirs: self.registry.hosts_dirs.clone(),
            docker_config: Some(self.registry.docker_config.clone()),
            kubernetes_secrets: self.registry.kubernetes_secrets.clone(),
            ecr: self.registry.ecr,
            plain_http_hosts: self.registry.plain_http_hosts.clone(),
            ca_files: self.registry.ca_files.clone(),
            connect_timeout: self.fetch.connect_timeout,
            stall_timeout: self.fetch.stall_timeout,
            retries: self.fetch.retries,
            backoff_initial: self.fetch.backoff_initial,
            backoff_max: self.fetch.backoff_max,
            ..registry::Settings::default()
        }
    }

    /// For the fetcher.
    pub fn fetch_limits(&self) -> fetch::Limits {
        fetch::Limits {
            chunk_bytes: self.fetch.chunk_bytes,
            per_image: self.fetch.connections_per_image,
            per_host: self.fetch.connections_per_host,
            global: self.fetch.connections,
        }
    }

    /// For the fetcher: bytes a second, and what single registries may be asked.
    pub fn restraints(&self) -> fetch::Restraints {
        fetch::Restraints {
            bytes_per_second: self.fetch.bytes_per_second,
            registries: self.fetch.registries.clone(),
        }
    }

    /// For decompressing, inside `budget`.
    pub fn decompression(&self, budget: &Budget) -> pull::Decompression {
        // Layers themselves reserve up to a half. What their frames borrow leaves room for the two
        // chunks without which no fetch goes on, of which heads of layers that wait take less than one; so
        // does a layer that is alone with a large window, where those heads may be larger.
        let (total, chunk) = (budget.total(), self.fetch.chunk_bytes);
        let lent = (total / 4).min((total / 2).saturating_sub(2 * chunk));
        let pool = compression::Pool::new(self.limits.decompress_threads, budget.clone(), lent);
        let others = chunk + chunk.max(budget.heads()) + pull::layer_bytes(u64::MAX);
        let window_bytes = total.saturating_sub(others);
        pull::Decompression {
            pool: Some(pool),
            window_bytes: window_bytes.min(compression::WINDOW_BYTES_MAX),
            speculation: self.limits.speculative_gzip,
        }
    }

    /// For the unpacker.
    pub fn unpack_options(&self) -> unpack::Options {
        unpack::Options {
            writers: self.limits.writers_per_layer,
            max_bytes: self.limits.max_unpacked_bytes,
            // Half a million entries at the default. They come out of what fetches would take.
            image_tree_bytes: self.budget().total() / 2,
            rate: RateLimit::new(self.limits.disk_bytes_per_second),
            room: unpack::Room::of(&self.root, self.limits.min_free),
            priority: self.limits.writers,
            ..unpack::Options::default()
        }
    }

    /// The containerd that gets the compressed blobs of layers; `None`: none does.
    pub fn content_store(&self) -> Option<&Path> {
        let keep = self.pull.content_store == ContentStore::Keep;
        keep.then_some(&*self.cri.containerd)
    }

    /// For the records of pulls: how many there may be.
    pub fn keep(&self) -> timeline::Keep {
        timeline::Keep { pulls: self.history.pulls, bytes: self.history.max_bytes }
    }

    /// For the records of pulls: what a pull may use.
    pub fn pull_bounds(&self) -> timeline::Bounds {
        timeline::Bounds {
            connections: self
                .fetch
                .connections_per_image
                .min(self.fetch.connections_per_host)
                .min(self.fetch.connections),
            chunk_bytes: self.fetch.chunk_bytes,
            writers: self.limits.writers_per_layer,
            memory_bytes: self.budget().total(),
        }
    }

    /// For `snapshots`.
    pub fn snapshot_options(&self) -> snapshots::Options {
        snapshots::Options {
            grace: self.cleanup.grace,
            claim_timeout: self.pull.deadline,
            on_late: match self.pull.on_error {
                OnError::Fallback => snapshots::OnLate::Fallback,
                OnError::Fail => snapshots::OnLate::Fail,
            },
            sync: match self.pull.sync {
                Sync::None => snapshots::Sync::None,
                Sync::Layer => snapshots::Sync::Layer,
            },
            backend: match self.pull.backend {
                Backend::Auto => snapshots::Backend::Auto,
                Backend::Overlay => snapshots::Backend::Overlay,
                Backend::Erofs => snapshots::Backend::Erofs,
            },
            ..snapshots::Options::default()
        }
    }
}
