//! What differs between two file systems, entry by entry.

use std::collections::HashMap;
use std::fmt;

use super::arrange::Dedupe;
use super::tree::{Inode, InodeId, Node, ROOT, Tree};
use crate::archive::LayerPath;

/// One difference.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Difference {
    /// The path, without the root's slash.
    pub path: LayerPath,
    /// What is different there.
    pub what: String,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "/{}: {}", String::from_utf8_lossy(self.path.as_bytes()), self.what)
    }
}

/// Compares `b` with `a`: names, types, modes, owners, times, contents, targets, devices, extended
/// attributes and which names are one file. `dedupe` says what may have become one file in `b`.
pub(super) fn compare(a: &Tree, b: &Tree, dedupe: Dedupe) -> Vec<Difference> {
    let mut found = Vec::new();
    let mut pairs: [HashMap<InodeId, (InodeId, LayerPath)>; 2] = [HashMap::new(), HashMap::new()];
    let (left, right) = (sorted(a), sorted(b));
    let (mut left, mut right) = (left.into_iter().peekable(), right.into_iter().peekable());
    loop {
        let step = match (left.peek(), right.peek()) {
            (None, None) => break,
            (Some(_), None) => (left.next(), None),
            (None, Some(_)) => (None, right.next()),
            (Some((l, _)), Some((r, _))) if l < r => (left.next(), None),
            (Some((l, _)), Some((r, _))) if l > r => (None, right.next()),
            _ => (left.next(), right.next()),
        };
        let mut tell =
            |path: &LayerPath, what: String| found.push(Difference { path: path.clone(), what });
        match step {
            (Some((path, _)), None) => tell(&path, "only in the first".to_owned()),
            (None, Some((path, _))) => tell(&path, "only in the second".to_owned()),
            (Some((path, x)), Some((_, y))) => {
                let mut said = Vec::new();
                inodes(a.inode(x), b.inode(y), dedupe, &mut said);
                if !matches!(a.inode(x).node, Node::Directory(_)) {
                    linked(&mut pairs[0], x, y, &path, "is one file in the first", &mut said);
                    if dedupe == Dedupe::Off {
                        linked(&mut pairs[1], y, x, &path, "is one file in the second", &mut said);
                    }
                }
                said.into_iter().for_each(|what| tell(&path, what));
            }
            (None, None) => break,
        }
    }
    found
}

fn sorted(tree: &Tree) -> Vec<(LayerPath, InodeId)> {
    let mut all = tree.walk();
    all.push((LayerPath::default(), ROOT));
    all.sort();
    all
}

/// Notes that `x` is `y` there, and says if it was another one elsewhere.
fn linked(
    pairs: &mut HashMap<InodeId, (InodeId, LayerPath)>,
    x: InodeId,
    y: InodeId,
    path: &LayerPath,
    how: &str,
    said: &mut Vec<String>,
) {
    let (other, first) = pairs.entry(x).or_insert_with(|| (y, path.clone()));
    if *other != y {
        said.push(format!(
            "it {how} with /{}, not in the other",
            String::from_utf8_lossy(first.as_bytes())
        ));
    }
}

fn inodes(a: &Inode, b: &Inode, dedupe: Dedupe, said: &mut Vec<String>) {
    let mut check = |what: &str, x: String, y: String| {
        if x != y {
            said.push(format!("{what} {x} and {y}"));
        }
    };
    check("type", kind(&a.node), kind(&b.node));
    check("mode", format!("{:04o}", a.mode), format!("{:04o}", b.mode));
    check("owner", format!("{}:{}", a.uid, a.gid), format!("{}:{}", b.uid, b.gid));
    let time = |inode: &Inode| format!("{}.{:09}", inode.mtime.seconds, inode.mtime.nanos);
    let may_differ = dedupe == Dedupe::Content && matches!(a.node, Node::File(_));
    if !may_differ {
        check("modification time", time(a), time(b));
    }
    check("extended attributes", format!("{:?}", a.xattrs), format!("{:?}", b.xattrs));
    match (&a.node, &b.node) {
        (Node::File(x), Node::File(y)) => {
            check("size", x.size.to_string(), y.size.to_string());
            check("content", x.digest.to_string(), y.digest.to_string());
        }
        (Node::Symlink(x), Node::Symlink(y)) => check("target", format!("{x:?}"), format!("{y:?}")),
        _ => {}
    }
}

fn kind(node: &Node) -> String {
    match node {
        Node::Directory(_) => "directory".to_owned(),
        Node::File(_) => "file".to_owned(),
        Node::Symlink(_) => "symbolic link".to_owned(),
        Node::Fifo => "named pipe".to_owned(),
        Node::CharDevice { major, minor } => format!("character device {major}:{minor}"),
        Node::BlockDevice { major, minor } => format!("block device {major}:{minor}"),
    }
}
