//! `hoistd`: flags, configuration, application, drain.
//!
//! [`run`] is the whole life of the process: it parses the flags, loads the configuration, builds
//! an [`Application`](application::Application) out of the rooms below (`wiring`), serves three
//! doors until a signal comes, and drains.
//!
//! | door | who comes | file |
//! |---|---|---|
//! | `socket` | containerd, for snapshots | `wiring` |
//! | `control_socket` | `hoist` | `control` |
//! | `metrics.address` | Prometheus, a browser | `http`, `page` |
//!
//! systemd is told what happens through `notify`; signals come in through `signals`. Only this
//! room listens, handles signals and talks to systemd.

mod application;
mod control;
mod cri;
mod error;
mod flags;
mod http;
mod logging;
mod notify;
mod observe;
mod page;
mod prefetch;
mod progress;
mod reload;
mod rest;
mod signals;
mod sockets;
mod wiring;

use std::ffi::OsString;
use std::io::Write as _;
use std::path::Path;
use std::process::ExitCode;

use clap::Parser as _;

use crate::config::{Config, Environment};
use crate::sys::heap;
use application::Application;
use error::DaemonError;
use flags::Flags;
use signals::Ended;

/// What systemd and scripts see for a configuration or flags that are wrong: trying again does not
/// help.
const EXIT_CONFIGURATION: u8 = 2;

/// Runs the daemon with these arguments until it is told to end.
pub fn run(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let flags = Flags::parse_from(arguments);
    let environment = Environment::of_process();
    let config = match Config::load(flags.config.as_deref(), &environment) {
        Ok(config) => flags.over(config),
        Err(error) => {
            say(&format!("hoistd: {error}"));
            return ExitCode::from(EXIT_CONFIGURATION);
        }
    };
    if flags.check {
        say(&checked(&Config::path(flags.config.as_deref(), &environment)));
        return ExitCode::SUCCESS;
    }
    match live(&flags, config, environment) {
        Ok(Ended::Drained) => ExitCode::SUCCESS,
        Ok(Ended::AtOnce) => ExitCode::FAILURE,
        Err(error) => {
            tracing::error!("{error}");
            say(&format!("hoistd: {error}"));
            ExitCode::FAILURE
        }
    }
}

/// What was found right; none is needed, and a name with a slip in it must not pass for one.
fn checked(path: &Path) -> String {
    let shown = path.display();
    match path.exists() {
        true => format!("hoistd: {shown}: the configuration is right"),
        false => format!("hoistd: there is no {shown}: the defaults hold, and they are right"),
    }
}

fn live(flags: &Flags, config: Config, environment: Environment) -> Result<Ended, DaemonError> {
    heap::one_for_all();
    let level = logging::start(&config.log)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(DaemonError::Runtime)?;
    let ended = runtime.block_on(async {
        let application = Application::build(flags, config, environment, level).await?;
        application.serve().await
    });
    // Threads of a pull that was cancelled stop within a piece of work; none is waited for longer.
    runtime.shutdown_timeout(std::time::Duration::from_secs(1));
    ended
}

/// Says something to the person at the terminal, or to systemd's journal.
fn say(text: &str) {
    // There is nobody left to tell if standard error is closed.
    let _ = writeln!(std::io::stderr(), "{text}");
}
