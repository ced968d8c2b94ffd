//! Pushes that go wrong: connections that break in the middle, registries that refuse. Of the smallest image: what is pushed
//! is not what this is about.

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use crate::harness::{House, must};
use crate::hoist;

/// What a proxy does with a connection that begins with a request of this method.
#[derive(Clone, Copy)]
pub(super) enum Fault {
    /// Breaks the connection after so many bytes of a PATCH, so many times.
    Break(usize, usize),
    /// Answers requests of this method itself.
    Answer(&'static str, &'static str),
    None,
}

/// A proxy in front of a registry, one request a connection, that notes their methods.
pub(super) struct Proxy {
    address: String,
    seen: Arc<Mutex<Vec<String>>>,
    /// Breaks that are still to come.
    left: Arc<AtomicUsize>,
}

impl Proxy {
    pub(super) fn start(target: &str, fault: Fault) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let (seen, target) = (Arc::new(Mutex::new(Vec::new())), target.to_owned());
        let (noted, own) = (Arc::clone(&seen), address.clone());
        let left = Arc::new(AtomicUsize::new(match fault {
            Fault::Break(_, times) => times,
            _ => 0,
        }));
        let breaks = Arc::clone(&left);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (stream, target, own) = (stream.unwrap(), target.clone(), own.clone());
                let (noted, left) = (Arc::clone(&noted), Arc::clone(&breaks));
                // A peer that goes away is what this is about.
                std::thread::spawn(move || {
                    let _ = serve(stream, &target, &own, fault, &noted, &left);
                });
            }
        });
        Self { address, seen, left }
    }

    /// `host:port`.
    pub(super) fn address(&self) -> &str {
        &self.address
    }

    /// The first lines of all requests so far.
    pub(super) fn seen(&self) -> Vec<String> {
        self.seen.lock().unwrap().clone()
    }

    /// Breaks that have not happened.
    pub(super) fn breaks_left(&self) -> usize {
        self.left.load(Ordering::SeqCst)
    }

    fn count(&self, method: &str) -> usize {
        self.seen.lock().unwrap().iter().filter(|line| line.starts_with(method)).count()
    }
}

/// One request of a connection.
fn serve(
    mut client: TcpStream,
    target: &str,
    own: &str,
    fault: Fault,
    noted: &Mutex<Vec<String>>,
    left: &AtomicUsize,
) -> std::io::Result<()> {
    let mut read = Vec::new();
    let mut piece = [0; 65536];
    let end = loop {
        if let Some(at) = read.windows(4).position(|four| four == b"\r\n\r\n") {
            break at + 4;
        }
        match client.read(&mut piece)? {
            0 => return Ok(()),
            count => read.extend_from_slice(&piece[..count]),
        }
    };
    let head = String::from_utf8_lossy(&read[..end]).into_owned();
    let line = head.lines().next().unwrap_or_default().to_owned();
    let length = head.lines().filter_map(|line| line.split_once(": "));
    let length = length.filter(|(name, _)| name.eq_ignore_ascii_case("content-length"));
    let mut body = length.filter_map(|(_, n)| n.parse::<usize>().ok()).next().unwrap_or(0);
    noted.lock().unwrap().push(line.clone());
    // The registry makes the addresses of uploads of the host's name.
    let head = head.replace("\r\n\r\n", "\r\nConnection: close\r\n\r\n");
    assert!(head.contains(own), "{head}");
    let mut server = TcpStream::connect(target)?;
    let mut breaks = None;
    match fault {
        Fault::Break(after, _) if line.starts_with("PATCH") && body > after => {
            let one = |left: usize| left.checked_sub(1);
            let taken = left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, one);
            breaks = taken.ok().map(|_| after);
        }
        Fault::Answer(method, answer) if line.starts_with(method) => {
            let mut rest = body.saturating_sub(read.len() - end);
            while rest > 0 {
                rest -= client.read(&mut piece)?.min(rest);
            }
            client.write_all(answer.as_bytes())?;
            return Ok(());
        }
        _ => {}
    }
    server.write_all(head.as_bytes())?;
    read.drain(..end);
    let mut passed = 0;
    while body > 0 {
        if read.is_empty() {
            match client.read(&mut piece)? {
                0 => return Ok(()),
                count => read.extend_from_slice(&piece[..count]),
            }
        }
        let count = read.len().min(body);
        server.write_all(&read[..count])?;
        read.drain(..count);
        (body, passed) = (body - count, passed + count);
        if breaks.is_some_and(|after| passed >= after) {
            return Ok(());
        }
    }
    std::io::copy(&mut server, &mut client)?;
    // The answer says that the connection ends, so it does.
    Ok(())
}

#[test]
fn a_push_goes_on_after_breaks_and_sends_nothing_twice() {
    let name = "a_push_goes_on_after_breaks_and_sends_nothing_twice";
    let Some(house) = House::open(name) else { return };
    let registry = house.empty_registry();
    let source = house.registry.image("debian:gzip");
    let proxy = Proxy::start(registry.address(), Fault::Break(3 << 20, 3));
    let result = format!("{}/fast/debian:v1", proxy.address);
    must(&mut hoist(&house, &["convert", &source, &result, "--layers", "2", "--quiet"]));
    assert!(proxy.count("PATCH") > 3, "{:?}", proxy.seen.lock().unwrap());
    assert_eq!(proxy.breaks_left(), 0, "all three breaks have happened");
    // By the registry itself, whole and verified.
    let direct = format!("{}/fast/debian:v1", registry.address());
    let read = ["convert", &direct, "oci:unused", "--keep-layers", "--quiet"];
    must(hoist(&house, &read).current_dir(house.scratch.path()));
    // A second time everything is there; from another repository it is mounted.
    let again = Proxy::start(registry.address(), Fault::None);
    let result = format!("{}/fast/debian:v2", again.address);
    must(&mut hoist(&house, &["convert", &source, &result, "--layers", "2", "--quiet"]));
    assert_eq!((again.count("PATCH"), again.count("POST")), (0, 0));
    // The base is read through the same address, so that the registry is one and the same.
    let base = format!("{}/fast/debian:v1", again.address);
    let mounted = format!("{}/other/debian:v1", again.address);
    let onto = ["convert", &base, &mounted, "--keep-base", &base, "--quiet"];
    must(&mut hoist(&house, &onto));
    let seen = again.seen();
    let mounts = seen.iter().filter(|line| line.starts_with("POST") && line.contains("mount="));
    assert_eq!(mounts.count(), 2, "{seen:?}");
    assert_eq!(seen.iter().filter(|line| line.starts_with("PATCH")).count(), 1, "{seen:?}");
}

#[test]
fn a_registry_that_takes_no_chunks_gets_blobs_whole() {
    let Some(house) = House::open("a_registry_that_takes_no_chunks_gets_blobs_whole") else {
        return;
    };
    let registry = house.empty_registry();
    let refusal =
        "HTTP/1.1 405 Method Not Allowed\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
    let proxy = Proxy::start(registry.address(), Fault::Answer("PATCH", refusal));
    let (source, result) = (house.registry.image("debian:gzip"), format!("{}/a:b", proxy.address));
    must(&mut hoist(&house, &["convert", &source, &result, "--dedupe", "off", "--quiet"]));
    let direct = format!("{}/a:b", registry.address());
    must(&mut hoist(&house, &["diff", &source, &direct, "--quiet"]));
}

#[test]
fn a_refused_manifest_is_told_in_words_and_leaves_no_tag() {
    let Some(house) = House::open("a_refused_manifest_is_told_in_words_and_leaves_no_tag") else {
        return;
    };
    let registry = house.empty_registry();
    let refusal = "HTTP/1.1 415 Unsupported Media Type\r\nContent-Length: 16\r\nConnection: close\r\n\r\nMANIFEST_INVALID";
    let proxy = Proxy::start(registry.address(), Fault::Answer("PUT /v2/a/manifests", refusal));
    let (source, result) = (house.registry.image("debian:gzip"), format!("{}/a:b", proxy.address));
    let output = hoist(&house, &["convert", &source, &result, "--quiet"]).output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success(), "{text}");
    for word in ["MANIFEST_INVALID", "415", "zstd", "--compression gzip"] {
        assert!(text.contains(word), "{word} in {text}");
    }
    let direct = format!("{}/a:b", registry.address());
    let asked = hoist(&house, &["inspect", &direct]).output().unwrap();
    assert_eq!(asked.status.code(), Some(3), "no tag was made");
    let left = std::fs::read_dir(house.scratch.path()).unwrap().flatten();
    let left: Vec<_> = left.map(|entry| entry.file_name()).collect();
    assert!(!left.iter().any(|n| n.to_string_lossy().starts_with(".hoist")), "{left:?}");
}
