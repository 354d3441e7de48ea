//! The requests: who asks for what, in which order, and how large it is.

use std::ops::Range;

use fastrand::Rng;
use latentgate::key::ContentKey;

/// Artifacts that are asked for again.
const POPULAR: u32 = 100_000;

/// Requests for them.
const REQUESTS: usize = 2_000_000;

/// Zipf's exponent: the artifact of rank r is asked for as r^-0.9.
const EXPONENT: f64 = 0.9;

const SEED: u64 = 20_231_023;

/// What an artifact takes, in KiB, each as likely as another: latents of 512x512; uint8 pixels of 128x128 and 256x256;
/// a PNG, uint8 pixels and f16 numbers of 512x512.
const SIZES_KIB: [u64; 6] = [64, 48, 192, 400, 768, 1536];

/// Requests in their order.
pub(crate) struct Trace {
    /// Numbers of artifacts.
    pub(crate) requests: Vec<u32>,
    /// Those that nobody repeats.
    pub(crate) scan: Range<usize>,
    /// The popular ones, then the scan's.
    artifacts: Vec<Artifact>,
}

/// What can be cached.
#[derive(Clone, Copy)]
pub(crate) struct Artifact {
    pub(crate) key: ContentKey,
    pub(crate) bytes: u64,
}

// === impl Trace ===

impl Trace {
    /// The trace, with a scan of `scan_bytes` or a little more in its middle.
    pub(crate) fn new(scan_bytes: u64) -> Self {
        let mut artifacts: Vec<_> = (0..POPULAR).map(Artifact::nth).collect();
        let scanned = scan(scan_bytes);
        artifacts.extend(scanned.clone().map(Artifact::nth));
        let mut requests = popular_requests();
        let scan = REQUESTS / 2..REQUESTS / 2 + scanned.len();
        requests.splice(scan.start..scan.start, scanned);
        Self { requests, scan, artifacts }
    }

    /// Bytes of all artifacts that are asked for again.
    pub(crate) fn popular_bytes() -> u64 {
        (0..POPULAR).map(bytes).sum()
    }

    /// Artifacts that may be asked for.
    pub(crate) fn artifacts(&self) -> usize {
        self.artifacts.len()
    }

    /// What is asked for by a request.
    pub(crate) fn artifact(&self, at: usize) -> Artifact {
        self.artifacts[self.requests[at] as usize]
    }

    /// Bytes of the artifact of a number.
    pub(crate) fn bytes_of(&self, number: u32) -> u64 {
        self.artifacts[number as usize].bytes
    }

    /// In a few words.
    pub(crate) fn describe(&self) -> String {
        format!("{} requests, {} of them the scan", self.requests.len(), self.scan.len())
    }
}

/// Numbers after the popular ones, as many as bring `least` bytes.
fn scan(least: u64) -> Range<u32> {
    let (mut end, mut sum) = (POPULAR, 0);
    while sum < least {
        sum += bytes(end);
        end += 1;
    }
    POPULAR..end
}

fn popular_requests() -> Vec<u32> {
    let mut sums = Vec::with_capacity(POPULAR as usize);
    let mut sum = 0.0;
    for rank in 1..=POPULAR {
        sum += f64::from(rank).powf(-EXPONENT);
        sums.push(sum);
    }
    let mut rng = Rng::with_seed(SEED);
    let mut draw = || {
        let point = rng.f64() * sum;
        sums.partition_point(|&below| below <= point).min(sums.len() - 1) as u32
    };
    (0..REQUESTS).map(|_| draw()).collect()
}

fn bytes(number: u32) -> u64 {
    let mut rng = Rng::with_seed(SEED ^ u64::from(number) << 32);
    SIZES_KIB[rng.usize(..SIZES_KIB.len())] << 10
}

// === impl Artifact ===

impl Artifact {
    /// The artifact of a number, the same in every run.
    fn nth(number: u32) -> Self {
        Self { key: key(number), bytes: bytes(number) }
    }
}

/// A key like any: a digest.
pub(crate) fn key(number: u32) -> ContentKey {
    ContentKey::from_bytes(*blake3::hash(&number.to_le_bytes()).as_bytes())
}
