//! What this host's disk and file system take: a large file, and many small ones.

use std::fs::File;
use std::io::{self, Write as _};
use std::path::Path;
use std::time::Instant;

use bytes::Bytes;

use crate::sys::processors::Processors;
use crate::timeline::LayerRecorder;
use crate::unpack::{ImageLabel, Options, UnpackError, unpack, unpack_image};

/// What the disk gets to write: more than its own cache of some megabytes.
const LARGE_BYTES: usize = 256 << 20;

/// Small files that are made, of [`SMALL_BYTES`] each, so many in a directory.
const SMALL_FILES: usize = 8_000;
const SMALL_BYTES: usize = 1024;
const IN_A_DIRECTORY: usize = 20;

/// Costs in seconds, a rate in bytes a second.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(super) struct Written {
    /// For a byte into the page cache.
    pub(super) byte: f64,
    /// Bytes a second onto the disk.
    pub(super) disk: f64,
    /// For a file, as hoistd makes layers here.
    pub(super) file: f64,
    /// For a file of the file system, made by one core.
    pub(super) plain_file: f64,
}

/// Writes below `home`; with `images` hoistd's files are names in an image.
pub(super) fn measure(home: &Path, images: bool) -> Result<Written, UnpackError> {
    let failed = |source| UnpackError::Tree {
        what: "writing a large file in",
        path: home.to_owned(),
        source,
    };
    let (byte, disk) = large(home).map_err(failed)?;
    let archive = small_files().map_err(failed)?;
    let recorder = LayerRecorder::detached();
    let mut source = arriving(&archive);
    let directory = home.join("files");
    std::fs::create_dir(&directory).map_err(failed)?;
    let before = Processors::now();
    unpack(&mut source, &directory, &Options::default(), &recorder)?;
    let plain_file = of_each(Processors::now().process_seconds - before.process_seconds, byte);
    let mut source = arriving(&archive);
    let began = Instant::now();
    let file = if images {
        let options = Options::default();
        let label = ImageLabel::default();
        unpack_image(&mut source, &home.join("image"), label, &options, None, &recorder)?;
        of_each(began.elapsed().as_secs_f64(), byte)
    } else {
        plain_file
    };
    Ok(Written { byte, disk, file, plain_file })
}

/// What a file takes of `seconds` for all of them, without its bytes.
#[allow(clippy::cast_precision_loss, reason = "some thousands")]
fn of_each(seconds: f64, byte: f64) -> f64 {
    (seconds / SMALL_FILES as f64 - byte * SMALL_BYTES as f64).max(0.0)
}

/// Seconds of a byte into the page cache, and bytes a second onto the disk.
#[allow(clippy::cast_precision_loss, reason = "a few hundred megabytes")]
fn large(home: &Path) -> io::Result<(f64, f64)> {
    let block = vec![7_u8; 1 << 20];
    let mut file = File::create(home.join("large"))?;
    let began = Instant::now();
    for _ in 0..LARGE_BYTES / block.len() {
        file.write_all(&block)?;
    }
    let cached = began.elapsed().as_secs_f64().max(1e-6);
    file.sync_data()?;
    let synced = began.elapsed().as_secs_f64().max(1e-6);
    Ok((cached / LARGE_BYTES as f64, LARGE_BYTES as f64 / synced))
}

/// An archive of small files, a few in each directory, as in an application.
fn small_files() -> io::Result<Bytes> {
    let mut archive = tar::Builder::new(Vec::new());
    for number in 0..SMALL_FILES {
        let mut header = tar::Header::new_ustar();
        header.set_size(SMALL_BYTES as u64);
        header.set_mode(0o644);
        header.set_mtime(1);
        let name = format!("modules/{}/{number}", number / IN_A_DIRECTORY);
        archive.append_data(&mut header, name, &[7_u8; SMALL_BYTES][..])?;
    }
    Ok(archive.into_inner()?.into())
}

/// The archive as a decoder would give it.
fn arriving(archive: &Bytes) -> impl FnMut() -> io::Result<Option<Bytes>> + use<> {
    let mut pieces = super::pieces(archive.clone());
    move || Ok(pieces.next())
}
