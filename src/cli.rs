//! `hoist`, the command line.
//!
//! Every command is a function from parsed arguments to a result; what is meant for a program to
//! read goes to standard output, what is meant for a person's eyes while they wait goes to standard
//! error. Errors are told once, at the end, with what to try.

mod analyze;
mod args;
mod bake;
mod calibrate;
mod chart;
mod commands;
mod convert;
mod directory;
mod doctor;
mod error;
mod inspect;
mod install;
mod man;
mod prefetch;
mod progress;
mod pulls;
mod remote;
mod simulate;
mod summary;
mod table;
mod top;

use std::io::Write as _;
use std::process::ExitCode;

use clap::{CommandFactory as _, Parser as _};
use tokio_util::sync::CancellationToken;

use crate::config::{Config, Environment};
use commands::{Arguments, Command};
use error::CliError;

/// Parses the process's arguments, does what they say, and returns the exit code.
pub fn run() -> ExitCode {
    let arguments = Arguments::parse();
    let environment = Environment::of_process();
    let ended =
        runtime().and_then(|runtime| runtime.block_on(interruptible(arguments, environment)));
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        // The reader of a pipe has seen enough.
        Err(CliError::Output(error)) if error.kind() == std::io::ErrorKind::BrokenPipe => {
            ExitCode::SUCCESS
        }
        Err(error) => {
            tell(&error);
            ExitCode::from(error.exit_code())
        }
    }
}

/// The one place where errors are told.
fn tell(error: &CliError) {
    let advice = error.advice().map_or(String::new(), |advice| format!("  {advice}\n"));
    let text = format!("hoist: {}\n{advice}", error.to_string().trim_end());
    // The exit code says it all the same.
    aside(&text);
}

/// Tells a person on standard error what is not the result. Whoever closed that does not want to hear it.
fn aside(text: &str) {
    let _ = std::io::stderr().write_all(text.as_bytes());
}

fn runtime() -> Result<tokio::runtime::Runtime, CliError> {
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|source| CliError::Start { what: "the runtime", source })
}

/// Ctrl-C and SIGTERM drop the command's future: what it was making is removed by its destructors.
async fn interruptible(arguments: Arguments, environment: Environment) -> Result<(), CliError> {
    use tokio::signal::unix::{SignalKind, signal};
    let listen = |kind| signal(kind).map_err(|source| CliError::Start { what: "a signal", source });
    // What goes on until it is interrupted has then done all that was wanted.
    let endless = match &arguments.command {
        Command::Pulls(pulls) => pulls.watch,
        Command::Top(_) => true,
        _ => false,
    };
    let interrupted = || if endless { Ok(()) } else { Err(CliError::Interrupted) };
    // And what watches until then has to tell what it saw.
    let tells =
        matches!(&arguments.command, Command::Calibrate(args) if args.served.serve.is_some());
    let stop = CancellationToken::new();
    let (mut interrupt, mut terminate) =
        (listen(SignalKind::interrupt())?, listen(SignalKind::terminate())?);
    let mut work = std::pin::pin!(dispatch(arguments, environment, stop.clone()));
    tokio::select! {
        ended = &mut work => return ended,
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
    if tells {
        stop.cancel();
        return work.await;
    }
    interrupted()
}

async fn dispatch(
    arguments: Arguments,
    environment: Environment,
    stop: CancellationToken,
) -> Result<(), CliError> {
    let Arguments { config, control_socket, command } = arguments;
    let load = || Config::load(config.as_deref(), &environment).map_err(CliError::Config);
    let socket = || match control_socket.clone().or_else(|| environment.control_socket.clone()) {
        Some(socket) => Ok(socket),
        None => load().map(|config| config.control_socket),
    };
    match command {
        Command::Pull(pull) => match (&pull.to, pull.snapshots) {
            (Some(dir), _) => directory::pull(&pull, dir, load()?).await,
            (None, _) => remote::pull(&pull, &socket()?).await,
        },
        Command::Convert(args) => convert::convert(&args, load()?, &environment).await,
        Command::Analyze(args) => analyze::run(&args, load()?, &environment).await,
        Command::Diff(args) => convert::diff(&args, load()?, &environment).await,
        Command::Inspect(inspect) => inspect::inspect(&inspect, load()?).await,
        Command::Install(args) => install::install(args, &load()?),
        Command::Uninstall(args) => install::uninstall(args, &load()?),
        Command::Prefetch(args) => prefetch::prefetch(&args, &socket()?, &environment).await,
        Command::Bake(args) => {
            let given = control_socket.clone().or_else(|| environment.control_socket.clone());
            bake::bake(&args, config.as_deref(), given, &environment).await
        }
        Command::Ls(ls) => remote::ls(&ls, &socket()?).await,
        Command::Pulls(pulls) => pulls::pulls(&pulls, &socket()?, environment.no_color).await,
        Command::Simulate(simulate) => simulate::run(&simulate, load, &environment).await,
        Command::Top(args) => top::top(&args, &socket()?).await,
        Command::Doctor(args) => {
            let given = control_socket.clone().or_else(|| environment.control_socket.clone());
            doctor::doctor(&args, config.as_deref(), given, &environment).await
        }
        Command::Man { directory } => man::man(&directory),
        Command::Calibrate(args) => calibrate::run(&args, socket, load, &environment, stop).await,
        Command::Completion { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Arguments::command(), "hoist", &mut script);
            print(&String::from_utf8_lossy(&script))
        }
    }
}

/// Writes to standard output; a reader that has gone is an error like any other.
fn print(text: &str) -> Result<(), CliError> {
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).map_err(CliError::Output)
}

/// Writes `value` as JSON to standard output.
fn print_json(value: &impl serde::Serialize) -> Result<(), CliError> {
    let text = serde_json::to_string_pretty(value).expect("reports have string keys only");
    print(&(text + "\n"))
}
