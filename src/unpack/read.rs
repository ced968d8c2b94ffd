//! An archive, read to its end for whoever makes a tree of it: within the bounds of the options, and
//! counted.

use bytes::Bytes;

use super::{Options, UnpackError};
use crate::archive::{ArchiveError, Entry, Event, Parser, Place, Source, place};
use crate::timeline::LayerRecorder;

/// Makes a tree of what an archive holds.
pub(super) trait Maker {
    /// Takes the next entry.
    fn entry(&mut self, entry: Entry) -> Result<(), UnpackError>;

    /// Takes the next data of the last entry's file, which belong at `offset` in it.
    fn data(&mut self, offset: u64, bytes: Bytes) -> Result<(), UnpackError>;
}

/// Gives all that `source` holds to `maker`, and says how many entries that were. The source is read
/// to its end, also past the end of the archive.
pub(super) fn read(
    source: &mut dyn Source,
    maker: &mut impl Maker,
    options: &Options,
    recorder: &LayerRecorder,
) -> Result<u64, UnpackError> {
    let mut entries = 0;
    let mut parser = Parser::new(|| source.next_bytes());
    while let Some(event) = parser.next()? {
        options.check_bytes(parser.position())?;
        match event {
            Event::Entry(entry) => {
                entries += 1;
                recorder.entries(1);
                options.check_entries(entries)?;
                maker.entry(*entry)?;
            }
            Event::Data { offset, bytes } => maker.data(offset, bytes)?,
        }
    }
    // What follows the archive is part of the layer's bytes, and of no file.
    let mut position = parser.position() + parser.unread() as u64;
    drop(parser);
    while let Some(bytes) = source.next_bytes().map_err(ArchiveError::Source)? {
        position += bytes.len() as u64;
        options.check_bytes(position)?;
    }
    Ok(entries)
}

/// Where an entry belongs.
pub(super) fn place_of(entry: &Entry) -> Result<Place, UnpackError> {
    place(&entry.name).map_err(|source| UnpackError::Name {
        name: entry.display_name(),
        offset: entry.offset,
        source,
    })
}
