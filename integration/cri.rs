//! `cri SOCKET pull|remove IMAGE`: what `./demo` asks an older containerd with, whose own `ctr` sends no labels to a
//! snapshotter. Debian has no `crictl`.

#[path = "harness/cri.rs"]
#[allow(dead_code, reason = "the tests use the rest of it")]
mod cri;

use std::path::Path;
use std::process::ExitCode;

#[expect(clippy::print_stdout, clippy::print_stderr, reason = "a command for scripts")]
fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let done = match words[..] {
        [socket, "pull", image] => cri::pull(Path::new(socket), image),
        [socket, "remove", image] => {
            cri::remove(Path::new(socket), image).map(|()| image.to_owned())
        }
        _ => Err("usage: cri SOCKET pull|remove IMAGE".to_owned()),
    };
    match done {
        Ok(text) => {
            println!("{text}");
            ExitCode::SUCCESS
        }
        Err(text) => {
            eprintln!("cri: {text}");
            ExitCode::FAILURE
        }
    }
}
