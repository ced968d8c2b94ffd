//! The data of regular files: small ones wait until they are whole, large ones are written as they
//! come.

use std::ffi::CString;
use std::os::fd::AsFd as _;
use std::sync::Arc;

use bytes::Bytes;

use super::writer::Job;
use super::{BATCH_SPAN_BYTES, Coordinator};
use crate::archive::{Entry, LayerPath};
use crate::unpack::UnpackError;
use crate::unpack::files::{Attributes, Item, Label, LargeFile, What};

/// Files with more data than this are written piece by piece.
const SMALL_FILE_BYTES: u64 = 256 << 10;

/// The file whose data come next.
pub(super) enum Current {
    None,
    Small { item: Item, missing: u64 },
    Large(Arc<LargeFile>),
}

impl Coordinator<'_> {
    /// Notes that data come next, of a file that is made now or with them.
    pub(super) fn begin_file(
        &mut self,
        entry: Entry,
        sparse: bool,
        parent: LayerPath,
        name: CString,
        mut attributes: Attributes,
        label: Label,
    ) -> Result<(), UnpackError> {
        self.summary.inodes += 1;
        self.summary.bytes += entry.stored.next_multiple_of(4096);
        let dir = self.handle(&parent, &label)?;
        if entry.stored > SMALL_FILE_BYTES {
            // What waits must not wait for all of a large file.
            self.flush()?;
            self.options.check_bytes(entry.stored)?;
            attributes.set_mode |= attributes.mode & self.directories.umask() != 0;
            if !sparse {
                // Its blocks are taken at once, before its bytes are counted one by one.
                self.options.room.reserve(entry.stored, self.summary.bytes)?;
            }
            let _busy = self.writes();
            let file = LargeFile::create(dir.as_fd(), &name, &entry, sparse, attributes)?;
            self.current = Current::Large(Arc::new(file));
            return Ok(());
        }
        let what = What::File { size: entry.size, sparse, pieces: Vec::new() };
        let item = Item { dir, name, what, attributes, label };
        if entry.stored == 0 {
            return self.send(item, entry.offset);
        }
        self.current = Current::Small { item, missing: entry.stored };
        if !self.batch.is_empty() && entry.offset - self.batch_begin >= BATCH_SPAN_BYTES {
            self.flush()?;
        }
        Ok(())
    }

    /// Takes the next data of the file that was begun.
    pub(super) fn piece(&mut self, offset: u64, bytes: Bytes) -> Result<(), UnpackError> {
        match std::mem::replace(&mut self.current, Current::None) {
            Current::None => Ok(()),
            Current::Large(file) => {
                self.current = Current::Large(Arc::clone(&file));
                self.queue.push(Job::Piece { file, offset, bytes })
            }
            Current::Small { mut item, missing } => {
                let missing = missing - bytes.len() as u64;
                if let What::File { pieces, .. } = &mut item.what {
                    pieces.push((offset, bytes));
                }
                if missing > 0 {
                    self.current = Current::Small { item, missing };
                    return Ok(());
                }
                let begin = item.label.offset();
                self.send(item, begin)
            }
        }
    }
}
