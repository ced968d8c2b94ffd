//! The log: lines on standard error, which systemd keeps.
//!
//! Nothing secret is in it at any level. What hoist itself logs is written so; but a level such as "trace"
//! opens the log to all crates, and those of AWS then tell whole requests with their headers: the
//! token of the instance's metadata was seen (`aws_smithy_runtime`, "transmitting request"), and what
//! is signed holds session tokens (`aws_sigv4`). Whatever the level, they are heard from `info` up only.

use tracing::Metadata;
use tracing_subscriber::filter::filter_fn;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Layer as _, Registry, reload};

use super::error::DaemonError;
use crate::config::{Log, LogFormat};

/// The handle to change the level with.
#[derive(Clone)]
pub(super) struct Level(reload::Handle<EnvFilter, Registry>);

impl Level {
    /// Sets another level or filter.
    pub(super) fn set(&self, level: &str) -> Result<(), DaemonError> {
        let filter = filter(level)?;
        self.0.reload(filter).map_err(|e| wrong(level, &e))
    }
}

fn filter(level: &str) -> Result<EnvFilter, DaemonError> {
    EnvFilter::builder().parse(level).map_err(|e| wrong(level, &e))
}

fn wrong(level: &str, reason: &dyn std::fmt::Display) -> DaemonError {
    DaemonError::Log { level: level.to_owned(), reason: reason.to_string() }
}

/// Whether an event or span can be told: not what crates of AWS say below `info`.
fn is_discreet(metadata: &Metadata<'_>) -> bool {
    !metadata.target().starts_with("aws_") || *metadata.level() <= tracing::Level::INFO
}

/// Starts the log of this process.
pub(super) fn start(log: &Log) -> Result<Level, DaemonError> {
    let (filter, handle) = reload::Layer::new(filter(&log.level)?);
    let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    let lines = match log.format {
        // The journal has its own colours.
        LogFormat::Text => lines.with_ansi(false).boxed(),
        LogFormat::Json => lines.json().flatten_event(true).boxed(),
    };
    let lines = lines.with_filter(filter_fn(is_discreet));
    let started = Registry::default().with(filter).with(lines).try_init();
    started.map_err(|e| wrong(&log.level, &e))?;
    Ok(Level(handle))
}
