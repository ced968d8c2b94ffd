//! References: where an image is, as people and containerd write it.
//!
//! ```text
//! [HOST[:PORT]/]PATH[/PATH…][:TAG][@ALGORITHM:HEX]
//! ```
//!
//! The grammar and what is filled in are those of containerd and Docker (distribution/reference): a first part is a host if it
//! has a dot, a colon or a capital letter, or is `localhost`; without one it is Docker Hub, and there `library/` where there is
//! one part only; without tag and digest it is `latest`. Read by hand: the grammar as a regular expression is seven
//! megabytes of automaton, which a daemon would keep for as long as it lives.

use std::fmt;
use std::str::FromStr;

use super::BlobDigest;

const HUB: &str = "docker.io";
const HUB_FORMERLY: &str = "index.docker.io";
const HUB_OFFICIAL: &str = "library";
const TAG_DEFAULT: &str = "latest";

/// The longest repository in bytes, by the distribution specification's client implementations.
const REPOSITORY_BYTES_MOST: usize = 255;

/// The longest tag in bytes (distribution specification, "Pulling manifests").
const TAG_BYTES_MOST: usize = 128;

/// Digests' algorithms, and how many hexadecimal digits they have (descriptor.md, "Registered Algorithms").
const ALGORITHMS: [(&str, usize); 3] = [("sha256", 64), ("sha384", 96), ("sha512", 128)];

/// Why a text is no reference.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReferenceError {
    /// There is nothing.
    #[error("it is empty")]
    Empty,
    /// The first part looks like a host and is none.
    #[error("{0:?} is not the name of a host with or without a port")]
    Host(String),
    /// A part of the repository is not as it has to be.
    #[error(
        "{0:?} cannot be a part of a repository: lower-case letters and digits, and between them one '.' or '_', \
         \"__\" or any number of '-'"
    )]
    Path(String),
    /// The repository has too many characters.
    #[error("its repository has {0} bytes, more than {REPOSITORY_BYTES_MOST}")]
    Long(usize),
    /// What follows the colon is no tag.
    #[error(
        "{0:?} cannot be a tag: up to {TAG_BYTES_MOST} letters, digits, '_', '.' and '-', of which the last two not first"
    )]
    Tag(String),
    /// What follows the `@` is no digest.
    #[error("{0:?} is not a digest: expected sha256: and 64 hexadecimal digits")]
    Digest(String),
}

/// Where an image is: registry, repository, and which one there.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Reference {
    registry: String,
    repository: String,
    tag: Option<String>,
    digest: Option<String>,
}

impl Reference {
    /// The registry's host, with its port where it has one.
    pub fn registry(&self) -> &str {
        &self.registry
    }

    /// The repository in that registry.
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// The tag; there is a digest where there is none.
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// The digest, of an algorithm that hoist may not verify.
    pub fn digest(&self) -> Option<&str> {
        self.digest.as_deref()
    }

    /// The same repository's manifest of this digest, whatever its tag is.
    pub fn with_digest(&self, digest: BlobDigest) -> Self {
        Self { tag: None, digest: Some(digest.to_string()), ..self.clone() }
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.registry, self.repository)?;
        self.tag.as_ref().map_or(Ok(()), |tag| write!(f, ":{tag}"))?;
        self.digest.as_ref().map_or(Ok(()), |digest| write!(f, "@{digest}"))
    }
}

impl FromStr for Reference {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Self, ReferenceError> {
        if text.is_empty() {
            return Err(ReferenceError::Empty);
        }
        let (text, digest) = match text.split_once('@') {
            Some((text, digest)) => (text, Some(digest)),
            None => (text, None),
        };
        // A colon before the last slash is a port's.
        let last = text.rfind('/').map_or(0, |slash| slash + 1);
        let (name, tag) = match text[last..].find(':').map(|colon| last + colon) {
            Some(colon) => (&text[..colon], Some(&text[colon + 1..])),
            None => (text, None),
        };
        let (registry, repository) = places(name)?;
        if let Some(tag) = tag.filter(|tag| !is_tag(tag)) {
            return Err(ReferenceError::Tag(tag.to_owned()));
        }
        if let Some(digest) = digest.filter(|digest| !is_digest(digest)) {
            return Err(ReferenceError::Digest(digest.to_owned()));
        }
        let tag = tag.or(digest.is_none().then_some(TAG_DEFAULT)).map(str::to_owned);
        Ok(Self { registry, repository, tag, digest: digest.map(str::to_owned) })
    }
}

/// The registry and the repository of a name.
fn places(name: &str) -> Result<(String, String), ReferenceError> {
    let (host, path) = match name.split_once('/') {
        Some((first, rest)) if looks_like_host(first) => (first, rest),
        _ => (HUB, name),
    };
    if !is_host(host) {
        return Err(ReferenceError::Host(host.to_owned()));
    }
    if let Some(part) = path.split('/').find(|part| !is_part(part)) {
        return Err(ReferenceError::Path(part.to_owned()));
    }
    let host = if host == HUB_FORMERLY { HUB } else { host };
    let path = match path.contains('/') || host != HUB {
        true => path.to_owned(),
        false => format!("{HUB_OFFICIAL}/{path}"),
    };
    match path.len() {
        ..=REPOSITORY_BYTES_MOST => Ok((host.to_owned(), path)),
        length => Err(ReferenceError::Long(length)),
    }
}

fn looks_like_host(first: &str) -> bool {
    first == "localhost" || first.contains(|c: char| matches!(c, '.' | ':') || c.is_uppercase())
}

/// `NAME[.NAME…][:PORT]`.
fn is_host(text: &str) -> bool {
    let (name, port) = text.split_once(':').map_or((text, None), |(name, port)| (name, Some(port)));
    let is_label = |label: &str| {
        let edge = |byte: Option<&u8>| byte.is_some_and(u8::is_ascii_alphanumeric);
        let bytes = label.as_bytes();
        edge(bytes.first())
            && edge(bytes.last())
            && bytes.iter().all(|&byte| byte.is_ascii_alphanumeric() || byte == b'-')
    };
    let is_port = |port: &str| !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit());
    name.split('.').all(is_label) && port.is_none_or(is_port)
}

/// Letters and digits with separators between them.
fn is_part(part: &str) -> bool {
    let is_letter = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    let is_separator =
        |text: &str| matches!(text, "" | "." | "_" | "__") || text.bytes().all(|byte| byte == b'-');
    part.starts_with(is_letter)
        && part.ends_with(is_letter)
        && part.split(is_letter).all(is_separator)
}

fn is_tag(tag: &str) -> bool {
    let is_word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    (1..=TAG_BYTES_MOST).contains(&tag.len())
        && tag.bytes().all(|byte| is_word(byte) || matches!(byte, b'.' | b'-'))
        && tag.bytes().next().is_some_and(is_word)
}

fn is_digest(digest: &str) -> bool {
    digest.split_once(':').is_some_and(|(algorithm, hex)| {
        ALGORITHMS.contains(&(algorithm, hex.len()))
            && hex.bytes().all(|byte| byte.is_ascii_hexdigit())
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const DIGEST: &str = "sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";

    #[test]
    fn what_is_left_out_is_filled_in() {
        for (text, whole) in [
            ("busybox", "docker.io/library/busybox:latest"),
            ("some.thing:5000", "docker.io/library/some.thing:5000"),
            ("team/app:v1", "docker.io/team/app:v1"),
            ("index.docker.io/app", "docker.io/library/app:latest"),
            ("localhost/app", "localhost/app:latest"),
            ("localhost:5000/app:V_1.0-x", "localhost:5000/app:V_1.0-x"),
            ("Registry/app", "Registry/app:latest"),
            ("r.example/a/b__c/d--e.f", "r.example/a/b__c/d--e.f:latest"),
        ] {
            assert_eq!(text.parse::<Reference>().unwrap().to_string(), whole);
        }
        let both: Reference = format!("r.example:1/app:v1@{DIGEST}").parse().unwrap();
        assert_eq!((both.registry(), both.repository()), ("r.example:1", "app"));
        assert_eq!((both.tag(), both.digest()), (Some("v1"), Some(DIGEST)));
        let pinned: Reference = format!("app@{DIGEST}").parse().unwrap();
        assert_eq!((pinned.tag(), pinned.digest()), (None, Some(DIGEST)));
        assert_eq!(
            pinned,
            both.repository().parse::<Reference>().unwrap().with_digest(DIGEST.parse().unwrap())
        );
    }

    #[test]
    fn what_is_no_reference_says_which_part_is_not() {
        use ReferenceError::{Digest, Empty, Host, Long, Path, Tag};
        let long = "a".repeat(256);
        for (text, error) in [
            ("", Empty),
            ("a..b/c", Host("a..b".into())),
            ("r.example:port/c", Host("r.example:port".into())),
            ("a/B", Path("B".into())),
            ("a/", Path(String::new())),
            ("a___b", Path("a___b".into())),
            ("-a", Path("-a".into())),
            ("a:", Tag(String::new())),
            ("a:.b", Tag(".b".into())),
            ("a:b:c", Tag("b:c".into())),
            ("a@sha256:00", Digest("sha256:00".into())),
            (&format!("r.example/{long}"), Long(256)),
            (&format!("a:{long}"), Tag(long.clone())),
        ] {
            assert_eq!(text.parse::<Reference>(), Err(error), "{text}");
        }
    }

    /// Texts that are often references, and nearly ones.
    fn texts() -> impl Strategy<Value = String> {
        let piece = prop::sample::select(vec![
            "a",
            "b1",
            "A",
            ".",
            "_",
            "__",
            "-",
            "--",
            "/",
            "/",
            ":",
            "@",
            "5000",
            "localhost",
            "r.example",
            "docker.io",
            "index.docker.io",
            DIGEST,
            "sha512:00",
            " ",
            "é",
        ]);
        prop::collection::vec(piece, 0..9).prop_map(|pieces| pieces.concat())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4096))]

        /// The same as another reader of the same grammar, but for two things in which that one is not as containerd: it takes a
        /// name in capitals for a repository, and a host with a `_` for one.
        #[test]
        fn another_reader_reads_the_same(text in texts()) {
            let other = text.parse::<oci_spec::distribution::Reference>();
            let first = text.split('/').next().unwrap_or_default();
            let differs = text.contains('/') && looks_like_host(first)
                && (first.contains('_') || !first.contains(['.', ':']) && first != "localhost");
            // Go's \w is ASCII; that reader's is Unicode.
            if differs || !text.is_ascii() {
                return Ok(());
            }
            let ours = text.parse::<Reference>();
            prop_assert_eq!(ours.as_ref().ok().map(ToString::to_string), other.ok().map(|other| other.to_string()));
        }

        #[test]
        fn what_was_read_reads_the_same_again(text in texts()) {
            if let Ok(reference) = text.parse::<Reference>() {
                prop_assert_eq!(reference.to_string().parse::<Reference>(), Ok(reference));
            }
        }
    }
}
