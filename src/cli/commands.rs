//! Which commands there are.

use std::path::PathBuf;

use clap::{Parser, Subcommand};

use super::args::{EXIT_CODES, Pull};
use super::{
    analyze, bake, calibrate, convert, doctor, inspect, install, prefetch, pulls, remote, simulate,
    top,
};

/// Where a completion script goes; fish is told by its first word, the others look into directories.
const COMPLETION_HELP: &str = "\
Examples:
  bash: hoist completion bash > /etc/bash_completion.d/hoist
  zsh:  hoist completion zsh > /usr/local/share/zsh/site-functions/_hoist
  fish: hoist completion fish > ~/.config/fish/completions/hoist.fish
A new shell knows them then.

Exit codes: 0 done, 1 failed, 2 wrong usage.";

/// Lifts container images onto hosts.
#[derive(Debug, Parser)]
#[command(name = "hoist", version, after_help = EXIT_CODES, arg_required_else_help = true)]
pub(super) struct Arguments {
    /// The configuration; /etc/hoist/hoist.toml unless HOIST_CONFIG names another
    #[arg(long, global = true, value_name = "FILE", help_heading = "Options of every command")]
    pub(super) config: Option<PathBuf>,
    /// Where hoistd listens for hoist; from the configuration unless HOIST_CONTROL_SOCKET names another
    #[arg(long, global = true, value_name = "SOCKET", help_heading = "Options of every command")]
    pub(super) control_socket: Option<PathBuf>,
    #[command(subcommand)]
    pub(super) command: Command,
}

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    Pull(Pull),
    Prefetch(prefetch::Prefetch),
    Bake(bake::Bake),
    /// List the layers that hoistd keeps
    Ls(remote::Ls),
    /// Show an image's manifest: platform, layers, media types, sizes
    Inspect(inspect::Inspect),
    Convert(Box<convert::Convert>),
    Analyze(Box<analyze::Analyze>),
    Diff(convert::Diff),
    /// Show what hoistd is pulling, and its last pulls
    Pulls(pulls::Pulls),
    Simulate(Box<simulate::Simulate>),
    Top(top::Top),
    Doctor(doctor::Doctor),
    Install(install::Install),
    Uninstall(install::Uninstall),
    /// Write the manual's pages into a directory (for packages)
    #[command(hide = true)]
    Man {
        /// The directory, which is there
        directory: PathBuf,
    },
    Calibrate(calibrate::Calibrate),
    /// Print a completion script
    #[command(after_help = COMPLETION_HELP)]
    Completion {
        /// The shell that is to complete
        shell: clap_complete::Shell,
    },
}
