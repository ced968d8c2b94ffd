//! hoist lifts container images onto hosts.
//!
//! The rooms of this house, lowest floor first; a room imports only from floors below its own
//! (`integration/floors.rs` reads the imports and fails on one that points up or sideways).
//!
//! | floor | room | what it is |
//! |---|---|---|
//! | 0 | [`image`] | OCI words: digests, DiffId, ChainId, media types, manifests; no I/O |
//! | 0 | [`budget`] | bytes in flight, reservations; who goes next when something scarce comes free |
//! | 0 | [`control`] | the messages of hoist's own API, generated from `proto/` |
//! | 0 | [`metrics`] | the registry of metrics and its label types |
//! | 0 | [`panics`] | what a thread or task said when it panicked |
//! | 0 | [`sys`] | system calls and processor instructions, the only `unsafe`, on top of `nix` |
//! | 0 | [`units`] | sizes, rates and durations as people write them |
//! | 1 | [`model`] | the arithmetic of a pull: rates in, times and best splits out; pure |
//! | 1 | [`compression`] | gzip and zstd, streaming, on several threads where a stream can be cut; the seek table |
//! | 1 | [`hashing`] | SHA-256 of many streams at once |
//! | 1 | [`archive`] | tar entries, whiteouts, path safety, on top of the `tar` crate |
//! | 1 | [`erofs`] | an EROFS image, written while its content arrives |
//! | 1 | [`timeline`] | what happened when in a pull: phases, the report |
//! | 1 | [`install`] | what hoist changes in Docker's and containerd's configuration: planned, written, taken back |
//! | 1 | [`registry`] | requests: resolve, ranged GET, push; auth, credentials, hosts and mirrors |
//! | 1 | [`containerd`] | images that containerd has, by its API; images that are put there |
//! | 1 | [`layout`] | images in files: OCI layouts, archives of them, `docker save` |
//! | 2 | [`fetch`] | a blob as an ordered stream: ranges, window, resume |
//! | 2 | [`listing`] | what stands in a directory, noted and compared |
//! | 2 | [`otlp`] | pulls as traces, for a collector of OpenTelemetry |
//! | 2 | [`unpack`] | entries onto disk: ordering rules, writer threads, metadata; or into an image |
//! | 3 | [`pull`] | fetch, decompress, unpack for a layer; the layers of an image; one job per DiffID |
//! | 3 | [`convert`] | reading an image's files, planning new layers (pure), writing and comparing them |
//! | 3 | [`calibrate`] | what hosts and links can do, for the model: measured, from records, or by serving |
//! | 4 | [`snapshots`] | the containerd service, its metadata store, mounts, labels, cleanup |
//! | 5 | [`config`] | what an operator sets, and what it means for the rooms below |
//! | 6 | [`daemon`], [`cli`] | the roots |

pub mod archive;
pub mod budget;
pub mod calibrate;
pub mod cli;
pub mod compression;
pub mod config;
pub mod containerd;
pub mod control;
pub mod convert;
pub mod daemon;
pub mod erofs;
pub mod fetch;
pub mod hashing;
pub mod image;
pub mod install;
pub mod layout;
pub mod listing;
pub mod metrics;
pub mod model;
pub mod otlp;
pub mod panics;
pub mod pull;
pub mod registry;
pub mod snapshots;
pub mod sys;
pub mod timeline;
pub mod units;
pub mod unpack;
