//! The labels of Prepare that mean something here.
//!
//! Four of them, sent by containerd's CRI plugin, its transfer service and dockerd, say which layer
//! of which image is wanted. The fifth that exists, with the digests of the following layers, is cut
//! off at 4,096 bytes, so the manifest is read instead. Two more, `uidmapping` and `gidmapping`, ask
//! for a root file system that is shifted into a user namespace; containerd sends them only to a
//! snapshotter whose configuration says `remap-ids`.

use super::error::Error;
use super::records::{LABEL_REF, Labels};
use crate::image::{BlobDigest, ChainId};

const LABEL_IMAGE: &str = "containerd.io/snapshot/cri.image-ref";
const LABEL_MANIFEST: &str = "containerd.io/snapshot/cri.manifest-digest";
const LABEL_LAYER: &str = "containerd.io/snapshot/cri.layer-digest";
const LABEL_USERS: &str = "containerd.io/snapshot/uidmapping";
const LABEL_GROUPS: &str = "containerd.io/snapshot/gidmapping";

/// The layer that a Prepare asks for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Wanted {
    /// The image's reference, as containerd resolved it.
    pub image: String,
    /// The manifest of the platform.
    pub manifest: BlobDigest,
    /// The layer's blob.
    pub layer: BlobDigest,
    /// The stack that ends with this layer.
    pub chain_id: ChainId,
}

impl Wanted {
    /// The labels that ask for it.
    pub fn labels(&self) -> Labels {
        let Self { image, manifest, layer, chain_id } = self;
        let pairs = [
            (LABEL_IMAGE, image.clone()),
            (LABEL_MANIFEST, manifest.to_string()),
            (LABEL_LAYER, layer.to_string()),
            (LABEL_REF, chain_id.to_string()),
        ];
        pairs.map(|(key, value)| (key.to_owned(), value)).into()
    }
}

/// Reads what a Prepare with [`LABEL_REF`] asks for, or says why it cannot be provided.
pub(super) fn wanted(labels: &Labels) -> Result<Wanted, String> {
    let get = |key: &'static str| {
        labels.get(key).ok_or_else(|| {
            format!(
                "the label {key} is missing; let containerd send it with \
                 disable_snapshot_annotations = false (CRI) or \
                 enable_remote_snapshot_annotations = \"true\" (transfer service)"
            )
        })
    };
    let digest = |key| -> Result<BlobDigest, String> {
        get(key)?.parse().map_err(|error| format!("label {key}: {error}"))
    };
    Ok(Wanted {
        image: get(LABEL_IMAGE)?.clone(),
        manifest: digest(LABEL_MANIFEST)?,
        layer: digest(LABEL_LAYER)?,
        chain_id: get(LABEL_REF)?.parse().map_err(|error| format!("label {LABEL_REF}: {error}"))?,
    })
}

/// How ids are shifted for a container, as the labels say it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Mapping {
    users: String,
    groups: String,
    /// What the container's root is on the host: user and group.
    pub(super) root: (u32, u32),
}

impl Mapping {
    /// The mapping in `labels`, if they carry one.
    pub(super) fn parse(labels: &Labels) -> Result<Option<Self>, Error> {
        let (users, groups) = (labels.get(LABEL_USERS), labels.get(LABEL_GROUPS));
        if users.is_none() && groups.is_none() {
            return Ok(None);
        }
        let read = |label, value: Option<&String>| {
            let value = value.cloned().unwrap_or_default();
            let root = host_root(&value).map_err(|reason| Error::Mapping {
                label,
                value: value.clone(),
                reason,
            })?;
            Ok::<_, Error>((value, root))
        };
        let (users, user) = read(LABEL_USERS, users)?;
        let (groups, group) = read(LABEL_GROUPS, groups)?;
        Ok(Some(Self { users, groups, root: (user, group) }))
    }

    /// The mount options that make containerd mount the layers shifted.
    pub(super) fn options(&self) -> [String; 2] {
        [format!("uidmap={}", self.users), format!("gidmap={}", self.groups)]
    }
}

/// The host's id of the container's id 0 in a list of `container:host:size`, comma between.
fn host_root(list: &str) -> Result<u32, &'static str> {
    let mut root = None;
    for range in list.split(',') {
        let mut numbers = range.split(':').map(str::parse::<u32>);
        let (Some(Ok(inside)), Some(Ok(outside)), Some(Ok(size)), None) =
            (numbers.next(), numbers.next(), numbers.next(), numbers.next())
        else {
            return Err("not three numbers");
        };
        if inside.checked_add(size).is_none() || outside.checked_add(size).is_none() || size == 0 {
            return Err("the range is empty or goes beyond 32 bits");
        }
        if inside == 0 {
            root = Some(outside);
        }
    }
    root.ok_or("the container's id 0 is not mapped")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::Sha256;

    fn labels(pairs: &[(&str, &str)]) -> Labels {
        pairs.iter().map(|&(k, v)| (k.to_owned(), v.to_owned())).collect()
    }

    #[test]
    fn a_wanted_layer_needs_all_of_its_labels() {
        let (a, b, c) = (Sha256::of(b"a"), Sha256::of(b"b"), Sha256::of(b"c"));
        let (at, bt, ct) = (a.to_string(), b.to_string(), c.to_string());
        let all =
            [(LABEL_IMAGE, "r/i:t"), (LABEL_MANIFEST, &*at), (LABEL_LAYER, &bt), (LABEL_REF, &ct)];
        let found = wanted(&labels(&all)).unwrap();
        assert_eq!(
            found,
            Wanted {
                image: "r/i:t".to_owned(),
                manifest: BlobDigest(a),
                layer: BlobDigest(b),
                chain_id: ChainId(c),
            }
        );
        assert_eq!(found.labels(), labels(&all));
        for missing in 0..all.len() {
            let mut some = all.to_vec();
            let (key, _) = some.remove(missing);
            assert!(wanted(&labels(&some)).unwrap_err().contains(key));
        }
        let odd = [all[0], (LABEL_MANIFEST, "sha512:00"), all[2], all[3]];
        assert!(wanted(&labels(&odd)).unwrap_err().contains("sha512"));
    }

    #[test]
    fn mappings_are_read_or_refused_in_words() {
        assert_eq!(Mapping::parse(&labels(&[("x", "y")])).unwrap(), None);
        let both = labels(&[(LABEL_USERS, "5:9:1,0:1000:10"), (LABEL_GROUPS, "0:2000:10")]);
        let mapping = Mapping::parse(&both).unwrap().unwrap();
        assert_eq!(mapping.root, (1000, 2000));
        assert_eq!(mapping.options()[0], "uidmap=5:9:1,0:1000:10");
        for bad in ["", "0", "0:1", "0:1:2:3", "a:b:c", "1:1000:10", "0:4294967295:10", "0:1:0"] {
            let bad = labels(&[(LABEL_USERS, bad), (LABEL_GROUPS, "0:2000:10")]);
            assert!(matches!(Mapping::parse(&bad), Err(Error::Mapping { label: LABEL_USERS, .. })));
        }
        let half = labels(&[(LABEL_USERS, "0:1000:10")]);
        assert!(matches!(Mapping::parse(&half), Err(Error::Mapping { label: LABEL_GROUPS, .. })));
    }
}
