//! The mounts that containerd gets for a snapshot, and what this kernel's overlay wants.
//!
//! A snapshot without a parent is one directory and is bound, since overlay needs a lower layer; so
//! is a view of a single layer. Everything else is an overlay with the layers from the topmost down.
//! The options of a mount have to fit into one page; where they do not, containerd shortens the
//! paths by what they have in common.

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, MsFlags, mount, umount2};

use super::labels::Mapping;
use super::layout::Layout;
use super::records::{Kind, Layer};

/// One mount, as containerd performs it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Mount {
    /// `bind` or `overlay`.
    pub kind: &'static str,
    /// The directory to bind, or `overlay`.
    pub source: String,
    /// The options of mount(8).
    pub options: Vec<String>,
}

/// The mounts of a snapshot of `kind` with the layer `own` on top of `parents`, topmost first.
pub(super) fn mounts(
    layout: &Layout,
    overlay_options: &[String],
    kind: Kind,
    own: Layer,
    parents: &[Layer],
    mapping: Option<&Mapping>,
) -> Vec<Mount> {
    let parents = &distinct(parents);
    let mut options: Vec<String> = mapping.into_iter().flat_map(Mapping::options).collect();
    let bind = |mut options: Vec<String>, directory: PathBuf, mode: &str| {
        options.extend([mode.to_owned(), "rbind".to_owned()]);
        vec![Mount { kind: "bind", source: text(&directory), options }]
    };
    match (kind, &parents[..]) {
        (Kind::Active, []) => return bind(options, layout.upper(own.snapshot), "rw"),
        (_, []) => return bind(options, layout.layer(own), "ro"),
        (Kind::Active, _) => {
            options.push(format!("workdir={}", text(&layout.work(own.snapshot))));
            options.push(format!("upperdir={}", text(&layout.upper(own.snapshot))));
        }
        (_, [only]) => return bind(options, layout.layer(*only), "ro"),
        _ => {}
    }
    let lower = parents.iter().map(|&layer| text(&layout.layer(layer))).collect::<Vec<_>>();
    options.push(format!("lowerdir={}", lower.join(":")));
    options.extend_from_slice(overlay_options);
    vec![Mount { kind: "overlay", source: "overlay".to_owned(), options }]
}

/// The parents, each tree where it is topmost. An image may have one layer twice (the empty one of a
/// build's steps), and overlay refuses a directory that is among its lower ones twice (ELOOP). The
/// deeper one shows nothing: each of its names is hidden by the same name above it.
fn distinct(parents: &[Layer]) -> Vec<Layer> {
    let mut seen = HashSet::new();
    parents
        .iter()
        .copied()
        .filter(|layer| layer.tree.is_none_or(|tree| seen.insert(tree)))
        .collect()
}

/// Paths go to containerd as text. The root comes from a configuration, which is text too.
fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

/// The options that overlay needs on this kernel and in this user namespace.
///
/// - `index=off`: with the index, a layer that serves as a lower directory of several mounts at once
///   can be refused with EBUSY, and sharing layers is what images do.
/// - `userxattr`: inside a user namespace overlay may not write `trusted.overlay.*`. Tried with a
///   real mount below `scratch`, since distributions differ in what they ported back.
pub(super) fn overlay_options(scratch: &Path) -> Vec<String> {
    let mut options = Vec::new();
    if Path::new("/sys/module/overlay/parameters/index").exists() {
        options.push("index=off".to_owned());
    }
    if in_user_namespace() && takes_userxattr(scratch) {
        options.push("userxattr".to_owned());
    }
    options
}

/// Whether ids are mapped, which they are not in the first user namespace.
fn in_user_namespace() -> bool {
    fs::read_to_string("/proc/self/uid_map")
        .is_ok_and(|map| !map.split_whitespace().eq(["0", "0", "4294967295"]))
}

fn takes_userxattr(scratch: &Path) -> bool {
    let directory = scratch.join("overlay-probe");
    let part = |name: &str| directory.join(name);
    if ["lower", "upper", "work", "merged"].map(part).iter().any(|p| fs::create_dir_all(p).is_err())
    {
        return false;
    }
    let tried = try_overlay(&directory, &part("lower"), ",userxattr");
    if tried.is_ok() {
        // A mount that stays behind would only keep the probe's directory from being swept.
        let _ = umount2(&part("merged"), MntFlags::MNT_DETACH);
    }
    tried.is_ok()
}

/// Mounts an overlay over `lower` on `merged` in `directory`, which has `upper` and `work` too; `more` goes
/// behind the options.
pub(super) fn try_overlay(directory: &Path, lower: &Path, more: &str) -> nix::Result<()> {
    let data = format!(
        "lowerdir={},upperdir={},workdir={}{more}",
        text(lower),
        text(&directory.join("upper")),
        text(&directory.join("work"))
    );
    let (overlay, merged) = (Some("overlay"), directory.join("merged"));
    mount(overlay, &merged, overlay, MsFlags::empty(), Some(&*data))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pull::trees::TreeId;

    fn layer(snapshot: i64, tree: Option<i64>) -> Layer {
        Layer { snapshot, tree: tree.map(TreeId) }
    }

    #[test]
    fn binds_and_overlays() {
        let directory = tempfile::tempdir().unwrap();
        let layout = Layout::open(directory.path()).unwrap();
        let root = layout.root().to_str().unwrap();
        let extra = ["index=off".to_owned()];
        let of =
            |kind, parents: &[Layer]| mounts(&layout, &extra, kind, layer(9, None), parents, None);

        let bound = of(Kind::Active, &[]);
        assert_eq!(bound[0].source, format!("{root}/snapshots/9/fs"));
        assert_eq!(bound[0].options, ["rw", "rbind"]);
        assert_eq!(of(Kind::View, &[])[0].options, ["ro", "rbind"]);

        let view = of(Kind::View, &[layer(1, Some(4))]);
        assert_eq!((view[0].kind, &*view[0].source), ("bind", &*format!("{root}/trees/4/fs")));
        assert_eq!(view[0].options, ["ro", "rbind"]);

        let parents = [layer(2, Some(4)), layer(1, None)];
        let lower = format!("lowerdir={root}/trees/4/fs:{root}/snapshots/1/fs");
        let active = of(Kind::Active, &parents);
        let work = format!("workdir={root}/snapshots/9/work");
        let upper = format!("upperdir={root}/snapshots/9/fs");
        assert_eq!(active[0].kind, "overlay");
        assert_eq!(active[0].options, [&*work, &upper, &lower, "index=off"]);
        assert_eq!(of(Kind::View, &parents)[0].options, [&*lower, "index=off"]);

        // A layer that an image has twice.
        let twice = [layer(3, Some(4)), layer(2, None), layer(1, Some(4))];
        let lower = format!("lowerdir={root}/trees/4/fs:{root}/snapshots/2/fs");
        assert_eq!(of(Kind::View, &twice)[0].options, [&*lower, "index=off"]);
        assert_eq!(of(Kind::View, &[layer(2, Some(4)), layer(1, Some(4))]), view);
    }

    /// containerd shortens the lower directories by their common part when they pass a page.
    #[test]
    fn a_hundred_and_twenty_eight_layers_fit_into_a_page() {
        let directory = tempfile::tempdir().unwrap();
        let layout = Layout::open(directory.path()).unwrap();
        let parents =
            (0..128).map(|n| layer(1_000_000 + n, Some(1_000_000 + n))).collect::<Vec<_>>();
        let mounts = mounts(&layout, &[], Kind::View, layer(1, None), &parents, None);
        let prefix = format!("{}/", layout.root().to_str().unwrap());
        assert!(mounts[0].options[0].replace(&prefix, "").len() < 4096 - 512);
    }
}
