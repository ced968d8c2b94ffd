//! `hoist calibrate --serve ADDRESS IMAGE…`: a registry that watches who pulls from it.

use std::io::IsTerminal as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use clap::Args;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use super::picture::{self, Picture};
use super::say;
use crate::calibrate::experiment::{Findings, ServedPull, conclude};
use crate::calibrate::serve::Watcher;
use crate::calibrate::shelf::{Shelf, ShelfError, Source};
use crate::cli::args::RegistryArgs;
use crate::cli::error::CliError;
use crate::cli::simulate::named_or_read;
use crate::cli::table::{bytes, table, text};
use crate::config::Config;
use crate::convert::Place;
use crate::fetch::Fetcher;
use crate::image::Platform;
use crate::layout::Layout;
use crate::model::{Model, Profile};
use crate::registry::Registry;
use crate::units::{Rate, Seconds};

/// What belongs to an experiment.
#[derive(Debug, Args)]
pub(in crate::cli) struct Served {
    /// Be a small read-only registry at this address, as 0.0.0.0:5000, for the images named behind, and
    /// watch who pulls them, until Ctrl-C. For hosts where nothing can be installed
    #[arg(long, value_name = "ADDRESS", requires = "images", group = "way")]
    pub(in crate::cli) serve: Option<SocketAddr>,
    /// What is served: oci:DIR[:TAG], oci-archive:FILE[:TAG], or an image of a registry, which is copied
    /// to this host first
    #[arg(value_name = "IMAGE", requires = "serve")]
    pub(in crate::cli) images: Vec<String>,
    /// End by itself when so many pulls have said that they had ended (GET /ended/NAME:TAG)
    #[arg(long, value_name = "N", requires = "serve", value_parser = clap::value_parser!(u16).range(1..))]
    pub(in crate::cli) pulls: Option<u16>,
    /// Draw the speed of every layer over time as a picture
    #[arg(long, value_name = "FILE", requires = "serve")]
    pub(in crate::cli) svg: Option<PathBuf>,
    /// Where the rate of extraction is taken from if no pull says that it has ended: a profile's file or
    /// name [default: two-cores-gzip]
    #[arg(long, value_name = "FILE", requires = "serve")]
    pub(in crate::cli) otherwise: Option<String>,
}

/// What is served for whom.
pub(super) struct Wanted<'a> {
    pub(super) args: &'a Served,
    pub(super) address: SocketAddr,
    pub(super) platform: Platform,
    pub(super) registries: &'a RegistryArgs,
    pub(super) scratch: PathBuf,
}

impl Wanted<'_> {
    /// Serves until `stop` or until the pulls that were asked for have ended; shows what was seen, and gives
    /// the profile that follows.
    pub(super) async fn profile(
        self,
        mut config: Config,
        stop: CancellationToken,
    ) -> Result<Profile, CliError> {
        // Before images are copied: a mistake here is told at once.
        let otherwise = named_or_read(self.args.otherwise.as_deref().unwrap_or("two-cores-gzip"))?;
        let refused = |source| CliError::Listen { address: self.address, source };
        let listener = TcpListener::bind(self.address).await.map_err(refused)?;
        let address = listener.local_addr().map_err(refused)?;
        self.registries.apply(&mut config);
        let shelf = tokio::select! {
            shelf = self.shelf(&config) => shelf?,
            () = stop.cancelled() => return Err(CliError::Interrupted),
        };
        for (name, document) in shelf.images() {
            let size = bytes(document.layers.iter().map(|layer| layer.size).sum());
            let layers = document.layers.len();
            say(&format!("serving {address}/{name}, {size} in {layers} layers"));
        }
        say(&format!(
            "when a pull has ended, tell it: GET http://{address}/ended/NAME:TAG; Ctrl-C ends this"
        ));
        let watcher = Watcher::new(shelf);
        let enough = async {
            match self.args.pulls {
                Some(count) => watcher.until_ended(usize::from(count)).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            served = watcher.serve(listener, stop) => served.map_err(refused)?,
            () = enough => {}
        }
        self.conclude(&watcher.pulls(), &otherwise)
    }

    async fn shelf(&self, config: &Config) -> Result<Shelf, CliError> {
        let registry = Registry::new(config.registry_settings())?;
        let fetcher = Fetcher::new(registry.clone(), config.budget(), config.fetch_limits());
        let places = self.args.images.iter().map(|image| image.parse::<Place>());
        let places = places.collect::<Result<Vec<_>, _>>()?;
        let (platform, scratch) = (self.platform.clone(), self.scratch.clone());
        let runtime = tokio::runtime::Handle::current();
        let filled = tokio::task::spawn_blocking(move || {
            let mut shelf = Shelf::default();
            let source = Source {
                registry: &registry,
                fetcher: &fetcher,
                runtime: &runtime,
                scratch: &scratch,
            };
            for place in places {
                put(&mut shelf, &place, &source, &platform)?;
            }
            Ok(shelf)
        });
        filled.await.expect("filling a shelf does not panic")
    }

    fn conclude(&self, pulls: &[ServedPull], otherwise: &Profile) -> Result<Profile, CliError> {
        let count = pulls.iter().filter(|pull| !pull.transfers.is_empty()).count();
        let picture = Picture::of(format!("{count} pulls from {}", self.address), pulls);
        let (width, plain) = if std::io::stderr().is_terminal() {
            (terminal_size::terminal_size().map_or(80, |(width, _)| usize::from(width.0)), false)
        } else {
            (100, true)
        };
        say(&picture::text(&picture, width, plain));
        if let Some(path) = &self.args.svg {
            std::fs::write(path, picture::svg(&picture))
                .map_err(|source| CliError::Write { path: path.clone(), source })?;
        }
        let found = conclude(pulls).ok_or(CliError::NothingSeen { pulls: count })?;
        say(&told(&found));
        let name = format!("seen from {count} pulls of {}", self.args.images.join(" "));
        Ok(found.profile(&name, otherwise, Model::Containerd))
    }
}

/// Puts an image where it can be served from.
fn put(
    shelf: &mut Shelf,
    place: &Place,
    source: &Source<'_>,
    platform: &Platform,
) -> Result<(), CliError> {
    let (layout, path, tag) = match place {
        Place::Registry(reference) => {
            shelf.add_registry(reference, source, platform)?;
            return Ok(());
        }
        Place::Directory(path, tag) => (Layout::open_directory(path), path, tag),
        Place::Archive(path, tag) => (Layout::open_archive(path), path, tag),
        Place::Docker(..) | Place::Containerd(_) => {
            return Err(CliError::CannotServe(place.to_string()));
        }
    };
    let layout = layout.map_err(ShelfError::from)?;
    shelf.add_layout(layout, tag.as_deref(), &repository(path), platform)?;
    Ok(())
}

/// The name of a file as a repository may have it.
fn repository(path: &Path) -> String {
    let name =
        path.file_stem().map(|name| name.to_string_lossy().to_lowercase()).unwrap_or_default();
    let clean = |c: char| if c.is_ascii_lowercase() || c.is_ascii_digit() { c } else { '-' };
    let name: String = name.chars().map(clean).collect();
    let name = name.trim_matches('-');
    if name.is_empty() { "image".to_owned() } else { name.to_owned() }
}

/// The findings in words.
fn told(found: &Findings) -> String {
    let shown = |rate: f64| Rate::measured(rate).to_string();
    let mut requests = table(&["requests at once", "all together", "each"], 1);
    for &(count, rate) in &found.by_requests {
        #[allow(clippy::cast_precision_loss, reason = "a handful of requests")]
        let each = rate / count as f64;
        requests.add_row([count.to_string(), shown(rate), shown(each)]);
    }
    let mut out = text(&requests);
    let mut line = |what: &str, value: String| out += &format!("\n{what:<16}{value}");
    line("link", format!("{}; {}", shown(found.link.download), found.limit()));
    if let Some(each) = found.link.per_connection {
        line("a connection", format!("{} at most", shown(each)));
    }
    let limit = if found.others_waited { "others waited" } else { "none had to wait" };
    line("layers at once", format!("{}; {limit}", found.at_once));
    line("before", format!("{} until the first layer was asked for", Seconds(found.latency)));
    match found.extraction {
        Some(it) => line(
            "extraction",
            format!(
                "{} one layer after the other, and {:.1} s besides; from {} pulls, within {:.0} %",
                shown(it.rate),
                it.besides,
                it.pulls,
                it.error * 100.0
            ),
        ),
        None => line("extraction", "not seen: no whole pull has said that it had ended".to_owned()),
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_become_names_of_repositories() {
        for (path, name) in
            [("/a/My App.tar", "my-app"), ("layout", "layout"), ("/", "image"), ("a/_.x", "image")]
        {
            assert_eq!(repository(Path::new(path)), name);
        }
    }
}
