//! Who pulls, and what that means for the order of things.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::Rates;

/// A way to pull an image.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Model {
    /// containerd and dockerd as installed: three layers are downloaded at once, one connection
    /// each, and extracted one after the other in the order of the stack, each after the whole of
    /// its download (containerd `core/unpack/unpacker.go`; CRI's `max_concurrent_downloads = 3`).
    Containerd,
    /// The same with `max_concurrent_downloads = 1`: one layer after the other over the whole link.
    ContainerdInOrder,
    /// containerd 2.2 and later as tuned for big machines: 20 downloads in ranges over many
    /// connections, 12 layers extracted at once, each after the whole of its download.
    ContainerdParallel,
    /// hoistd: a layer is extracted while it arrives, and bytes go to the layer with the longest
    /// remaining serial work.
    Hoist,
    /// AWS Fargate: taken to be containerd as installed until it is calibrated.
    Fargate,
}

/// What tells one puller from another.
pub(super) struct Shape {
    /// Layers that are downloaded at once.
    pub(super) downloads: usize,
    /// Layers that are extracted at once; 1 means in the order of the stack.
    pub(super) unpacks: usize,
    /// A layer is fetched by many connections instead of one.
    pub(super) ranged: bool,
    /// A layer is extracted while it arrives, and never lies on the disk in its compressed form.
    pub(super) streaming: bool,
}

impl Model {
    /// All of them, in the order in which they are shown.
    pub const ALL: [Self; 5] = [
        Self::Containerd,
        Self::ContainerdInOrder,
        Self::ContainerdParallel,
        Self::Hoist,
        Self::Fargate,
    ];

    /// Its name on the command line and in profiles.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Containerd => "containerd",
            Self::ContainerdInOrder => "containerd-in-order",
            Self::ContainerdParallel => "containerd-parallel",
            Self::Hoist => "hoist",
            Self::Fargate => "fargate",
        }
    }

    /// What it does, in a line for people.
    pub fn describe(self) -> &'static str {
        match self {
            Self::Containerd => {
                "containerd as installed: 3 downloads at once, then extraction in order"
            }
            Self::ContainerdInOrder => {
                "containerd with max_concurrent_downloads = 1: one layer after the other"
            }
            Self::ContainerdParallel => {
                "containerd 2.2+ tuned: ranged downloads, many layers extracted at once"
            }
            Self::Hoist => "hoistd: every layer is extracted while it arrives",
            Self::Fargate => "AWS Fargate: as containerd, until calibrated",
        }
    }

    pub(super) fn shape(self, rates: &Rates) -> Shape {
        let (downloads, unpacks, ranged, streaming) = match self {
            Self::Containerd | Self::Fargate => (3, 1, false, false),
            Self::ContainerdInOrder => (1, 1, false, false),
            Self::ContainerdParallel => (20, 12, true, false),
            Self::Hoist => (usize::MAX, usize::MAX, true, true),
        };
        let set = rates.downloads.filter(|_| !streaming && self != Self::ContainerdInOrder);
        let downloads = set.map_or(downloads, |set| set.max(1) as usize);
        Shape { downloads, unpacks, ranged, streaming }
    }
}

impl fmt::Display for Model {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for Model {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let known = Self::ALL.into_iter().find(|model| model.as_str() == text);
        known.ok_or_else(|| {
            let names = Self::ALL.map(Self::as_str).join(", ");
            format!("{text:?} is not a model; there are {names}")
        })
    }
}
