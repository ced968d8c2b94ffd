//! `hoist calibrate --from-daemon`: the rates that hoistd's recorded pulls show.

use std::path::Path;

use crate::calibrate::link::Limit;
use crate::calibrate::recorded::{Recorded, recorded};
use crate::cli::error::CliError;
use crate::cli::pulls;
use crate::cli::remote::connect;
use crate::model::Profile;

/// Asks for all pulls that hoistd keeps, and derives a profile.
pub(super) async fn profile(socket: &Path) -> Result<Profile, CliError> {
    let mut client = connect(socket).await?;
    // All that are kept. The lists leave samples out, which nobody looks at here.
    let reports = pulls::list(&mut client, 0).await?;
    let found = recorded(&reports, "from hoistd's pulls");
    let found = found.ok_or(CliError::NoRecords { pulls: reports.len() })?;
    super::say(&told(&found));
    Ok(found.profile)
}

/// What the figures rest on.
fn told(found: &Recorded) -> String {
    let Recorded { pulls, layers, compression, .. } = found;
    let link = match (found.link_was_seen, found.limit) {
        (false, _) => {
            "none of them waited for the network, so the link is at least as fast as it says"
        }
        (true, Limit::Link) => "the link was full",
        (true, Limit::Connections) => {
            "each connection was held back, so the link may be faster with more of them"
        }
        (true, Limit::Unknown) => {
            "they had equally many connections, so a limit of each cannot be told"
        }
    };
    format!("from {layers} {} layers of {pulls} pulls; {link}", compression.as_str())
}
