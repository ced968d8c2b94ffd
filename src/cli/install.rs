//! `hoist install` and `hoist uninstall`.

use std::io::{BufRead as _, IsTerminal as _, Write as _};
use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::error::CliError;
use super::print;
use crate::config::Config;
use crate::install::{Change, InstallError, Plan, containerd, docker, host};

/// Plug hoist into Docker or containerd on this host
///
/// Shows what it would change in their configuration as a difference, asks, and writes it. What is
/// there stays; the files as they were are kept beside (FILE.before-hoist). Nothing is restarted.
#[derive(Debug, Args)]
#[command(after_help = HELP)]
pub(super) struct Install {
    #[command(subcommand)]
    what: What,
}

/// Take back what `hoist install` changed
#[derive(Debug, Args)]
#[command(after_help = HELP)]
pub(super) struct Uninstall {
    #[command(subcommand)]
    what: What,
}

const HELP: &str = "Exit codes: 0 done, or nothing to do, 1 failed or refused, 2 wrong usage or configuration, \
                    130 interrupted. With --dry-run: 0 also where something would change.";

#[derive(Debug, Subcommand)]
enum What {
    /// Docker with containerd's image store; containerd learns of hoist too
    #[command(after_help = HELP)]
    Docker(Docker),
    /// containerd, with what the kubelet, crictl and ctr pull
    #[command(after_help = HELP)]
    Containerd(Containerd),
}

#[derive(Debug, Args)]
struct Docker {
    #[command(flatten)]
    how: How,
    /// Docker's configuration
    #[arg(long, value_name = "FILE", default_value = "/etc/docker/daemon.json")]
    daemon_json: PathBuf,
    /// Where dockerd answers, to be asked what it has
    #[arg(long, value_name = "SOCKET", default_value = "/run/docker.sock")]
    docker_socket: PathBuf,
    /// Change over although Docker will not show its present images and containers any more
    #[arg(long)]
    hide_images: bool,
    #[command(flatten)]
    containerd: ContainerdFile,
}

#[derive(Debug, Args)]
struct Containerd {
    #[command(flatten)]
    how: How,
    #[command(flatten)]
    containerd: ContainerdFile,
    /// Docker's configuration, which may need hoist in containerd
    #[arg(long, value_name = "FILE", default_value = "/etc/docker/daemon.json")]
    daemon_json: PathBuf,
}

#[derive(Debug, Args)]
struct ContainerdFile {
    /// containerd's configuration
    #[arg(long, value_name = "FILE", default_value = "/etc/containerd/config.toml")]
    containerd_config: PathBuf,
}

#[derive(Clone, Copy, Debug, Args)]
struct How {
    /// Show the difference and write nothing
    #[arg(long)]
    dry_run: bool,
    /// Do not ask
    #[arg(long, short)]
    yes: bool,
}

/// `hoist install`.
pub(super) fn install(args: Install, config: &Config) -> Result<(), CliError> {
    let facts = |file: &ContainerdFile| {
        host::containerd(&file.containerd_config, &config.socket, &config.root)
    };
    // systemd has them end in this order: a containerd that ends before Docker leaves it waiting for its containers.
    let (changes, checks, how, units) = match args.what {
        What::Docker(args) => {
            let docker = host::docker(&args.daemon_json, &args.docker_socket)?;
            let first = docker::plan(&docker, args.hide_images)?;
            let facts = facts(&args.containerd)?;
            let mut changes = containerd::plan(&facts, containerd::For::Docker)?;
            changes.push(first);
            let file = args.daemon_json.display().to_string();
            let mut checks = vec![check_containerd(&args.containerd)];
            checks
                .push(["dockerd", "--validate", "--config-file", &file].map(str::to_owned).into());
            (changes, checks, args.how, "docker containerd hoistd")
        }
        What::Containerd(args) => {
            let facts = facts(&args.containerd)?;
            let changes = containerd::plan(&facts, containerd::For::All)?;
            (changes, vec![check_containerd(&args.containerd)], args.how, "containerd hoistd")
        }
    };
    let plan = checks.into_iter().fold(Plan::install(changes), Plan::checked_by);
    carry_out(&plan, how, units)
}

/// `hoist uninstall`.
pub(super) fn uninstall(args: Uninstall, config: &Config) -> Result<(), CliError> {
    let facts = |file: &ContainerdFile| {
        host::containerd_left(&file.containerd_config, &config.socket, &config.root)
    };
    let (changes, check, how, units) = match args.what {
        What::Docker(args) => {
            let mut changes = vec![docker::undo(&host::docker_left(&args.daemon_json)?)?];
            let facts = facts(&args.containerd)?;
            let texts = (facts.drop_in.as_deref(), facts.text.as_deref());
            if !containerd::serves_others(texts.0.unwrap_or(""), texts.1.unwrap_or("")) {
                changes.extend(containerd::undo(&facts)?);
            }
            (changes, check_containerd(&args.containerd), args.how, "docker containerd")
        }
        What::Containerd(args) => {
            let docker = std::fs::read_to_string(&args.daemon_json).unwrap_or_default();
            if docker::uses_hoist(&docker) {
                let file = args.daemon_json.display();
                return Err(CliError::Install(InstallError::Refused {
                    reason: format!(
                        "{file} has Docker use hoist, which it could not without containerd's proxy plugin: \
                         hoist uninstall docker comes first"
                    ),
                }));
            }
            let changes = containerd::undo(&facts(&args.containerd)?)?;
            (changes, check_containerd(&args.containerd), args.how, "containerd")
        }
    };
    carry_out(&Plan::uninstall(changes).checked_by(check), how, units)
}

/// containerd reads its configuration with all that it imports, and prints it.
fn check_containerd(file: &ContainerdFile) -> Vec<String> {
    let file = file.containerd_config.display().to_string();
    ["containerd", "--config", &file, "config", "dump"].map(str::to_owned).into()
}

fn carry_out(plan: &Plan, how: How, units: &str) -> Result<(), CliError> {
    if plan.changes().is_empty() {
        return print("Nothing to do: it is so already.\n");
    }
    print(&plan.changes().iter().map(Change::diff).collect::<String>())?;
    if how.dry_run {
        return print("\nNothing is written (--dry-run).\n");
    }
    if !how.yes && !agreed()? {
        return print("Nothing is written.\n");
    }
    plan.apply()?;
    if !host::has_containerd() {
        return print(
            "\nWritten. There is no containerd any more that would have to be started again.\n",
        );
    }
    print(&format!("\nWritten. It counts from the next start:\n  systemctl restart {units}\n"))
}

/// Asks whoever sits at the terminal; a script has to say `--yes`.
fn agreed() -> Result<bool, CliError> {
    if !std::io::stdin().is_terminal() {
        return Err(CliError::NobodyToAsk);
    }
    print("\nWrite this? [y/N] ")?;
    let mut line = String::new();
    std::io::stdout().flush().map_err(CliError::Output)?;
    std::io::stdin().lock().read_line(&mut line).map_err(CliError::Output)?;
    Ok(matches!(line.trim(), "y" | "Y" | "yes"))
}
