//! Docker: two keys of `daemon.json`.
//!
//! With the containerd image store (`features.containerd-snapshotter`) dockerd asks the snapshotter that
//! `storage-driver` names, and tells it with every Prepare which image and layer it is for. Images and containers of
//! another store are not lost by the change, but Docker does not show them any more; that is refused unless asked for.

use std::path::PathBuf;

use serde_json::Value;

use super::{Change, InstallError, SNAPSHOTTER, json, refused};

/// The first Docker whose containerd image store takes a proxy snapshotter by `storage-driver` and sends it labels.
const OLDEST_MAJOR: u64 = 25;

/// What dockerd says of itself, or what lies on disk where it does not run.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Daemon {
    /// As "28.5.2"; empty where nobody knows.
    pub version: String,
    /// The storage driver, as "overlay2" or, with the containerd image store, a snapshotter.
    pub driver: String,
    /// Whether the driver is a snapshotter of containerd's.
    pub containerd_store: bool,
    /// Images that it shows.
    pub images: u64,
    /// Containers, running or not.
    pub containers: u64,
}

/// What planning has to know.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Facts {
    /// Where `daemon.json` is.
    pub path: PathBuf,
    /// What is in it.
    pub text: Option<String>,
    /// What was in it before hoist, if hoist has changed it.
    pub backup: Option<String>,
    /// The daemon; `None` where no Docker is on the host.
    pub daemon: Option<Daemon>,
}

const STORE: [&str; 2] = ["features", "containerd-snapshotter"];
const DRIVER: [&str; 1] = ["storage-driver"];

/// Whether this `daemon.json` has Docker use hoist.
pub fn uses_hoist(text: &str) -> bool {
    json::parse(text).is_ok_and(|value| value["storage-driver"] == SNAPSHOTTER)
}

/// The change of `daemon.json` that has Docker pull with hoist. `hide` accepts that images and containers of the
/// present store are not shown any more.
///
/// # Errors
/// Where it would break the host, or the file is no JSON.
pub fn plan(facts: &Facts, hide: bool) -> Result<Change, InstallError> {
    let text = facts.text.as_deref().unwrap_or("");
    let value = parsed(facts, text)?;
    let Some(daemon) = &facts.daemon else {
        return Err(refused("there is no Docker here: no dockerd on the PATH, and none answers"));
    };
    fit(daemon, &value)?;
    if !hide {
        hides_nothing(daemon)?;
    }
    let mut after = text.to_owned();
    if value["features"]["containerd-snapshotter"] != Value::Bool(true) {
        after = json::set(&after, &STORE, "true");
    }
    if value["storage-driver"] != SNAPSHOTTER {
        after = json::set(&after, &DRIVER, &format!("\"{SNAPSHOTTER}\""));
    }
    let change = Change::new(&facts.path, facts.text.as_deref(), Some(after));
    Ok(change.of_a_file_without_hoist(value["storage-driver"] != SNAPSHOTTER))
}

/// The change that takes it back.
///
/// # Errors
/// Where the file is no JSON.
pub fn undo(facts: &Facts) -> Result<Change, InstallError> {
    let Some(text) = facts.text.as_deref() else {
        return Ok(Change::new(&facts.path, None, None));
    };
    let value = parsed(facts, text)?;
    let before = facts.backup.as_deref();
    // Nobody has touched it since: what was there comes back as it was.
    let original = Facts { text: facts.backup.clone(), ..facts.clone() };
    let installed = edited(&original)?;
    if value == parsed(facts, &installed)? && text == installed {
        return Ok(Change::new(&facts.path, Some(text), facts.backup.clone()));
    }
    let old = parsed(facts, before.unwrap_or(""))?;
    let mut after = text.to_owned();
    if value["storage-driver"] == SNAPSHOTTER {
        after = restored(&after, &DRIVER, &old["storage-driver"]);
        after = restored(&after, &STORE, &old["features"]["containerd-snapshotter"]);
        let now = parsed(facts, &after)?;
        let empty = now["features"].as_object().is_some_and(serde_json::Map::is_empty);
        if empty && old["features"].is_null() {
            after = json::remove(&after, &["features"]);
        }
    }
    Ok(Change::new(&facts.path, Some(text), Some(after)))
}

/// The text that [`plan`] makes of a text, whatever the host is.
fn edited(facts: &Facts) -> Result<String, InstallError> {
    let daemon = Daemon { containerd_store: true, ..Daemon::default() };
    let change = plan(&Facts { daemon: Some(daemon), ..facts.clone() }, true)?;
    Ok(change.after.unwrap_or_default())
}

fn restored(text: &str, path: &[&str], old: &Value) -> String {
    if old.is_null() { json::remove(text, path) } else { json::set(text, path, &old.to_string()) }
}

fn parsed(facts: &Facts, text: &str) -> Result<Value, InstallError> {
    let value = json::parse(text)
        .map_err(|problem| InstallError::Unreadable { path: facts.path.clone(), problem })?;
    match &value["features"] {
        Value::Null | Value::Object(_) => Ok(value),
        _ => Err(InstallError::Unreadable {
            path: facts.path.clone(),
            problem: "\"features\" has to be an object".to_owned(),
        }),
    }
}

/// Whether this Docker, set up like this, can use hoist.
fn fit(daemon: &Daemon, value: &Value) -> Result<(), InstallError> {
    let major = daemon.version.split('.').next().and_then(|word| word.parse::<u64>().ok());
    if let Some(major) = major.filter(|major| *major < OLDEST_MAJOR) {
        return Err(refused(format!(
            "Docker {} (major {major}) is too old: its containerd image store takes no snapshotter of others. \
             Docker {OLDEST_MAJOR} or later is needed",
            daemon.version
        )));
    }
    if value["userns-remap"].as_str().is_some_and(|remap| !remap.is_empty()) {
        return Err(refused(
            "daemon.json sets userns-remap, which the containerd image store does not know; containers would run as \
             other users than now. Remove that key first, if that is wanted",
        ));
    }
    match value["storage-driver"].as_str() {
        None | Some("" | SNAPSHOTTER | "overlay2" | "overlayfs") => Ok(()),
        Some(other) => Err(refused(format!(
            "daemon.json asks for the storage driver {other:?}, which somebody has chosen with a reason. Remove the \
             key storage-driver first, if hoist is to take its place"
        ))),
    }
}

/// What the change would hide.
fn hides_nothing(daemon: &Daemon) -> Result<(), InstallError> {
    if daemon.driver == SNAPSHOTTER {
        return Ok(());
    }
    let (images, containers, driver) = (daemon.images, daemon.containers, &daemon.driver);
    // Images of containerd's store stay and are unpacked anew; containers belong to one driver.
    let hidden = if daemon.containerd_store { containers } else { images + containers };
    if hidden == 0 {
        return Ok(());
    }
    let store = if daemon.containerd_store { "the snapshotter" } else { "the graph driver" };
    Err(refused(format!(
        "Docker has {images} images and {containers} containers with {store} {driver}, which it would not show with \
         hoist (they come back with `hoist uninstall docker`). Remove them first, or pass --hide-images"
    )))
}
