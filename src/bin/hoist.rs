//! `hoist`: the command line.

fn main() -> std::process::ExitCode {
    hoist::cli::run()
}
