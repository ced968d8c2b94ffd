//! Label values, of which there must never be many: each is a time series that somebody's
//! Prometheus keeps.

use std::collections::HashSet;
use std::sync::{Mutex, PoisonError};

/// What the label `image` holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ImageLabel {
    /// Nothing.
    None,
    /// The image reference without tag and digest.
    Repository,
    /// The whole image reference: each tag of an image is a value of its own.
    Reference,
}

/// How many different images get a label value of their own. A node runs a few dozen images;
/// a build host that pulls thousands must not fill Prometheus.
const IMAGES: usize = 100;

/// Label values that come from outside: the first so many are told, all later ones are "other".
#[derive(Debug)]
pub(super) struct Bounded {
    most: usize,
    seen: Mutex<HashSet<String>>,
}

impl Bounded {
    /// No values yet, and `most` at most.
    pub(super) fn new(most: usize) -> Self {
        Self { most, seen: Mutex::default() }
    }

    /// The label value for a name.
    pub(super) fn value<'a>(&self, name: &'a str) -> &'a str {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if !seen.contains(name) {
            if seen.len() >= self.most {
                return "other";
            }
            seen.insert(name.to_owned());
        }
        name
    }
}

/// The values that the label `image` has taken so far.
#[derive(Debug)]
pub struct ImageNames {
    label: ImageLabel,
    names: Bounded,
}

impl ImageNames {
    /// No values yet.
    pub fn new(label: ImageLabel) -> Self {
        Self { label, names: Bounded::new(IMAGES) }
    }

    /// The one value there is, where images are not told apart.
    pub(super) fn only(&self) -> Option<&'static str> {
        (self.label == ImageLabel::None).then_some("")
    }

    /// The label value for an image reference.
    pub fn value<'a>(&self, image: &'a str) -> &'a str {
        match self.label {
            ImageLabel::None => "",
            ImageLabel::Repository => self.names.value(repository(image)),
            ImageLabel::Reference => self.names.value(image),
        }
    }
}

/// `host:5000/a/b:tag@sha256:…` without tag and digest.
fn repository(image: &str) -> &str {
    let name = image.split_once('@').map_or(image, |(name, _)| name);
    let tag = name.rfind(':').filter(|&colon| !name[colon..].contains('/'));
    tag.map_or(name, |colon| &name[..colon])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repositories_lose_tag_and_digest_and_are_bounded() {
        assert_eq!(repository("host:5000/a/b:1.2@sha256:00"), "host:5000/a/b");
        assert_eq!(repository("host:5000/a/b"), "host:5000/a/b");
        let names = ImageNames::new(ImageLabel::Repository);
        for i in 0..IMAGES {
            assert_eq!(names.value(&format!("r/i{i}:t")), format!("r/i{i}"));
        }
        assert_eq!(names.value("r/late:t"), "other");
        assert_eq!(names.value("r/i7:other-tag"), "r/i7");
        assert_eq!(ImageNames::new(ImageLabel::None).value("r/i:t"), "");
        let names = ImageNames::new(ImageLabel::Reference);
        assert_eq!(names.value("r/i:t"), "r/i:t");
        for i in 0..IMAGES {
            names.value(&format!("r/i:{i}"));
        }
        assert_eq!(names.value("r/i:one-more"), "other");
    }
}
