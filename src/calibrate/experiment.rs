//! What a registry can conclude from how others pulled from it.
//!
//! A registry sees requests: which layers were asked for at once, and how fast their bytes went. It does not
//! see extraction; it sees when a pull's last byte went, and is told when the pull had ended. In between lies
//! what was still to be extracted. containerd extracts one layer after the other, in the order of the stack,
//! each when it has arrived, so with d the times at which layers have arrived and s their sizes
//!
//! ```text
//! f[k] = max(f[k-1], d[k]) + s[k] / E          f[n] + c = the time at which the pull had ended
//! ```
//!
//! One pull gives E if c, what a puller does besides, is nothing. Pulls of images of other sizes give both: of
//! a small one c is most, of a large one E. Variants of one image differ less, since all of it has to be
//! extracted in each; where c = 0 explains them, it stays at that.

use std::collections::{BTreeMap, BTreeSet};

use super::link::{Limit, Link, Point, link};
use super::median;
use crate::image::BlobDigest;
use crate::model::{Model, Profile, Rates};
use crate::units::{Rate, Seconds};

/// Seconds of which the bytes are counted together: short beside a layer, long beside a piece of one.
pub const BUCKET_SECONDS: f64 = 0.05;

/// So many buckets have to be alike before they say anything.
const BUCKETS_LEAST: usize = 4;

/// Buckets after a request has begun or ended that are left out: connections begin slowly.
const SETTLING: usize = 2;

/// A layer of a served image.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ServedLayer {
    /// Its blob.
    pub digest: BlobDigest,
    /// The blob's bytes.
    pub size: u64,
}

/// One request for a layer. Times are seconds since the registry began.
#[derive(Clone, PartialEq, Debug)]
pub struct Transfer {
    /// The blob.
    pub digest: BlobDigest,
    /// When it was asked for.
    pub begin: f64,
    /// When its last byte was taken, or nobody wanted more.
    pub end: f64,
    /// Bytes that were taken.
    pub sent: u64,
    /// The bucket that `buckets` begins with, counted from when the registry began.
    pub first: usize,
    /// Bytes in each interval of [`BUCKET_SECONDS`].
    pub buckets: Vec<u64>,
}

/// One pull of one image by one host.
#[derive(Clone, PartialEq, Debug)]
pub struct ServedPull {
    /// The image's name here.
    pub name: String,
    /// Who pulled.
    pub peer: String,
    /// The image's layers, the lowest first.
    pub layers: Vec<ServedLayer>,
    /// When it asked for the manifest.
    pub begin: f64,
    /// Its requests for layers, in the order in which they were made.
    pub transfers: Vec<Transfer>,
    /// When somebody said that it had ended.
    pub ended: Option<f64>,
}

impl ServedPull {
    /// When each layer had arrived, in the order of the stack; `None` unless all were taken whole.
    fn arrivals(&self) -> Option<Vec<(f64, f64)>> {
        #[allow(clippy::cast_precision_loss, reason = "sizes of layers are below 2^53")]
        let arrival = |layer: &ServedLayer| {
            let own = || self.transfers.iter().filter(|t| t.digest == layer.digest);
            let taken: u64 = own().map(|transfer| transfer.sent).sum();
            let end = own().map(|transfer| transfer.end).reduce(f64::max)?;
            (taken >= layer.size).then_some((end, layer.size as f64))
        };
        self.layers.iter().map(arrival).collect()
    }

    /// Seconds from the first question to the first byte of a layer.
    fn latency(&self) -> Option<f64> {
        let first = self.transfers.iter().map(|transfer| transfer.begin).reduce(f64::min)?;
        Some((first - self.begin).max(0.0))
    }

    /// Different layers that were on their way at once, at most. What two requests overlap by less than two
    /// buckets is the end of one and the beginning of another.
    fn at_once(&self) -> usize {
        let begins = self.transfers.iter().map(|transfer| transfer.begin + 2.0 * BUCKET_SECONDS);
        let at = |now: f64| {
            let there = self.transfers.iter().filter(|t| t.begin < now && now < t.end);
            there.map(|transfer| transfer.digest).collect::<BTreeSet<_>>().len()
        };
        begins.map(at).max().unwrap_or(0)
    }

    /// Whether a layer was asked for only when another had arrived.
    fn had_to_wait(&self) -> bool {
        let first_end =
            self.transfers.iter().map(|transfer| transfer.end).fold(f64::INFINITY, f64::min);
        self.transfers.iter().any(|transfer| transfer.begin >= first_end)
    }
}

/// What pulls have shown.
#[derive(Clone, PartialEq, Debug)]
pub struct Findings {
    /// The link.
    pub link: Link,
    /// For each number of requests at once that was seen long enough: bytes a second, all together.
    pub by_requests: Vec<(usize, f64)>,
    /// Layers that were fetched at once, at most.
    pub at_once: usize,
    /// Whether others had to wait meanwhile, so that it was a limit and not all there was.
    pub others_waited: bool,
    /// Seconds before the first layer was asked for: the median.
    pub latency: f64,
    /// What the rate of extraction is, where pulls have told that they had ended.
    pub extraction: Option<Extraction>,
}

/// How fast layers were extracted.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Extraction {
    /// Compressed bytes a second.
    pub rate: f64,
    /// Seconds that pulls took besides; 0 where there were no variants to tell it by.
    pub besides: f64,
    /// The largest part by which a pull's end was missed, of that pull's time.
    pub error: f64,
    /// Pulls that it follows from.
    pub pulls: usize,
}

/// What follows from these pulls; `None` where no layer was fetched for long enough to say anything.
pub fn conclude(pulls: &[ServedPull]) -> Option<Findings> {
    let by_requests = by_requests(pulls);
    #[allow(clippy::cast_precision_loss, reason = "a handful of requests")]
    let points: Vec<Point> = by_requests
        .iter()
        .map(|&(count, rate)| Point { connections: count as f64, rate })
        .collect();
    Some(Findings {
        link: link(&points)?,
        by_requests,
        at_once: pulls.iter().map(ServedPull::at_once).max().unwrap_or(0).max(1),
        others_waited: pulls.iter().any(ServedPull::had_to_wait),
        latency: median(pulls.iter().filter_map(ServedPull::latency).collect()).unwrap_or(0.0),
        extraction: extraction(pulls),
    })
}

/// For each number of requests at once, the median of what went in a bucket.
fn by_requests(pulls: &[ServedPull]) -> Vec<(usize, f64)> {
    let transfers = || pulls.iter().flat_map(|pull| &pull.transfers);
    // What happens in a bucket: bytes, requests that go on through all of it, and whether one changed.
    let mut buckets: BTreeMap<usize, (u64, usize, bool)> = BTreeMap::new();
    for transfer in transfers() {
        let last = transfer.buckets.len().saturating_sub(1);
        for (index, bytes) in transfer.buckets.iter().enumerate() {
            let bucket = buckets.entry(transfer.first + index).or_default();
            bucket.0 += bytes;
            bucket.1 += 1;
            bucket.2 |= index <= SETTLING || index == last;
        }
        for settling in 0..SETTLING {
            buckets.entry(transfer.first + last + 1 + settling).or_default().2 = true;
        }
    }
    let mut rates: BTreeMap<usize, Vec<f64>> = BTreeMap::new();
    for (bytes, count, _) in
        buckets.into_values().filter(|(_, count, changed)| *count > 0 && !changed)
    {
        #[allow(clippy::cast_precision_loss, reason = "bytes of a moment")]
        rates.entry(count).or_default().push(bytes as f64 / BUCKET_SECONDS);
    }
    let enough = rates.into_iter().filter(|(_, rates)| rates.len() >= BUCKETS_LEAST);
    enough.filter_map(|(count, rates)| Some((count, median(rates)?))).collect()
}

/// A pull as far as extraction is concerned: arrivals and sizes in the order of the stack, begin and end.
struct Told {
    layers: Vec<(f64, f64)>,
    begin: f64,
    ended: f64,
}

impl Told {
    /// When the last layer would be extracted.
    fn finish(&self, rate: f64) -> f64 {
        self.layers
            .iter()
            .fold(0.0, |before: f64, (arrived, size)| before.max(*arrived) + size / rate)
    }
}

/// Rates between which it is looked for, in bytes a second.
const RATE_LEAST: f64 = 1e5;
const RATE_MOST: f64 = 1e11;

/// Rates that are tried, evenly by their logarithms: each is 3.5 % above the one before.
const TRIED: u32 = 400;

/// Pulls whose ends are missed by no more than this part of their time are explained.
const EXPLAINED: f64 = 0.05;

/// Steps that narrow it down between the neighbours of the best; each takes a third off.
const STEPS: usize = 30;

fn extraction(pulls: &[ServedPull]) -> Option<Extraction> {
    let told: Vec<Told> = pulls
        .iter()
        .filter_map(|pull| {
            let (layers, ended) = (pull.arrivals()?, pull.ended?);
            Some(Told { layers, begin: pull.begin, ended })
        })
        .filter(|told| !told.layers.is_empty())
        .collect();
    let shapes: BTreeSet<Vec<u64>> = told
        .iter()
        .map(|told| told.layers.iter().map(|(_, size)| size.to_bits()).collect())
        .collect();
    let alone = fitted(&told, |_| 0.0)?;
    // Where everything is explained without, or nothing could tell, nothing besides is assumed.
    if shapes.len() < 2 || alone.error <= EXPLAINED {
        return Some(alone);
    }
    #[allow(clippy::cast_precision_loss, reason = "a handful of pulls")]
    let count = told.len() as f64;
    let late = |rate: f64| told.iter().map(|told| told.ended - told.finish(rate)).sum::<f64>();
    fitted(&told, |rate| (late(rate) / count).max(0.0)).or(Some(alone))
}

/// The rate with which the ends are missed by least, if what a pull takes besides follows from the rate.
fn fitted(told: &[Told], besides: impl Fn(f64) -> f64) -> Option<Extraction> {
    let missed = |rate: f64| {
        let besides = besides(rate);
        told.iter().map(|told| (told.ended - told.finish(rate) - besides).powi(2)).sum::<f64>()
    };
    let (low, high) = (RATE_LEAST.ln(), RATE_MOST.ln());
    let width = (high - low) / f64::from(TRIED);
    let tried = (0..=TRIED).map(|step| low + width * f64::from(step));
    let best = tried.min_by(|a, b| missed(a.exp()).total_cmp(&missed(b.exp())))?;
    let (mut low, mut high) = (best - width, best + width);
    for _ in 0..STEPS {
        let third = (high - low) / 3.0;
        if missed((low + third).exp()) <= missed((high - third).exp()) {
            high -= third;
        } else {
            low += third;
        }
    }
    let rate = f64::midpoint(low, high).exp();
    let besides = besides(rate);
    let error = told.iter().map(|told| {
        (told.finish(rate) + besides - told.ended).abs() / (told.ended - told.begin).max(1e-9)
    });
    // At the end of the range nothing was to be extracted after the last byte, or nothing ever would be.
    let inside = rate > RATE_LEAST * 1.1 && rate < RATE_MOST / 1.1;
    inside.then(|| Extraction {
        rate,
        besides,
        error: error.fold(0.0, f64::max),
        pulls: told.len(),
    })
}

impl Findings {
    /// The profile, with what is not known from the one that is given.
    pub fn profile(&self, name: &str, otherwise: &Profile, model: Model) -> Profile {
        let known = otherwise.rates_for(model);
        let extract = self.extraction.map_or(known.extract, |found| Rate::measured(found.rate));
        let rates = Rates {
            download: Rate::measured(self.link.download),
            per_connection: self.link.per_connection.map(Rate::measured),
            downloads: self.others_waited.then(|| u32::try_from(self.at_once).ok()).flatten(),
            extract,
            per_core: self.extraction.is_none().then_some(known.per_core).flatten(),
            per_file: self.extraction.map_or(known.per_file, |_| Seconds(0.0)),
            latency: Seconds((self.latency * 1e3).round() / 1e3),
            ..Rates::default()
        };
        Profile { name: name.to_owned(), rates, models: BTreeMap::new() }
    }

    /// The limit of the link in words.
    pub fn limit(&self) -> &'static str {
        match self.link.limit {
            Limit::Link => "the link was full",
            Limit::Connections => "each request was held back; the link may be faster",
            Limit::Unknown => {
                "always the same number of requests, so a limit of each cannot be told"
            }
        }
    }
}

#[cfg(test)]
mod tests;
