//! decode FILE… : how fast layers are decompressed, by one thread and by several.
//!
//!     cargo run --release --example decode -- [--threads 1,2,4] [--rounds 5] [--budget-mib 168] [--guess] FILE…
//!
//! With --guess the threads decode a single gzip member together, by guessing where its blocks begin.
//! The format is told by a file's first bytes. Each file is read into memory first and handed over in pieces of
//! 256 KiB, as they come from a registry; what comes out is counted and dropped. Medians; MB are 10^6 bytes of
//! uncompressed output. The last column is what the stream's own thread came to a second of its own CPU: no number of
//! other threads, on no number of cores, makes the stream faster than that.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a tool to be looked at")]

use std::process::ExitCode;
use std::time::Instant;

use bytes::Bytes;
use hoist::budget::Budget;
use hoist::compression::{CompressionError, Decoded, Pool, Resources, Speculation, decoder};
use hoist::image::Compression;
use nix::sys::resource::{UsageWho, getrusage};

const PIECE_BYTES: usize = 256 << 10;
const BUFFER_BYTES: usize = 512 << 10;

struct Options {
    threads: Vec<usize>,
    rounds: usize,
    budget_bytes: u64,
    speculation: Speculation,
    files: Vec<String>,
}

fn options() -> Option<Options> {
    let mut options = Options {
        threads: vec![1, 2],
        rounds: 5,
        budget_bytes: 168 << 20,
        speculation: Speculation::Off,
        files: Vec::new(),
    };
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--threads" => {
                let list = arguments.next()?;
                options.threads = list.split(',').map(str::parse).collect::<Result<_, _>>().ok()?;
            }
            "--rounds" => options.rounds = arguments.next()?.parse().ok().filter(|&n| n > 0)?,
            "--budget-mib" => options.budget_bytes = arguments.next()?.parse::<u64>().ok()? << 20,
            "--guess" => options.speculation = Speculation::On,
            _ => options.files.push(argument),
        }
    }
    (!options.files.is_empty()).then_some(options)
}

fn main() -> ExitCode {
    let Some(options) = options() else {
        eprintln!(
            "usage: decode [--threads 1,2,4] [--rounds 5] [--budget-mib 168] [--guess] FILE…"
        );
        return ExitCode::FAILURE;
    };
    println!(
        "| file | threads | MB/s | wall s | CPU s | MB/s, at most |\n|---|---|---|---|---|---|"
    );
    for file in &options.files {
        if let Err(error) = measure(file, &options) {
            eprintln!("decode: {file}: {error}");
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}

fn measure(file: &str, options: &Options) -> Result<(), Box<dyn std::error::Error>> {
    let data = Bytes::from(std::fs::read(file)?);
    let compression = match data.first_chunk() {
        Some([0x1F, 0x8B]) => Compression::Gzip,
        Some([0x28 | 0x50..=0x5F, _]) => Compression::Zstd,
        _ => Compression::None,
    };
    let name = file.rsplit('/').next().unwrap_or(file);
    for &threads in &options.threads {
        let budget = Budget::new(options.budget_bytes);
        let pool = Pool::new(threads, budget, options.budget_bytes / 4);
        let mut rounds = Vec::new();
        let mut bytes = 0;
        for _ in 0..options.rounds {
            let (from, cpu) = (Instant::now(), cpu_seconds(UsageWho::RUSAGE_SELF));
            let own = cpu_seconds(UsageWho::RUSAGE_THREAD);
            bytes = decode(&data, compression, &pool, options.speculation)?;
            let cpu = cpu_seconds(UsageWho::RUSAGE_SELF) - cpu;
            let own = cpu_seconds(UsageWho::RUSAGE_THREAD) - own;
            rounds.push((from.elapsed().as_secs_f64(), cpu, own));
        }
        rounds.sort_by(|a, b| a.0.total_cmp(&b.0));
        let (wall, cpu, own) = rounds[rounds.len() / 2];
        let (rate, most) = (bytes as f64 / 1e6 / wall, bytes as f64 / 1e6 / own);
        println!("| {name} | {threads} | {rate:.0} | {wall:.2} | {cpu:.2} | {most:.0} |");
    }
    Ok(())
}

fn decode(
    data: &Bytes,
    compression: Compression,
    pool: &Pool,
    speculation: Speculation,
) -> Result<u64, CompressionError> {
    let mut rest = data.clone();
    let pieces = move || {
        let size = rest.len().min(PIECE_BYTES);
        Ok((size > 0).then(|| rest.split_to(size)))
    };
    let resources = Resources { pool: Some(pool.clone()), speculation, ..Resources::serial() };
    let mut decoder = decoder(compression, Box::new(pieces), resources)?;
    let (mut buffer, mut bytes) = (vec![0; BUFFER_BYTES], 0);
    loop {
        match decoder.read(&mut buffer)? {
            Decoded::Filled(count) => bytes += count as u64,
            Decoded::Piece(piece) => bytes += piece.len() as u64,
            Decoded::End => return Ok(bytes),
        }
    }
}

fn cpu_seconds(who: UsageWho) -> f64 {
    let usage = getrusage(who).expect("it is always to be had");
    let [user, system] = [usage.user_time(), usage.system_time()]
        .map(|time| time.tv_sec() as f64 + time.tv_usec() as f64 / 1e6);
    user + system
}
