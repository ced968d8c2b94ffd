//! What is told of a pull: its bottleneck, its record, its page, and nothing that is secret.
//!
//! The pulls are real ones, of the engine in this process or of a `hoistd` of its own, against a registry in this process
//! that is made slow, or a disk that is.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod faulty_registry;
mod harness;

#[path = "pulls/bottlenecks.rs"]
mod bottlenecks;
#[path = "pulls/browser.rs"]
mod browser;
#[path = "pulls/daemon.rs"]
mod daemon;
#[path = "pulls/dashboards.rs"]
mod dashboards;
#[path = "pulls/directory.rs"]
mod directory;
#[path = "pulls/doctor.rs"]
mod doctor;
#[path = "pulls/ecr.rs"]
mod ecr;
#[path = "pulls/failures.rs"]
mod failures;
#[path = "pulls/idle.rs"]
mod idle;
#[path = "pulls/images.rs"]
mod images;
#[path = "pulls/logs.rs"]
mod logs;
#[path = "pulls/pages.rs"]
mod pages;
#[path = "pulls/read_only.rs"]
mod read_only;
#[path = "pulls/secrets.rs"]
mod secrets;
#[path = "pulls/slow_disk.rs"]
mod slow_disk;
#[path = "pulls/snapshotter.rs"]
mod snapshotter;
#[path = "pulls/terminal.rs"]
mod terminal;
#[path = "pulls/traces.rs"]
mod traces;
