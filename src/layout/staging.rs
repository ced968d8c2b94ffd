//! Where a new image's blobs wait until all of them are there.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, PoisonError};

use serde_json::{Value, json};

use super::{DOCUMENT_BYTES_MOST, LayoutError, Member, REF_NAME, failed, remove};
use crate::image::{BlobDigest, Sha256};

/// What the file `oci-layout` says (image-layout.md).
const LAYOUT_FILE: &str = r#"{"imageLayoutVersion":"1.0.0"}"#;

/// A directory of blobs in the making. Dropping it removes it.
#[derive(Debug)]
pub struct Staging {
    directory: PathBuf,
    /// The blobs that are whole, with their sizes in bytes.
    blobs: Mutex<BTreeMap<BlobDigest, u64>>,
    /// Directories that did not exist before, to go again where nothing was published.
    made: Vec<PathBuf>,
}

impl Staging {
    /// A new directory in `parent`, which is made if it is not there.
    ///
    /// # Errors
    /// What the operating system says.
    pub fn new(parent: &Path) -> Result<Self, LayoutError> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let made: Vec<PathBuf> = parent
            .ancestors()
            .take_while(|path| !path.as_os_str().is_empty() && !path.exists())
            .map(Path::to_owned)
            .collect();
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let directory = parent.join(format!(".hoist-convert-{}-{number}", std::process::id()));
        // Made before the directories, so that these go again where the last cannot be made.
        let staging = Self { directory, blobs: Mutex::default(), made };
        fs::create_dir_all(&staging.directory)
            .map_err(failed("making a temporary directory in", parent))?;
        Ok(staging)
    }

    /// The directory itself, for files that nobody else is to see.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// A file to write a blob into, by a name that is free to choose.
    ///
    /// # Errors
    /// What the operating system says.
    pub fn create(&self, name: &str) -> Result<File, LayoutError> {
        let path = self.directory.join(name);
        let mut options = File::options();
        options.read(true).write(true).create(true).truncate(true);
        options.open(&path).map_err(failed("making", &path))
    }

    /// Takes a file made by [`Staging::create`] as the blob `digest` of `size` bytes.
    ///
    /// # Errors
    /// What the operating system says.
    pub fn keep(&self, name: &str, digest: BlobDigest, size: u64) -> Result<(), LayoutError> {
        let path = self.directory.join(name);
        fs::rename(&path, self.path(digest)).map_err(failed("renaming", &path))?;
        self.blobs.lock().unwrap_or_else(PoisonError::into_inner).insert(digest, size);
        Ok(())
    }

    /// Writes a document as a blob.
    ///
    /// # Errors
    /// What the operating system says.
    pub fn put(&self, bytes: &[u8]) -> Result<BlobDigest, LayoutError> {
        let digest = BlobDigest(Sha256::of(bytes));
        let path = self.path(digest);
        fs::write(&path, bytes).map_err(failed("writing", &path))?;
        let size = bytes.len() as u64;
        self.blobs.lock().unwrap_or_else(PoisonError::into_inner).insert(digest, size);
        Ok(digest)
    }

    /// Where a blob lies until it is published.
    pub fn path(&self, digest: BlobDigest) -> PathBuf {
        self.directory.join(digest.0.hex())
    }

    /// The blobs that are whole, with their sizes in bytes.
    pub fn blobs(&self) -> Vec<(BlobDigest, u64)> {
        let blobs = self.blobs.lock().unwrap_or_else(PoisonError::into_inner);
        blobs.iter().map(|(&digest, &size)| (digest, size)).collect()
    }

    /// Opens a blob.
    ///
    /// # Errors
    /// What the operating system says.
    pub fn open(&self, digest: BlobDigest) -> Result<Member, LayoutError> {
        let path = self.path(digest);
        let file = File::open(&path).map_err(failed("opening", &path))?;
        let left = file.metadata().map_err(failed("reading", &path))?.len();
        Ok(Member { file, offset: 0, left, path })
    }

    /// Moves all blobs into the layout at `root` and has its index name `descriptor`, by `tag` if
    /// there is one. What had that tag loses it; other images stay. `root` has to be on the same
    /// file system.
    ///
    /// # Errors
    /// What the operating system says. The index is the last that changes.
    pub fn publish(
        mut self,
        root: &Path,
        descriptor: &Value,
        tag: Option<&str>,
    ) -> Result<(), LayoutError> {
        let blobs = root.join("blobs/sha256");
        fs::create_dir_all(&blobs).map_err(failed("making", &blobs))?;
        for (digest, _) in self.blobs() {
            let to = blobs.join(digest.0.hex());
            let from = self.path(digest);
            // What was written is on the disk before an index names it.
            File::open(&from).and_then(|f| f.sync_data()).map_err(failed("syncing", &from))?;
            fs::rename(from, &to).map_err(failed("moving a blob to", &to))?;
        }
        let index = root.join("index.json");
        let old = match fs::metadata(&index) {
            Ok(data) if data.len() > DOCUMENT_BYTES_MOST => {
                let reason = "its index.json is too large to be one".to_owned();
                return Err(LayoutError::Form { path: root.to_owned(), reason });
            }
            Ok(_) => fs::read(&index).map_err(failed("reading", &index))?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => b"{}".to_vec(),
            Err(error) => return Err(failed("reading", &index)(error)),
        };
        let old: Value = serde_json::from_slice(&old).map_err(|error| LayoutError::Form {
            path: root.to_owned(),
            reason: format!("its index.json cannot be read: {error}"),
        })?;
        self.replace(root, "oci-layout", LAYOUT_FILE.as_bytes())?;
        let new = index_with(old, descriptor, tag);
        self.replace(root, "index.json", new.to_string().as_bytes())?;
        self.made.clear();
        Ok(())
    }

    /// Writes a file of the layout whole or not at all.
    fn replace(&self, root: &Path, name: &str, bytes: &[u8]) -> Result<(), LayoutError> {
        let from = self.directory.join(name);
        let to = root.join(name);
        let write = || {
            let mut file = File::create(&from)?;
            file.write_all(bytes)?;
            file.sync_data()?;
            fs::rename(&from, &to)
        };
        write().map_err(failed("writing", &to))
    }

    /// Writes all blobs and an index that names `descriptor` as a layout in a tar archive. The
    /// archive appears whole or not at all, and the same blobs give the same bytes.
    ///
    /// # Errors
    /// What the operating system says.
    pub fn publish_archive(
        mut self,
        file: &Path,
        descriptor: &Value,
        tag: Option<&str>,
    ) -> Result<(), LayoutError> {
        let from = self.directory.join("archive");
        let index = index_with(json!({}), descriptor, tag).to_string();
        let write = || {
            let mut archive = tar::Builder::new(io::BufWriter::new(File::create(&from)?));
            for (name, bytes) in [("oci-layout", LAYOUT_FILE), ("index.json", &index)] {
                let mut header = plain_header(bytes.len() as u64);
                archive.append_data(&mut header, name, bytes.as_bytes())?;
            }
            for (digest, size) in self.blobs() {
                let name = super::blob_name(digest);
                archive.append_data(
                    &mut plain_header(size),
                    name,
                    File::open(self.path(digest))?,
                )?;
            }
            let out = archive.into_inner()?.into_inner().map_err(io::IntoInnerError::into_error)?;
            out.sync_data()?;
            fs::rename(&from, file)
        };
        write().map_err(failed("writing", file))?;
        self.made.clear();
        Ok(())
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        remove(&self.directory);
        for directory in &self.made {
            // Not empty means that somebody else uses it by now.
            let _ = fs::remove_dir(directory);
        }
    }
}

fn plain_header(size: u64) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_size(size);
    header.set_mode(0o644);
    header
}

/// `old`, an index or an empty object, with `descriptor` under `tag`.
fn index_with(mut old: Value, descriptor: &Value, tag: Option<&str>) -> Value {
    let mut all = old["manifests"].as_array().cloned().unwrap_or_default();
    all.retain(|other| match tag {
        Some(tag) => other["annotations"][REF_NAME].as_str() != Some(tag),
        None => other["digest"] != descriptor["digest"],
    });
    let mut new = descriptor.clone();
    if let Some(tag) = tag {
        new["annotations"][REF_NAME] = tag.into();
    }
    all.push(new);
    old["schemaVersion"] = 2.into();
    old["mediaType"] = "application/vnd.oci.image.index.v1+json".into();
    old["manifests"] = all.into();
    old
}
