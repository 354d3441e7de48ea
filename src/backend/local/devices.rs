//! The devices that the engine computes on: one, or several that take their jobs from one queue.

use std::fmt;

use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{Error as _, SeqAccess, Visitor, value::SeqAccessDeserializer},
};

use super::engine::Device;

/// In configuration a name, `"cuda:0"`, or a list of names, `["cuda:0", "cuda:1"]`. The same device may stand in it twice:
/// then two jobs are computed on it at a time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Devices(Vec<Device>);

// === impl Devices ===

impl Devices {
    /// The most that can be asked for: more is no configuration but a slip.
    pub const MAX: usize = 64;

    /// These, in this order. A configuration with none or too many is refused.
    pub fn new(devices: impl Into<Vec<Device>>) -> Self {
        Self(devices.into())
    }

    /// All of them.
    pub fn all(&self) -> &[Device] {
        &self.0
    }

    /// The first of them.
    pub fn first(&self) -> Device {
        self.0.first().copied().unwrap_or(Device::Cpu)
    }

    /// Threads for each of them, if there are `threads` in all: at least one.
    pub(super) fn share(&self, threads: usize) -> usize {
        if self.0.len() < 2 {
            return threads;
        }
        let all = if threads == 0 { std::thread::available_parallelism().map_or(1, usize::from) } else { threads };
        (all / self.0.len()).max(1)
    }
}

impl fmt::Display for Devices {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, device) in self.0.iter().enumerate() {
            write!(f, "{}{device}", if index == 0 { "" } else { ", " })?;
        }
        Ok(())
    }
}

impl Serialize for Devices {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match &self.0[..] {
            [one] => one.serialize(serializer),
            several => several.serialize(serializer),
        }
    }
}

impl<'de> Deserialize<'de> for Devices {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct OneOrSeveral;

        impl<'de> Visitor<'de> for OneOrSeveral {
            type Value = Devices;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a device such as \"cpu\" or \"cuda:0\", or a list of them")
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Devices, E> {
                Ok(Devices(vec![text.parse().map_err(E::custom)?]))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, seq: A) -> Result<Devices, A::Error> {
                Vec::deserialize(SeqAccessDeserializer::new(seq)).map(Devices).map_err(A::Error::custom)
            }
        }

        deserializer.deserialize_any(OneOrSeveral)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_is_a_name_and_several_are_a_list() {
        #[derive(Debug, PartialEq, Serialize, Deserialize)]
        struct Table {
            device: Devices,
        }
        let table = |devices: &[Device]| Table { device: Devices::new(devices) };
        for (text, devices) in [
            ("device = \"cpu\"\n", vec![Device::Cpu]),
            ("device = [\"cuda:0\", \"cuda:1\"]\n", vec![Device::Cuda(0), Device::Cuda(1)]),
            ("device = []\n", vec![]),
        ] {
            assert_eq!(toml::from_str::<Table>(text).unwrap(), table(&devices));
            assert_eq!(toml::to_string(&table(&devices)).unwrap(), text);
        }
        assert_eq!(toml::from_str::<Table>("device = [\"cuda\"]").unwrap(), table(&[Device::Cuda(0)]));
        for text in ["device = \"gpu\"", "device = [\"cpu\", \"gpu\"]", "device = 1"] {
            let error = toml::from_str::<Table>(text).unwrap_err().to_string();
            assert!(error.contains("is no device") || error.contains("a list of them"), "{error}");
        }
        assert_eq!(Devices::new([Device::Cpu, Device::Cuda(1)]).to_string(), "cpu, cuda:1");
    }

    #[test]
    fn threads_are_divided_among_them() {
        let devices = |n: usize| Devices::new(vec![Device::Cpu; n]);
        assert_eq!((devices(1).share(0), devices(1).share(5)), (0, 5));
        assert_eq!((devices(2).share(5), devices(3).share(2)), (2, 1));
        assert!(devices(2).share(0) >= 1);
    }
}
