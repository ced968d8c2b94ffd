//! Saying that a test could not run: to the terminal, and where `./test` counts.

use std::io::Write as _;

/// Writes past the capture of the test program: what is not tested must be seen.
pub(crate) fn loudly(text: &str) {
    // A closed standard error is no reason to fail.
    let _ = writeln!(std::io::stderr().lock(), "{text}");
}

/// Says that a test could not run, and notes it where `./test` counts.
pub(crate) fn skipped(test: &str, reason: &str) {
    loudly(&format!("SKIPPED {test}: {reason}"));
    if let Some(list) = std::env::var_os("HOIST_SKIPPED") {
        let list = std::fs::OpenOptions::new().append(true).create(true).open(list);
        let mut list = list.expect("the list of skipped tests can be written");
        // One line a test, as the lines are counted.
        let reason = reason.lines().collect::<Vec<_>>().join(" ");
        writeln!(list, "{test}: {reason}").expect("the list of skipped tests can be written");
    }
}
