//! What is known of this host: files, programs, and what dockerd says of itself.

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde::Deserialize;

use super::containerd::{self, drop_in_of};
use super::files::read;
use super::{InstallError, backup_of, docker, refused};
use crate::image::Platform;

/// How long dockerd may take to say what it is.
const PATIENCE: Duration = Duration::from_secs(20);

/// The facts about Docker, with `path` its `daemon.json`.
///
/// # Errors
/// Where a file cannot be read, or who answers at the socket is no Docker.
pub fn docker(path: &Path, socket: &Path) -> Result<docker::Facts, InstallError> {
    let facts = docker_left(path)?;
    let daemon = match ask(socket)? {
        Some(daemon) => Some(daemon),
        None => on_disk(facts.text.as_deref().unwrap_or("")),
    };
    Ok(docker::Facts { daemon, ..facts })
}

/// The same of a Docker that may not answer, and is not asked: where its socket is systemd's and dockerd does not start, a
/// question would be answered with a reset, just when hoist has to be taken back.
///
/// # Errors
/// Where a file cannot be read.
pub fn docker_left(path: &Path) -> Result<docker::Facts, InstallError> {
    let (text, backup) = (read(path)?, read(&backup_of(path))?);
    Ok(docker::Facts { path: path.to_owned(), text, backup, daemon: None })
}

/// The facts about containerd, with `path` its `config.toml`, and where hoistd is.
///
/// # Errors
/// Where a file cannot be read, or there is no containerd.
pub fn containerd(
    path: &Path,
    socket: &Path,
    root: &Path,
) -> Result<containerd::Facts, InstallError> {
    // It has to be there to be plugged into.
    containerd_facts(path, socket, root, |_| containerd_version())
}

/// The same of a containerd that may have been removed: it counts as one for which the file of our own was written.
///
/// # Errors
/// Where a file cannot be read.
pub fn containerd_left(
    path: &Path,
    socket: &Path,
    root: &Path,
) -> Result<containerd::Facts, InstallError> {
    containerd_facts(path, socket, root, |written_for| {
        Ok(containerd_version().unwrap_or(written_for))
    })
}

/// `version` is told for which one the file of our own was written.
fn containerd_facts(
    path: &Path,
    socket: &Path,
    root: &Path,
    version: impl FnOnce((u64, u64)) -> Result<(u64, u64), InstallError>,
) -> Result<containerd::Facts, InstallError> {
    let text = read(path)?;
    let drop_in = drop_in_of(path);
    let mut imported = Vec::new();
    for file in imports(path, text.as_deref().unwrap_or("")) {
        if file != drop_in
            && let Some(text) = read(&file)?
        {
            imported.push((file, text));
        }
    }
    let drop_in = read(&drop_in)?;
    let written_for = containerd::written_for(drop_in.as_deref().unwrap_or(""));
    Ok(containerd::Facts {
        path: path.to_owned(),
        text,
        backup: read(&backup_of(path))?,
        drop_in,
        imported,
        version: version(written_for)?,
        socket: socket.to_owned(),
        root: root.to_owned(),
        architecture: Platform::host().architecture,
    })
}

/// The files that a configuration imports.
fn imports(path: &Path, text: &str) -> Vec<PathBuf> {
    let Ok(document) = text.parse::<toml_edit::DocumentMut>() else { return Vec::new() };
    let entries = document.get("imports").and_then(toml_edit::Item::as_array);
    let mut found = Vec::new();
    for entry in entries.into_iter().flatten().filter_map(toml_edit::Value::as_str) {
        found.extend(imported_by(&path.parent().unwrap_or(Path::new("/")).join(entry)));
    }
    found
}

/// The files that an import of containerd's means: one, or by `*` in the last part of its path, in their order.
pub fn imported_by(pattern: &Path) -> Vec<PathBuf> {
    let name = pattern.file_name().unwrap_or_default().to_string_lossy();
    let Some((start, end)) = name.split_once('*') else { return vec![pattern.to_owned()] };
    let directory = pattern.parent().unwrap_or(Path::new("/"));
    let files = std::fs::read_dir(directory).into_iter().flatten().flatten();
    let mut files: Vec<_> = files.map(|file| file.path()).collect();
    files.retain(|file| {
        let name = file.file_name().unwrap_or_default().to_string_lossy();
        name.len() >= start.len() + end.len() && name.starts_with(start) && name.ends_with(end)
    });
    files.sort();
    files
}

/// Whether there is a containerd to be started again.
pub fn has_containerd() -> bool {
    containerd_version().is_ok()
}

fn containerd_version() -> Result<(u64, u64), InstallError> {
    let said = Command::new("containerd").arg("--version").output().map_err(|error| {
        refused(format!("there is no containerd on the PATH ({error}); install it first"))
    })?;
    let said = String::from_utf8_lossy(&said.stdout).into_owned();
    version(&said)
        .ok_or_else(|| refused(format!("containerd --version says no version: {:?}", said.trim())))
}

/// The first word that is a version, as `1.7.24`, `v2.1.4` or `1.6.20~ds1`.
pub(super) fn version(text: &str) -> Option<(u64, u64)> {
    text.split_whitespace().find_map(|word| {
        let mut parts = word.trim_start_matches('v').split('.');
        let major = parts.next()?.parse().ok()?;
        let minor: String = parts.next()?.chars().take_while(char::is_ascii_digit).collect();
        Some((major, minor.parse().ok()?))
    })
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Info {
    server_version: String,
    driver: String,
    #[serde(default)]
    driver_status: Option<Vec<(String, String)>>,
    images: u64,
    containers: u64,
}

/// What dockerd says; `None` where nobody listens.
fn ask(socket: &Path) -> Result<Option<docker::Daemon>, InstallError> {
    let Ok(mut stream) = UnixStream::connect(socket) else { return Ok(None) };
    let wrong = |problem: String| InstallError::Daemon { socket: socket.to_owned(), problem };
    let mut answer = Vec::new();
    // HTTP/1.0: the answer comes in one piece and ends with the connection.
    stream
        .set_read_timeout(Some(PATIENCE))
        .and_then(|()| stream.write_all(b"GET /info HTTP/1.0\r\nHost: docker\r\n\r\n"))
        .and_then(|()| stream.read_to_end(&mut answer))
        .map_err(|error| wrong(error.to_string()))?;
    let answer = String::from_utf8_lossy(&answer);
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
    let info: Info = serde_json::from_str(body)
        .map_err(|error| wrong(format!("{}: {error}", head.lines().next().unwrap_or_default())))?;
    let status = info.driver_status.unwrap_or_default();
    Ok(Some(docker::Daemon {
        version: info.server_version,
        driver: info.driver,
        containerd_store: status
            .iter()
            .any(|(key, value)| key == "driver-type" && value == "io.containerd.snapshotter.v1"),
        images: info.images,
        containers: info.containers,
    }))
}

/// A dockerd that does not run: its program's version, and what lies in its data root.
fn on_disk(daemon_json: &str) -> Option<docker::Daemon> {
    let said = Command::new("dockerd").arg("--version").output().ok()?;
    let said = String::from_utf8_lossy(&said.stdout).into_owned();
    let version = version(&said).map(|(major, minor)| format!("{major}.{minor}"));
    let settings = super::json::parse(daemon_json).unwrap_or_default();
    let data = settings["data-root"].as_str().unwrap_or("/var/lib/docker");
    let entries = |path: PathBuf| std::fs::read_dir(path).into_iter().flatten().flatten();
    let stores = entries(Path::new(data).join("image"));
    let images = |store: &std::fs::DirEntry| {
        entries(store.path().join("imagedb/content/sha256")).count() as u64
    };
    let stores: Vec<_> = stores.map(|store| (images(&store), store.file_name())).collect();
    let (images, driver) = stores.into_iter().max().unwrap_or_default();
    Some(docker::Daemon {
        version: version.unwrap_or_default(),
        driver: driver.to_string_lossy().into_owned(),
        // Images of containerd's are not in the data root; containers are in both cases.
        containerd_store: images == 0,
        images,
        containers: if settings["storage-driver"] == super::SNAPSHOTTER {
            0
        } else {
            entries(Path::new(data).join("containers")).count() as u64
        },
    })
}
