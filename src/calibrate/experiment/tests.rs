//! A puller of known figures, and what is concluded from it.

use proptest::prelude::*;

use super::*;
use crate::image::Sha256;

/// A link, and a puller as containerd: so many layers at once, extracted one after the other, in order.
#[derive(Clone, Copy, Debug)]
struct Puller {
    download: f64,
    per_connection: f64,
    at_once: usize,
    extract: f64,
    besides: f64,
}

const STEP: f64 = 0.005;

impl Puller {
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss)]
    fn pull(&self, name: &str, begin: f64, sizes: &[u64]) -> ServedPull {
        let digest = |size: &u64| BlobDigest(Sha256::of(&size.to_le_bytes()));
        let layers: Vec<_> =
            sizes.iter().map(|size| ServedLayer { digest: digest(size), size: *size }).collect();
        let mut left: Vec<f64> = sizes.iter().map(|&size| size as f64).collect();
        let mut transfers: Vec<Option<Transfer>> = vec![None; sizes.len()];
        let mut now = begin + 0.1;
        while left.iter().any(|left| *left > 0.0) {
            let going: Vec<usize> =
                (0..sizes.len()).filter(|&at| left[at] > 0.0).take(self.at_once).collect();
            let rate = self.per_connection.min(self.download / going.len() as f64);
            let bucket = (now / BUCKET_SECONDS) as usize;
            for at in going {
                let transfer = transfers[at].get_or_insert_with(|| Transfer {
                    digest: layers[at].digest,
                    begin: now,
                    end: now,
                    sent: 0,
                    first: bucket,
                    buckets: Vec::new(),
                });
                let bytes = (rate * STEP).min(left[at]);
                left[at] -= bytes;
                transfer.buckets.resize(bucket - transfer.first + 1, 0);
                *transfer.buckets.last_mut().unwrap() += bytes as u64;
                transfer.end = now + STEP;
                transfer.sent = if left[at] > 0.0 { 0 } else { sizes[at] };
            }
            now += STEP;
        }
        let transfers: Vec<Transfer> = transfers.into_iter().flatten().collect();
        let arrivals = transfers.iter().zip(sizes).map(|(t, &size)| (t.end, size as f64));
        let extracted = arrivals.fold(0.0, |f: f64, (end, size)| f.max(end) + size / self.extract);
        let ended = Some(extracted + self.besides);
        let peer = "host".to_owned();
        ServedPull { name: name.to_owned(), peer, layers, begin, transfers, ended }
    }
}

fn near(found: f64, known: f64, part: f64) -> bool {
    (found / known - 1.0).abs() <= part
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, ..ProptestConfig::default() })]

    #[test]
    fn what_is_concluded_is_what_was(
        download in 40e6..400e6_f64,
        share in 0.4..0.7_f64,
        at_once in 2..5_usize,
        extract in 20e6..300e6_f64,
        besides in 0.2..3.0_f64,
    ) {
        let puller = Puller { download, per_connection: download * share, at_once, extract, besides };
        // Layers of a second and more on a full link.
        let size = |seconds: f64| (seconds * download) as u64;
        let many: Vec<u64> = (0..6).map(|n| size(1.0 + 0.2 * f64::from(n))).collect();
        let pulls = [
            puller.pull("app:many", 0.0, &many),
            puller.pull("app:one", 100.0, &[size(6.0)]),
            puller.pull("small:one", 200.0, &[size(0.5)]),
        ];
        let found = conclude(&pulls).unwrap();
        let together = download.min(download * share * at_once as f64);
        prop_assert!(near(found.link.download, together, 0.03), "{:?}", found);
        prop_assert!(near(found.link.per_connection.unwrap(), download * share, 0.03), "{:?}", found);
        prop_assert_eq!((found.at_once, found.others_waited), (at_once, true));
        prop_assert!((found.latency - 0.1).abs() < 0.01);
        let told = found.extraction.unwrap();
        prop_assert!(told.error <= EXPLAINED && told.pulls == 3, "{:?}", told);
        // Where it is nearly nothing beside the rest, it may have been taken for that.
        if told.besides > 0.0 || besides > 2.0 {
            prop_assert!(near(told.rate, extract, 0.05), "{:?}", told);
            prop_assert!((told.besides - besides).abs() < 0.1 * besides + 0.05, "{:?}", told);
        }
    }
}

fn puller() -> Puller {
    Puller { download: 60e6, per_connection: 1e9, at_once: 3, extract: 50e6, besides: 0.0 }
}

#[test]
fn one_variant_gives_the_rate_if_there_was_nothing_besides() {
    let sizes = [60_000_000, 120_000_001];
    let pulls = [puller().pull("a:b", 0.0, &sizes), puller().pull("a:b", 50.0, &sizes)];
    let found = conclude(&pulls).unwrap();
    assert_eq!((found.link.limit, found.link.per_connection), (Limit::Link, None));
    assert!(near(found.link.download, 60e6, 0.02), "{found:?}");
    let told = found.extraction.unwrap();
    assert!(near(told.rate, 50e6, 0.01) && told.besides.abs() < f64::EPSILON, "{told:?}");
    // Two at once were all that there were.
    assert_eq!((found.at_once, found.others_waited), (2, false));
    let profile =
        found.profile("seen", &Profile::named("two-cores-gzip").unwrap(), Model::Containerd);
    assert_eq!(profile.rates.downloads, None);
    assert!(near(profile.rates.extract.0, 50e6, 0.01) && profile.models.is_empty());
    assert_eq!(Profile::parse(&toml::to_string(&profile).unwrap()), Ok(profile));
}

#[test]
fn what_did_not_come_whole_or_was_not_told_says_nothing_of_extraction() {
    let mut pull = puller().pull("a:b", 0.0, &[60_000_000]);
    pull.transfers[0].sent -= 1;
    let found = conclude(std::slice::from_ref(&pull)).unwrap();
    assert_eq!(found.extraction, None);
    let known = Profile::named("two-cores-gzip").unwrap();
    let profile = found.profile("seen", &known, Model::Containerd);
    assert_eq!(profile.rates.extract, known.rates_for(Model::Containerd).extract);
    pull.transfers[0].sent += 1;
    pull.ended = None;
    assert_eq!(conclude(std::slice::from_ref(&pull)).unwrap().extraction, None);
    // Told before the last byte: there is no rate that would do that.
    pull.ended = Some(0.5);
    assert_eq!(conclude(&[pull]).unwrap().extraction, None);
}

#[test]
fn nothing_is_concluded_from_a_moment() {
    assert_eq!(conclude(&[]), None);
    assert_eq!(conclude(&[puller().pull("a:b", 0.0, &[1_000_000])]), None);
}

/// containerd begins the next layer in the moment in which one ends.
#[test]
fn a_handover_is_not_two_at_once() {
    let mut pull = puller().pull("a:b", 0.0, &[60_000_000, 60_000_001]);
    pull.transfers[1].begin = pull.transfers[0].end - BUCKET_SECONDS;
    assert_eq!(pull.at_once(), 1);
    pull.transfers[1].begin = pull.transfers[0].end - 3.0 * BUCKET_SECONDS;
    assert_eq!(pull.at_once(), 2);
}
