//! `hoistd`: the snapshotter's daemon.

fn main() -> std::process::ExitCode {
    hoist::daemon::run(std::env::args_os())
}
