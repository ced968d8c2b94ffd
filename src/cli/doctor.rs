//! `hoist doctor`: what is wrong with a host, and the line to change.
//!
//! Each check looks at one thing and changes nothing. `host` looks at this machine, `containerd` at containerd and its
//! configuration, `registries` at what a pull needs of them.

mod containerd;
mod host;
mod registries;

use std::path::{Path, PathBuf};

use super::error::CliError;
use super::{print, print_json};
use crate::config::{Config, Environment};

/// Check this host: configuration, sockets, containerd, kernel, disk, clock, registries
///
/// For each thing it says OK, or what is wrong and the line to change. Root sees most. Exit code 0 where nothing is
/// wrong, 1 where something is; warnings do not count.
#[derive(Debug, clap::Args)]
#[command(after_help = super::args::EXIT_CODES)]
pub(super) struct Doctor {
    /// Ask the registry of this image for its manifest, with the credentials and mirrors that hoistd would use
    #[arg(long, value_name = "IMAGE")]
    image: Option<String>,
    /// containerd's socket
    #[arg(long, value_name = "SOCKET", default_value = "/run/containerd/containerd.sock")]
    containerd: PathBuf,
    /// containerd's configuration
    #[arg(long, value_name = "FILE", default_value = "/etc/containerd/config.toml")]
    containerd_config: PathBuf,
    /// The name under which containerd knows hoist
    #[arg(long, value_name = "NAME", default_value = "hoist")]
    snapshotter: String,
    /// Do not write 64 MB below the root to measure the disk
    #[arg(long)]
    no_disk_test: bool,
    /// JSON instead of lines
    #[arg(long)]
    json: bool,
}

/// What a check found.
#[derive(Clone, Copy, PartialEq, Eq, Debug, serde::Serialize)]
#[serde(rename_all = "snake_case")]
enum Verdict {
    Ok,
    Warning,
    Wrong,
}

/// One check.
#[derive(Debug, serde::Serialize)]
struct Check {
    name: &'static str,
    verdict: Verdict,
    found: String,
    /// What to do.
    #[serde(skip_serializing_if = "Option::is_none")]
    fix: Option<String>,
}

impl Check {
    fn ok(name: &'static str, found: impl Into<String>) -> Self {
        Self { name, verdict: Verdict::Ok, found: found.into(), fix: None }
    }

    fn warning(name: &'static str, found: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { name, verdict: Verdict::Warning, found: found.into(), fix: Some(fix.into()) }
    }

    fn wrong(name: &'static str, found: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { name, verdict: Verdict::Wrong, found: found.into(), fix: Some(fix.into()) }
    }

    fn line(&self) -> String {
        let verdict = match self.verdict {
            Verdict::Ok => "OK     ",
            Verdict::Warning => "WARNING",
            Verdict::Wrong => "WRONG  ",
        };
        // Errors come from elsewhere; a terminal must not obey them.
        let shown = |text: &str| {
            let lines = text.lines().map(crate::timeline::waterfall::printable);
            lines.collect::<Vec<_>>().join("\n           ")
        };
        let fix = self
            .fix
            .as_deref()
            .map_or(String::new(), |fix| format!("\n           what to do: {}", shown(fix)));
        format!("{verdict} {}: {}{fix}\n", self.name, shown(&self.found))
    }
}

/// Runs all checks.
pub(super) async fn doctor(
    args: &Doctor,
    named: Option<&Path>,
    control_socket: Option<PathBuf>,
    environment: &Environment,
) -> Result<(), CliError> {
    let (first, mut config) = configuration(named, environment);
    let mut checks = vec![first];
    if let Some(socket) = control_socket {
        config.control_socket = socket;
    }
    host::checks(&mut checks, &config, args.no_disk_test).await;
    containerd::checks(&mut checks, args, &config).await;
    registries::checks(&mut checks, &config, args.image.as_deref()).await;
    if args.json {
        print_json(&checks)?;
    } else {
        print(&checks.iter().map(Check::line).collect::<String>())?;
    }
    match checks.iter().filter(|check| check.verdict == Verdict::Wrong).count() {
        0 => Ok(()),
        wrong => Err(CliError::Unwell(wrong)),
    }
}

/// The configuration; where it is wrong, the rest is checked with the defaults.
fn configuration(named: Option<&Path>, environment: &Environment) -> (Check, Config) {
    const NAME: &str = "hoist.toml";
    match Config::load(named, environment) {
        Ok(config) => (Check::ok(NAME, "every key is known and within its bounds"), config),
        Err(error) => (
            Check::wrong(
                NAME,
                error.to_string(),
                "put these lines right; hoistd --check tells the same",
            ),
            Config::defaults(environment.cores, environment),
        ),
    }
}
