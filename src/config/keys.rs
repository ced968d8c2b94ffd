//! Every key, its kind and its bounds. `config/hoist.toml` says what each is for.

use std::collections::BTreeMap;

use super::kinds::{
    GIB, KIB, MIB, TIB, address, count, duration, hosts, io_class, is_host, level, min_free,
    number, path, path_or_off, paths, rate, size, word,
};
use super::reader::{Document, Section};
use super::{
    Backend, Cleanup, Config, ContentStore, Cri, Fetch, History, ImageLabel, Limits, Log,
    LogFormat, Metrics, Mistake, OfRegistry, OnError, Priority, Pull, Registry, Speculation, Sync,
};

/// The least limit of bandwidth, in bytes a second: below it hosts end answers that nobody reads.
const BANDWIDTH_LEAST: u64 = 64 * KIB;

/// Reads all of it.
pub(super) fn read(text: &str, defaults: Config) -> Result<Config, Vec<Mistake>> {
    let document = Document::new(text);
    let parsed = document.parse();
    let mut root = Section::root(&document, parsed.get_ref());
    let config = Config {
        root: path(&mut root, "root", defaults.root),
        socket: path(&mut root, "socket", defaults.socket),
        control_socket: path(&mut root, "control_socket", defaults.control_socket),
        drain_timeout: duration(&mut root, "drain_timeout", defaults.drain_timeout, (0, 600)),
        limits: limits(root.section("limits"), defaults.limits),
        fetch: fetch(root.section("fetch"), defaults.fetch),
        registry: registry(root.section("registry"), defaults.registry),
        cri: cri(root.section("cri"), defaults.cri),
        pull: pull(root.section("pull"), defaults.pull),
        metrics: metrics(root.section("metrics"), defaults.metrics),
        log: log(root.section("log"), defaults.log),
        history: history(root.section("history"), &defaults.history),
        cleanup: cleanup(root.section("cleanup"), &defaults.cleanup),
    };
    together(&config, &mut root);
    root.finish();
    let mistakes = document.into_mistakes();
    if mistakes.is_empty() { Ok(config) } else { Err(mistakes) }
}

/// What has to hold between keys, told at the one that is likelier to be wrong.
fn together(config: &Config, root: &mut Section<'_, '_>) {
    let socket = root.value("control_socket").or_else(|| root.value("socket"));
    if let Some(value) = socket.filter(|_| config.socket == config.control_socket) {
        value.mistake("socket and control_socket are the same");
    }
    let mut cri = root.section("cri");
    let taken = [&config.socket, &config.control_socket, &config.cri.containerd];
    if let Some(value) = cri.value("socket")
        && config.cri.socket.as_ref().is_some_and(|socket| taken.contains(&socket))
    {
        value.mistake("cri.socket is a socket that has another use");
    }
    let mut fetch = root.section("fetch");
    let mut limits = root.section("limits");
    let value = fetch.value("chunk_size").or_else(|| limits.value("memory_budget"));
    // One chunk arrives while the one before it is consumed.
    if let Some(value) = value
        && config.fetch.chunk_bytes.saturating_mul(2) > config.budget().total()
    {
        value.mistake("limits.memory_budget has to hold two chunks of fetch.chunk_size");
    }
    let value = fetch.value("backoff_max").or_else(|| fetch.value("backoff_initial"));
    if let Some(value) = value
        && config.fetch.backoff_initial > config.fetch.backoff_max
    {
        value.mistake("fetch.backoff_initial is longer than fetch.backoff_max");
    }
}

fn limits(mut section: Section<'_, '_>, defaults: Limits) -> Limits {
    let s = &mut section;
    let speculation =
        [("auto", Speculation::Auto), ("on", Speculation::On), ("off", Speculation::Off)];
    let limits = Limits {
        memory_budget_bytes: size(
            s,
            "memory_budget",
            defaults.memory_budget_bytes,
            // Less would leave nothing for pulls beside the process itself.
            (96 * MIB, 64 * GIB),
        ),
        layers_at_once: count(s, "layers_at_once", defaults.layers_at_once, 64),
        writers_per_layer: count(s, "writers_per_layer", defaults.writers_per_layer, 64),
        decompress_threads: count(s, "decompress_threads", defaults.decompress_threads, 64),
        speculative_gzip: word(s, "speculative_gzip", defaults.speculative_gzip, &speculation),
        max_unpacked_bytes: size(s, "max_unpacked", defaults.max_unpacked_bytes, (MIB, 64 * TIB)),
        // Less would keep a writer waiting for seconds with its buffers.
        disk_bytes_per_second: rate(s, "disk_rate", defaults.disk_bytes_per_second, MIB),
        min_free: min_free(s, "min_free", defaults.min_free),
        writers: Priority {
            nice: u8::try_from(number(s, "writers_nice", defaults.writers.nice.into(), (0, 19)))
                .expect("19 fits"),
            io: io_class(s, "writers_ioprio", defaults.writers.io),
        },
    };
    section.finish();
    limits
}

fn fetch(mut section: Section<'_, '_>, defaults: Fetch) -> Fetch {
    let s = &mut section;
    let fetch = Fetch {
        chunk_bytes: size(s, "chunk_size", defaults.chunk_bytes, (64 * KIB, GIB)),
        connections_per_image: count(
            s,
            "connections_per_image",
            defaults.connections_per_image,
            512,
        ),
        connections_per_host: count(s, "connections_per_host", defaults.connections_per_host, 1024),
        connections: count(s, "connections", defaults.connections, 4096),
        retries: u32::try_from(number(s, "retries", defaults.retries as usize, (0, 100)))
            .expect("100 fits"),
        backoff_initial: duration(s, "backoff_initial", defaults.backoff_initial, (0, 60)),
        backoff_max: duration(s, "backoff_max", defaults.backoff_max, (0, 600)),
        stall_timeout: duration(s, "stall_timeout", defaults.stall_timeout, (1, 3600)),
        connect_timeout: duration(s, "connect_timeout", defaults.connect_timeout, (1, 600)),
        bytes_per_second: rate(s, "bandwidth", defaults.bytes_per_second, BANDWIDTH_LEAST),
        registries: registries(s, "registries"),
    };
    section.finish();
    fetch
}

/// The tables of single registries.
fn registries(section: &mut Section<'_, '_>, key: &'static str) -> BTreeMap<String, OfRegistry> {
    let mut registries = BTreeMap::new();
    for (value, name, mut table) in section.section(key).tables() {
        if !is_host(&name) {
            value.mistake(format_args!(
                "{name:?} has to be HOST or HOST:PORT, without a scheme: [fetch.registries.\"HOST\"]"
            ));
        }
        let s = &mut table;
        let limits = OfRegistry {
            bytes_per_second: rate(s, "bandwidth", None, BANDWIDTH_LEAST),
            connections: s
                .value("connections")
                .is_some()
                .then(|| number(s, "connections", 1, (1, 1024))),
        };
        table.finish();
        registries.insert(name, limits);
    }
    registries
}

fn registry(mut section: Section<'_, '_>, defaults: Registry) -> Registry {
    let s = &mut section;
    let registry = Registry {
        hosts_dirs: paths(s, "hosts_dirs", defaults.hosts_dirs),
        docker_config: path(s, "docker_config", defaults.docker_config),
        kubernetes_secrets: paths(s, "kubernetes_secrets", defaults.kubernetes_secrets),
        ecr: word(s, "ecr", defaults.ecr, &[("auto", true), ("off", false)]),
        plain_http_hosts: hosts(s, "plain_http_hosts", defaults.plain_http_hosts),
        ca_files: paths(s, "ca_files", defaults.ca_files),
    };
    section.finish();
    registry
}

fn cri(mut section: Section<'_, '_>, defaults: Cri) -> Cri {
    let s = &mut section;
    let cri = Cri {
        socket: path_or_off(s, "socket", defaults.socket),
        containerd: path(s, "containerd", defaults.containerd),
        // A kubelet passes them again with each pull; nobody pulls for a day.
        keep: duration(s, "keep", defaults.keep, (1, 24 * 3600)),
    };
    section.finish();
    cri
}

fn pull(mut section: Section<'_, '_>, defaults: Pull) -> Pull {
    let s = &mut section;
    let words = [("fallback", OnError::Fallback), ("fail", OnError::Fail)];
    let backends =
        [("auto", Backend::Auto), ("overlay", Backend::Overlay), ("erofs", Backend::Erofs)];
    let stores = [("none", ContentStore::None), ("keep", ContentStore::Keep)];
    let pull = Pull {
        on_error: word(s, "on_error", defaults.on_error, &words),
        backend: word(s, "backend", defaults.backend, &backends),
        sync: word(s, "sync", defaults.sync, &[("none", Sync::None), ("layer", Sync::Layer)]),
        content_store: word(s, "content_store", defaults.content_store, &stores),
        deadline: duration(s, "deadline", defaults.deadline, (1, 24 * 3600)),
    };
    section.finish();
    pull
}

fn metrics(mut section: Section<'_, '_>, defaults: Metrics) -> Metrics {
    let s = &mut section;
    let words = [
        ("none", ImageLabel::None),
        ("repository", ImageLabel::Repository),
        ("reference", ImageLabel::Reference),
    ];
    let metrics = Metrics {
        address: address(s, "address", defaults.address),
        image_label: word(s, "image_label", defaults.image_label, &words),
    };
    section.finish();
    metrics
}

fn log(mut section: Section<'_, '_>, defaults: Log) -> Log {
    let s = &mut section;
    let words = [("text", LogFormat::Text), ("json", LogFormat::Json)];
    let log = Log {
        level: level(s, "level", defaults.level),
        format: word(s, "format", defaults.format, &words),
    };
    section.finish();
    log
}

fn history(mut section: Section<'_, '_>, defaults: &History) -> History {
    let history = History {
        pulls: number(&mut section, "pulls", defaults.pulls, (0, 10_000)),
        max_bytes: size(&mut section, "max_size", defaults.max_bytes, (0, GIB)),
    };
    section.finish();
    history
}

fn cleanup(mut section: Section<'_, '_>, defaults: &Cleanup) -> Cleanup {
    const WEEK_SECONDS: u64 = 7 * 24 * 3600;
    let s = &mut section;
    let cleanup = Cleanup {
        grace: duration(s, "grace", defaults.grace, (0, WEEK_SECONDS)),
        prepulled: duration(s, "prepulled", defaults.prepulled, (0, WEEK_SECONDS)),
    };
    section.finish();
    cleanup
}
