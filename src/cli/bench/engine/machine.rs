//! What the numbers were measured on.

use std::{fs, thread};

/// What of a processor's features the kernels, here or elsewhere, make use of; as Linux calls them.
const FEATURES: [&str; 17] = [
    "sse4_2",
    "avx",
    "f16c",
    "fma",
    "avx2",
    "avx_vnni",
    "avx512f",
    "avx512bw",
    "avx512vl",
    "avx512_vnni",
    "avx512_bf16",
    "avx512_fp16",
    "amx_bf16",
    "asimd",
    "asimdhp",
    "bf16",
    "sve",
];

/// A processor, and how much of it was used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Machine {
    /// Its name, or that of its architecture.
    pub(super) processor: String,
    /// What it can do, of what matters here; empty where the system does not tell.
    pub(super) features: Vec<&'static str>,
    /// Processors that this process may use.
    pub(super) processors: usize,
    /// Threads that compute.
    pub(super) threads: usize,
}

impl Machine {
    pub(super) fn read(threads: usize) -> Self {
        Self::parse(&fs::read_to_string("/proc/cpuinfo").unwrap_or_default(), threads)
    }

    fn parse(cpuinfo: &str, threads: usize) -> Self {
        let value = |keys: [&str; 2]| {
            let pairs = cpuinfo.lines().filter_map(|line| line.split_once(':'));
            pairs.map(|(key, value)| (key.trim(), value.trim())).find(|(key, _)| keys.contains(key))
        };
        let processor = value(["model name", "cpu model"]).map_or(std::env::consts::ARCH, |(_, name)| name);
        let flags: Vec<_> = value(["flags", "Features"]).map_or("", |(_, flags)| flags).split(' ').collect();
        Self {
            processor: processor.to_owned(),
            features: FEATURES.into_iter().filter(|feature| flags.contains(feature)).collect(),
            processors: thread::available_parallelism().map_or(1, usize::from),
            threads,
        }
    }

    /// One line.
    pub(super) fn told(&self) -> String {
        let features = if self.features.is_empty() { "features unknown".to_owned() } else { self.features.join(" ") };
        let Self { processor, processors, threads, .. } = self;
        format!("{threads} threads on {processors} processors, {processor}: {features}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_processor_is_read_as_linux_writes_it() {
        let text =
            "processor\t: 0\nmodel name\t: AMD EPYC 9V74\nflags\t\t: fpu avx fma avx2 avx512f\n\nprocessor\t: 1\n";
        let machine = Machine::parse(text, 2);
        assert_eq!((machine.processor.as_str(), machine.threads), ("AMD EPYC 9V74", 2));
        assert_eq!(machine.features, ["avx", "fma", "avx2", "avx512f"]);
        let arm = Machine::parse("processor\t: 0\nFeatures\t: fp asimd asimdhp\n", 1);
        assert_eq!((arm.processor.as_str(), arm.features), (std::env::consts::ARCH, vec!["asimd", "asimdhp"]));
        assert!(Machine::parse("", 1).told().contains("unknown"));
    }
}
