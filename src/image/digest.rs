//! Digests: `sha256:` and 64 lower-case hexadecimal digits (OCI image specification, descriptor.md,
//! "Digests"). Other algorithms are an error that callers answer with containerd's own pull.

use std::fmt;
use std::str::FromStr;

use sha2::Digest as _;

/// The 32 bytes of a SHA-256 digest.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Sha256([u8; 32]);

impl Sha256 {
    /// The digest of `bytes`.
    pub fn of(bytes: &[u8]) -> Self {
        Self(sha2::Sha256::digest(bytes).into())
    }

    /// A digest from its raw bytes, as a hasher returns them.
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The raw bytes.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// The 64 hexadecimal digits, without the algorithm.
    pub fn hex(&self) -> String {
        hex::encode(self.0)
    }
}

impl fmt::Display for Sha256 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("sha256:")?;
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Sha256 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Why a text is no digest that hoist works with.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DigestError {
    /// Another algorithm than SHA-256.
    #[error("digest {0:?} uses another algorithm than sha256, which hoist does not verify")]
    Algorithm(String),
    /// Not of the form of a digest.
    #[error("{0:?} is not a digest: expected sha256: and 64 lower-case hexadecimal digits")]
    Malformed(String),
}

impl FromStr for Sha256 {
    type Err = DigestError;

    fn from_str(text: &str) -> Result<Self, DigestError> {
        let malformed = || DigestError::Malformed(text.to_owned());
        let (algorithm, digits) = text.split_once(':').ok_or_else(malformed)?;
        if algorithm != "sha256" {
            return Err(DigestError::Algorithm(text.to_owned()));
        }
        if digits.len() != 64 || digits.bytes().any(|b| b.is_ascii_uppercase()) {
            return Err(malformed());
        }
        let mut bytes = [0; 32];
        hex::decode_to_slice(digits, &mut bytes).map_err(|_| malformed())?;
        Ok(Self(bytes))
    }
}

macro_rules! digest_newtype {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
        pub struct $name(pub Sha256);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&self.0, f)
            }
        }

        impl FromStr for $name {
            type Err = DigestError;

            fn from_str(text: &str) -> Result<Self, DigestError> {
                text.parse().map(Self)
            }
        }

        impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
                to.collect_str(self)
            }
        }

        impl<'de> serde::Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
                let text = String::deserialize(from)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}

digest_newtype! {
    /// The digest of a blob as a registry stores it: for a layer, of its *compressed* bytes.
    BlobDigest
}
digest_newtype! {
    /// The digest of a layer's *uncompressed* tar archive (OCI image specification, config.md,
    /// "Layer DiffID").
    DiffId
}
digest_newtype! {
    /// The digest that names a stack of layers (OCI image specification, config.md,
    /// "Layer ChainID").
    ChainId
}

impl ChainId {
    /// The ChainID of a stack whose lowest layer is `diff_id`.
    pub fn of_first(diff_id: DiffId) -> Self {
        Self(diff_id.0)
    }

    /// The ChainID of this stack with `diff_id` on top.
    pub fn then(self, diff_id: DiffId) -> Self {
        Self(Sha256::of(format!("{self} {diff_id}").as_bytes()))
    }

    /// The ChainIDs of a whole stack, lowest first, one for each layer.
    pub fn of_stack(diff_ids: &[DiffId]) -> Vec<Self> {
        let mut chain: Option<Self> = None;
        diff_ids
            .iter()
            .map(|&diff_id| {
                let next = chain.map_or_else(|| Self::of_first(diff_id), |c| c.then(diff_id));
                chain = Some(next);
                next
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_and_back() {
        let digest = Sha256::of(b"abc");
        let text = "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(digest.to_string(), text);
        assert_eq!(text.parse::<Sha256>().unwrap(), digest);
        assert_eq!(digest.hex(), &text[7..]);
    }

    #[test]
    fn refuses_what_is_no_digest() {
        for text in ["", "abc", "sha256:", "sha256:zz", &format!("sha256:{}", "A".repeat(64))] {
            assert!(matches!(text.parse::<Sha256>(), Err(DigestError::Malformed(_))), "{text}");
        }
        let sha512 = format!("sha512:{}", "a".repeat(128));
        assert!(matches!(sha512.parse::<Sha256>(), Err(DigestError::Algorithm(_))));
    }

    /// The example that opencontainers/image-spec's identity/chainid_test.go works with.
    #[test]
    fn chain_ids_follow_the_specification() {
        let a = DiffId(Sha256::of(b"a"));
        let b = DiffId(Sha256::of(b"b"));
        let c = DiffId(Sha256::of(b"c"));
        let chain = ChainId::of_stack(&[a, b, c]);
        assert_eq!(chain[0].0, a.0);
        assert_eq!(chain[1].0, Sha256::of(format!("{a} {b}").as_bytes()));
        assert_eq!(chain[2].0, Sha256::of(format!("{} {c}", chain[1]).as_bytes()));
    }
}
