//! `hoist man`: the manual, for packages.

use std::path::Path;

use clap::CommandFactory as _;

use super::commands::Arguments;
use super::error::CliError;

/// Writes a page for each command into `directory`.
pub(super) fn man(directory: &Path) -> Result<(), CliError> {
    let write = |source| CliError::Write { path: directory.to_owned(), source };
    clap_mangen::generate_to(Arguments::command(), directory).map_err(write)
}
