//! What a kubelet passed along with its PullImage: in memory, for that image, for a while.
//!
//! The kubelet knows the pull secrets of a pod and hands them to the container runtime with the
//! request to pull. `hoistd` may stand in between, and what it sees there is kept here for its own
//! requests, which come a moment later. Nothing of it is written anywhere; a restart forgets all.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::{Credential, Place, registry_of};
use crate::image::Reference;

/// Images whose credentials are kept at once; a node's kubelet pulls some tens. The oldest go first.
const IMAGES_MOST: usize = 512;

/// Credentials that one repository may have at once: those of the pods of some namespaces.
const PER_REPOSITORY_MOST: usize = 8;

/// Registry and repository.
type Key = (String, String);

struct Passed {
    image: String,
    credential: Credential,
    expires: Instant,
}

/// Credentials by repository. Clones share them.
#[derive(Clone, Default)]
pub struct Keychain {
    passed: Arc<Mutex<HashMap<Key, VecDeque<Passed>>>>,
}

impl std::fmt::Debug for Keychain {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Keychain").finish_non_exhaustive()
    }
}

impl Keychain {
    fn passed(&self) -> MutexGuard<'_, HashMap<Key, VecDeque<Passed>>> {
        self.passed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps a user's name and password for `image`, for as long as `keep`.
    pub fn pass_password(&self, image: &Reference, user: String, password: String, keep: Duration) {
        self.pass(image, Credential::Password(user, password), keep);
    }

    /// Keeps an identity token for `image`, for as long as `keep`.
    pub fn pass_identity_token(&self, image: &Reference, token: String, keep: Duration) {
        self.pass(image, Credential::IdentityToken(token), keep);
    }

    fn pass(&self, image: &Reference, credential: Credential, keep: Duration) {
        let now = Instant::now();
        let key = (image.registry().to_owned(), image.repository().to_owned());
        let mut passed = self.passed();
        forget_expired(&mut passed, now);
        if !passed.contains_key(&key) && passed.len() >= IMAGES_MOST {
            let last = |held: &VecDeque<Passed>| held.iter().map(|one| one.expires).max();
            let oldest =
                passed.iter().min_by_key(|(_, held)| last(held)).map(|(key, _)| key.clone());
            oldest.map(|key| passed.remove(&key));
        }
        let held = passed.entry(key).or_default();
        held.retain(|one| one.credential != credential);
        // What came last is likeliest to be good.
        held.push_front(Passed { image: image.to_string(), credential, expires: now + keep });
        held.truncate(PER_REPOSITORY_MOST);
    }

    /// For whom credentials are held now, and until when; the latest first. A mirror gets nothing:
    /// they were given for the registry itself.
    pub(super) fn find(&self, place: Place<'_>) -> Vec<(String, Credential, Instant)> {
        if place.stands_for.is_some() {
            return Vec::new();
        }
        let key = (registry_of(place.host).to_owned(), place.repository.to_owned());
        let mut passed = self.passed();
        forget_expired(&mut passed, Instant::now());
        let held = passed.get(&key).into_iter().flatten();
        held.map(|one| (one.image.clone(), one.credential.clone(), one.expires)).collect()
    }
}

fn forget_expired(passed: &mut HashMap<Key, VecDeque<Passed>>, now: Instant) {
    passed.retain(|_, held| {
        held.retain(|one| one.expires > now);
        !held.is_empty()
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    fn users(keychain: &Keychain, host: &str, stands_for: Option<&str>) -> Vec<String> {
        let found = keychain.find(Place { host, stands_for, repository: "library/one" });
        let user = |credential| match credential {
            Credential::Password(user, _) => user,
            Credential::IdentityToken(token) => token,
        };
        found.into_iter().map(|(_, credential, _)| user(credential)).collect()
    }

    #[test]
    fn what_was_passed_is_for_its_repository_and_for_a_while() {
        let (keychain, hour) = (Keychain::default(), Duration::from_secs(3600));
        let image: Reference = "docker.io/library/one:v1".parse().unwrap();
        let pass = |user: &str, keep| {
            keychain.pass_password(&image, user.to_owned(), "p".to_owned(), keep);
        };
        pass("a", hour);
        pass("gone", Duration::ZERO);
        pass("b", hour);
        pass("a", hour);
        keychain.pass_identity_token(&image, "token".to_owned(), hour);
        assert_eq!(users(&keychain, "registry-1.docker.io", None), ["token", "a", "b"]);
        assert!(users(&keychain, "mirror.example", Some("docker.io")).is_empty());
        assert!(users(&keychain, "other.example", None).is_empty());
        let other = Place { host: "docker.io", stands_for: None, repository: "library/two" };
        assert!(keychain.find(other).is_empty());
    }

    #[test]
    fn the_number_of_images_is_bounded() {
        let keychain = Keychain::default();
        for number in 0..=IMAGES_MOST {
            let image = format!("r.example/image-{number}").parse().unwrap();
            let keep = Duration::from_secs(1000 + number as u64);
            keychain.pass_identity_token(&image, "t".to_owned(), keep);
        }
        assert_eq!(keychain.passed().len(), IMAGES_MOST);
        let found = |repository| {
            keychain.find(Place { host: "r.example", stands_for: None, repository }).len()
        };
        assert_eq!((found("image-0"), found("image-1")), (0, 1));
    }
}
