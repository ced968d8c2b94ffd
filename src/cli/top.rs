//! `hoist top`: what hoistd is at, live.
//!
//! Drawn by hand: a frame is a handful of lines of text, for which a library of widgets would be most of the binary's
//! new code. `screen` enters and leaves the terminal's other screen.

mod frame;
mod screen;

use std::io::{IsTerminal as _, Read as _};
use std::os::fd::AsFd as _;
use std::path::Path;
use std::time::{Duration, Instant};

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

use super::error::CliError;
use super::print;
use super::remote::{Client, connect, read, told};
use crate::control::{InfoRequest, ListPullsRequest};
use frame::{Frame, Meter};
use screen::Screen;

/// Ended pulls that are shown below those under way.
const ENDED: u32 = 20;

/// Columns and lines where there is no terminal: nothing is cut.
const NO_TERMINAL: (usize, usize) = (usize::MAX, usize::MAX);

/// Show what hoistd is at, live: pulls, layers, rates, memory, connections, disk
///
/// q or Ctrl-C ends it. Where standard output is no terminal one picture is printed.
#[derive(Debug, clap::Args)]
#[command(after_help = super::args::EXIT_CODES)]
pub(super) struct Top {
    /// Seconds between two pictures
    #[arg(long, value_name = "SECONDS", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=3600))]
    interval: u16,
    /// Print one picture and end
    #[arg(long)]
    once: bool,
}

/// Shows it until somebody ends it.
pub(super) async fn top(args: &Top, socket: &Path) -> Result<(), CliError> {
    let mut client = connect(socket).await?;
    let mut meter = Meter::default();
    if args.once || !std::io::stdout().is_terminal() {
        let frame = ask(&mut client, &mut meter).await?;
        return print(&frame.text(NO_TERMINAL));
    }
    let tty = std::io::stdout().as_fd().try_clone_to_owned().map_err(CliError::Terminal)?;
    let screen = Screen::enter(tty).map_err(CliError::Terminal)?;
    let mut resized = signal(SignalKind::window_change())
        .map_err(|source| CliError::Start { what: "a signal", source })?;
    let mut keys = keys();
    let mut ticks = tokio::time::interval(Duration::from_secs(args.interval.into()));
    let mut shown = String::new();
    loop {
        tokio::select! {
            _ = ticks.tick() => shown = picture(&mut client, socket, &mut meter).await,
            _ = resized.recv() => {}
            key = keys.recv() => match key {
                Some(b'q' | b'Q') => return Ok(()),
                _ => continue,
            },
        }
        screen.write(drawn(&shown).as_bytes()).map_err(CliError::Terminal)?;
    }
}

/// The next picture. A daemon that is restarted is found again.
async fn picture(client: &mut Client, socket: &Path, meter: &mut Meter) -> String {
    match ask(client, meter).await {
        Ok(frame) => frame.text(size()),
        Err(error) => {
            if let Ok(again) = connect(socket).await {
                *client = again;
            }
            format!("hoist top: {error}\nTrying again.\n")
        }
    }
}

async fn ask(client: &mut Client, meter: &mut Meter) -> Result<Frame, CliError> {
    let info = client.info(InfoRequest {}).await.map_err(|s| told(&s))?.into_inner();
    let listed = client.list_pulls(ListPullsRequest { limit: ENDED }).await;
    let listed = listed.map_err(|s| told(&s))?.into_inner().reports_json;
    let pulls = listed.iter().map(|json| read(json)).collect::<Result<Vec<_>, _>>()?;
    Ok(meter.frame(info, pulls, Instant::now()))
}

fn size() -> (usize, usize) {
    terminal_size::terminal_size()
        .map_or(NO_TERMINAL, |(width, height)| (usize::from(width.0), usize::from(height.0)))
}

/// The control sequences for a picture: from the top, each line to its end, nothing below.
fn drawn(text: &str) -> String {
    let (width, height) = size();
    let lines = text.lines().take(height.saturating_sub(1));
    let lines = lines.map(|line| line.chars().take(width).collect::<String>() + "\x1b[K\r\n");
    format!("\x1b[H{}\x1b[J", lines.collect::<String>())
}

/// Keys as they are pressed, from a thread of its own: nobody can be kept from ending by a read that waits. None
/// come where standard input is no terminal.
fn keys() -> mpsc::Receiver<u8> {
    let (sender, keys) = mpsc::channel(8);
    let listen = move || {
        if !std::io::stdin().is_terminal() {
            // Held so that the receiver waits, and does not hear of an end again and again.
            std::mem::forget(sender);
            return;
        }
        for byte in std::io::stdin().lock().bytes().map_while(Result::ok) {
            if sender.blocking_send(byte).is_err() {
                return;
            }
        }
        std::mem::forget(sender);
    };
    std::thread::spawn(listen);
    keys
}
