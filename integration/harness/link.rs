//! A link whose figures are known: a network namespace whose loopback passes so many bytes a second in all, and a proxy
//! into it that passes so many on each connection.
//!
//! The kernels that tests run on have TBF and not much more (no fq, no netem), so one qdisc shapes the whole and the
//! proxy, which stands outside of the namespace with one foot in it, each connection.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use super::{must, skipped};

/// What the proxy passes on before it rests.
const PIECE_BYTES: usize = 32 << 10;

/// A namespace that is gone when the value goes.
pub(crate) struct Link {
    name: String,
}

impl Link {
    /// One of `bytes` a second; `None`, said loudly, where this kernel cannot shape one.
    pub(crate) fn shaped(test: &str, bytes: u32) -> Option<Self> {
        let link = Self::alone();
        let rate = format!("{}bit", u64::from(bytes) * 8);
        let shape = ["qdisc", "add", "dev", "lo", "root", "tbf", "rate", &rate];
        // The burst has to hold what the device takes in one go.
        let shaped =
            link.inside("tc").args(shape).args(["burst", "128kb", "latency", "100ms"]).output();
        if shaped.is_ok_and(|output| output.status.success()) {
            return Some(link);
        }
        skipped(test, "this kernel has no token bucket filter (sch_tbf)");
        None
    }

    /// One that has nothing but a loopback, as fast as it goes.
    pub(crate) fn alone() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let link = Self { name: format!("hoist-test-{}-{number}", std::process::id()) };
        must(Command::new("ip").args(["netns", "add", &link.name]));
        must(link.inside("ip").args(["link", "set", "lo", "up"]));
        link
    }

    /// Gives its loopback another address.
    pub(crate) fn has(&self, address: &str) {
        must(self.inside("ip").args(["address", "add", address, "dev", "lo"]));
    }

    fn path(&self) -> PathBuf {
        PathBuf::from("/run/netns").join(&self.name)
    }

    /// A program that sees the link.
    ///
    /// Not `ip netns exec`, which mounts another /sys: no control groups there.
    pub(crate) fn inside(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", self.path().display())).arg(program);
        command
    }

    /// A socket of this process that listens at an address behind the link.
    pub(crate) fn listener(&self, address: &'static str) -> TcpListener {
        let namespace = File::open(self.path()).expect("ip made it");
        // A socket stays in the namespace that it was made in; this thread does not come back.
        let bound = std::thread::spawn(move || {
            nix::sched::setns(namespace, nix::sched::CloneFlags::CLONE_NEWNET)
                .expect("we are root");
            TcpListener::bind(address).expect("nobody else listens in a namespace of our own")
        });
        bound.join().expect("it does not panic")
    }

    /// An address behind the link that leads to `target` outside of it, with `bytes` a second towards each client.
    pub(crate) fn lead_to(&self, target: &str, bytes: u32) -> String {
        let listener = self.listener("127.0.0.1:0");
        let address = listener.local_addr().expect("a bound socket has an address").to_string();
        let target = target.to_owned();
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let target = target.clone();
                // A peer that goes away ends its connection, and nothing else.
                std::thread::spawn(move || pass(&client, &target, bytes));
            }
        });
        address
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "delete", &self.name]).output();
    }
}

fn pass(client: &TcpStream, target: &str, bytes: u32) -> std::io::Result<()> {
    let server = TcpStream::connect(target)?;
    let (mut from, mut to) = (client.try_clone()?, server.try_clone()?);
    std::thread::spawn(move || {
        let _ = std::io::copy(&mut from, &mut to);
        let _ = to.shutdown(Shutdown::Write);
    });
    let (mut from, mut to) = (&server, client);
    let mut piece = vec![0; PIECE_BYTES];
    let mut next = Instant::now();
    loop {
        let count = from.read(&mut piece)?;
        if count == 0 {
            return client.shutdown(Shutdown::Both);
        }
        to.write_all(&piece[..count])?;
        // What it was late by is not made up for: a connection never gets more than its rate.
        let takes = Duration::from_secs_f64(
            f64::from(u32::try_from(count).expect("a piece")) / f64::from(bytes),
        );
        next = next.max(Instant::now() - Duration::from_millis(5)) + takes;
        std::thread::sleep(next.saturating_duration_since(Instant::now()));
    }
}
