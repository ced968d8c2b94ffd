//! From a file system to the lists of entries that new layers consist of.
//!
//! Equal files become hard links first, then files with all of their names are dealt out to layers
//! (`plan`), then each layer gets the directories its files need, with the metadata they have in
//! the end, and its files in an order that compresses well or that was given.

use std::collections::{BTreeSet, HashMap};

use super::ConvertError;
use super::base::Above;
use super::header::{self, Item};
use super::plan::{Aim, LayerPlan, Unit, Wish, plan};
use super::tree::{InodeId, Node, ROOT, Tree};
use crate::archive::LayerPath;
use crate::image::Sha256;

/// Files from this size on stand apart in a layer, in bytes: they fill frames of their own.
const LARGE_BYTES: u64 = 4 << 20;

/// Which files with equal content become hard links of one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Dedupe {
    /// Those whose mode, owner, modification time and extended attributes are equal too. Files
    /// below `/etc` and `/var` stay what they are: package managers rewrite them in place.
    Strict,
    /// As strict, but the modification time may differ: the first name's counts for all.
    Content,
    /// None.
    Off,
}

impl Dedupe {
    /// As the option has it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Strict => "strict",
            Self::Content => "content",
            Self::Off => "off",
        }
    }
}

/// New layers, not written yet.
#[derive(Debug)]
pub(super) struct Arranged {
    pub(super) layers: Vec<Vec<Item>>,
    pub(super) plans: Vec<LayerPlan>,
    /// Bytes of content that became hard links.
    pub(super) deduplicated: u64,
    /// Bytes of content that are written.
    pub(super) content: u64,
}

/// How much a byte of each source layer is compressed: blob and archive, in bytes.
pub(super) type Ratios = Vec<(u64, u64)>;

/// What is arranged, and how.
pub(super) struct Wanted<'a> {
    pub(super) tree: &'a Tree,
    /// All of its names.
    pub(super) walked: &'a [(LayerPath, InodeId)],
    pub(super) ratios: &'a Ratios,
    pub(super) wish: &'a Wish,
    pub(super) aim: Aim<'a>,
    pub(super) dedupe: Dedupe,
    pub(super) order: &'a [LayerPath],
    /// What is not in the layers below.
    pub(super) above: &'a Above,
    /// The inode of whiteouts.
    pub(super) marker: InodeId,
}

pub(super) fn arrange(wanted: &Wanted<'_>) -> Result<Arranged, ConvertError> {
    let Wanted { tree, walked, ratios, wish, dedupe, order, above, .. } = *wanted;
    let (groups, deduplicated) = groups(tree, walked, dedupe, above);
    let units: Vec<Unit> = groups.iter().map(|group| unit(tree, group, ratios)).collect();
    let plans = plan(&units, wish, &wanted.aim)?;
    let given: HashMap<&LayerPath, usize> =
        order.iter().enumerate().map(|(rank, path)| (path, rank)).collect();
    let directories: HashMap<&LayerPath, InodeId> = walked
        .iter()
        .filter(|(_, id)| matches!(tree.inode(*id).node, Node::Directory(_)))
        .map(|(path, id)| (path, *id))
        .collect();
    let needed = needed(&plans, &groups, &directories, above);
    let rank = |&unit: &usize| rank(tree, &groups[unit], &given);
    let mut layers = Vec::new();
    for (number, (layer, needed)) in plans.iter().zip(needed).enumerate() {
        let mut items = Vec::new();
        if number == 0 && tree.root_described && !above.same.contains(&ROOT) {
            items.push(Item { path: LayerPath::default(), inode: ROOT, link: None });
        }
        // Sorted, parents come before their children.
        items.extend(needed.into_iter().map(|path| {
            let inode = directories[&path];
            Item { path, inode, link: None }
        }));
        if number == 0 {
            items.extend(above.gone.iter().map(|path| {
                let (parent, name) = path.split().expect("the root is never gone");
                let path = parent.join(&[b".wh.", name].concat());
                Item { path, inode: wanted.marker, link: None }
            }));
        }
        let mut units = layer.units.clone();
        units.sort_by_cached_key(rank);
        for group in units.into_iter().map(|unit| &groups[unit]) {
            let first = &group.names[0];
            let link = |path: &LayerPath| (path != first).then(|| first.clone());
            items.extend(group.names.iter().map(|path| Item {
                path: path.clone(),
                inode: group.inode,
                link: link(path),
            }));
        }
        layers.push(items);
    }
    let content = groups.iter().map(|group| size(tree, group.inode)).sum();
    Ok(Arranged { layers, plans, deduplicated, content })
}

/// The directories that each layer has to have: those that its names are in, and in the lowest those
/// that no layer needs.
fn needed(
    plans: &[LayerPlan],
    groups: &[Group],
    directories: &HashMap<&LayerPath, InodeId>,
    above: &Above,
) -> Vec<BTreeSet<LayerPath>> {
    let mut needed: Vec<BTreeSet<LayerPath>> = Vec::new();
    for layer in plans {
        let mut of_layer = BTreeSet::new();
        let hidden = if needed.is_empty() { above.gone.as_slice() } else { &[] };
        for path in layer.units.iter().flat_map(|&unit| &groups[unit].names).chain(hidden) {
            let mut parent = parent_of(path);
            while let Some(path) = parent.filter(|path| !of_layer.contains(path)) {
                parent = parent_of(&path);
                of_layer.insert(path);
            }
        }
        needed.push(of_layer);
    }
    // A directory that no layer needs has nothing but directories in it; the lowest takes it.
    let homeless = directories
        .iter()
        .filter(|(path, id)| !above.same.contains(id) && !needed.iter().any(|n| n.contains(**path)))
        .map(|(&path, _)| path.clone());
    let homeless: Vec<LayerPath> = homeless.collect();
    for path in homeless {
        needed[0].extend(std::iter::successors(Some(path), parent_of));
    }
    needed
}

/// The directory that something is in, unless it is the root.
fn parent_of(path: &LayerPath) -> Option<LayerPath> {
    path.split().map(|(parent, _)| parent).filter(|parent| !parent.is_root())
}

/// Something that is no directory, with all of its names.
pub(super) struct Group {
    pub(super) inode: InodeId,
    /// In the order of the walk.
    pub(super) names: Vec<LayerPath>,
}

pub(super) fn size(tree: &Tree, inode: InodeId) -> u64 {
    match &tree.inode(inode).node {
        Node::File(content) => content.size,
        _ => 0,
    }
}

/// What two files must have in common to become one: content, mode, owner, xattrs, time.
type Likeness<'a> =
    (Sha256, u32, u32, u32, &'a [(std::ffi::CString, Vec<u8>)], Option<crate::archive::Time>);

/// Names by what they lead to, equal files put together; and what that saves, in bytes.
pub(super) fn groups(
    tree: &Tree,
    walked: &[(LayerPath, InodeId)],
    dedupe: Dedupe,
    above: &Above,
) -> (Vec<Group>, u64) {
    let mut groups: Vec<Group> = Vec::new();
    let mut by_inode: HashMap<InodeId, usize> = HashMap::new();
    let mut by_likeness: HashMap<Likeness<'_>, usize> = HashMap::new();
    let mut saved = 0;
    for (path, id) in walked {
        let inode = tree.inode(*id);
        if matches!(inode.node, Node::Directory(_)) || above.same.contains(id) {
            continue;
        }
        if let Some(&group) = by_inode.get(id) {
            groups[group].names.push(path.clone());
            continue;
        }
        let mut group = groups.len();
        if let Node::File(content) = &inode.node
            && content.size > 0
            && dedupe != Dedupe::Off
            && !is_rewritten_in_place(path)
        {
            let mtime = (dedupe == Dedupe::Strict).then_some(inode.mtime);
            let xattrs = inode.xattrs.as_slice();
            let likeness = (content.digest, inode.mode, inode.uid, inode.gid, xattrs, mtime);
            group = *by_likeness.entry(likeness).or_insert(group);
        }
        by_inode.insert(*id, group);
        if group == groups.len() {
            groups.push(Group { inode: *id, names: vec![path.clone()] });
        } else {
            groups[group].names.push(path.clone());
            saved += size(tree, *id);
        }
    }
    (groups, saved)
}

/// Whether package managers change files there without replacing them.
fn is_rewritten_in_place(path: &LayerPath) -> bool {
    path.parts().next().is_some_and(|first| first == b"etc" || first == b"var")
}

fn unit(tree: &Tree, group: &Group, ratios: &Ratios) -> Unit {
    let inode = tree.inode(group.inode);
    let names = group.names.len() as u64;
    let bytes = size(tree, group.inode).next_multiple_of(header::BLOCK) + names * header::BLOCK;
    let (blob, archive) = ratios.get(inode.layer).copied().unwrap_or((1, 1));
    let compressed = u128::from(bytes) * u128::from(blob) / u128::from(archive.max(1));
    Unit { bytes, compressed: u64::try_from(compressed).unwrap_or(u64::MAX), files: names }
}

/// Where a file stands in its layer: what was given first, then what has no content, then files by what
/// their names say of it, large ones last. Of one extension, those of the same name in a directory
/// of the same name stand side by side: copies of a package, and versions of it, are alike file by
/// file, and a compressor sees only some megabytes back.
type Rank = (usize, u8, Vec<u8>, Vec<u8>, bool, LayerPath);

fn rank(tree: &Tree, group: &Group, given: &HashMap<&LayerPath, usize>) -> Rank {
    let first = group.names[0].clone();
    let place = group.names.iter().filter_map(|name| given.get(name)).min();
    let inode = tree.inode(group.inode);
    let class = match &inode.node {
        Node::File(content) if content.size >= LARGE_BYTES => 2,
        Node::File(_) => 1,
        _ => 0,
    };
    let (kind, place_like) = match class {
        0 => (Vec::new(), Vec::new()),
        _ => (extension(&first), with_directory(&first)),
    };
    let executable = inode.mode & 0o111 != 0;
    (place.copied().unwrap_or(usize::MAX), class, kind, place_like, executable, first)
}

/// A file's name behind that of its directory alone.
fn with_directory(path: &LayerPath) -> Vec<u8> {
    let mut parts = path.as_bytes().rsplitn(3, |&b| b == b'/');
    let name = parts.next().unwrap_or_default();
    parts.next().map_or_else(|| name.to_vec(), |directory| [directory, name].join(&b'/'))
}

/// What a file's name says of its content.
fn extension(path: &LayerPath) -> Vec<u8> {
    let name = path.parts().last().unwrap_or_default();
    if name.windows(4).any(|four| four == b".so.") {
        return b"so".to_vec();
    }
    match name.iter().rposition(|&b| b == b'.') {
        Some(at) if at > 0 => name[at + 1..].to_ascii_lowercase(),
        _ => Vec::new(),
    }
}
