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
}

/// How many different repositories get a label value of their own. A node runs a few dozen images;
/// a build host that pulls thousands must not fill Prometheus.
const REPOSITORIES: usize = 100;

/// The values that the label `image` has taken so far.
#[derive(Debug)]
pub struct ImageNames {
    label: ImageLabel,
    seen: Mutex<HashSet<String>>,
}

impl ImageNames {
    /// No values yet.
    pub fn new(label: ImageLabel) -> Self {
        Self { label, seen: Mutex::default() }
    }

    /// The label value for an image reference.
    pub fn value(&self, image: &str) -> String {
        if self.label == ImageLabel::None {
            return String::new();
        }
        let name = repository(image);
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if !seen.contains(name) {
            if seen.len() >= REPOSITORIES {
                return "other".to_owned();
            }
            seen.insert(name.to_owned());
        }
        name.to_owned()
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
        for i in 0..REPOSITORIES {
            assert_eq!(names.value(&format!("r/i{i}:t")), format!("r/i{i}"));
        }
        assert_eq!(names.value("r/late:t"), "other");
        assert_eq!(names.value("r/i7:other-tag"), "r/i7");
        assert_eq!(ImageNames::new(ImageLabel::None).value("r/i:t"), "");
    }
}
