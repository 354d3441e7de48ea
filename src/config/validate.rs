//! What serde cannot know. All faults are found before any is reported.

use std::time::Duration;

use super::{Config, ConfigError, Fault};
use crate::{front::cors, logs};

/// More at once is no configuration but a slip.
const MAX_COUNT: usize = 1_000_000;

/// Longer is for ever: leave it out.
const MAX_AGE: Duration = Duration::from_hours(24 * 1000);

/// No request is worth waiting for longer, and clocks can add this without overflow.
pub(super) const MAX_TIME: Duration = Duration::from_hours(24);

/// Whether an artifact may be kept for so long.
pub(super) fn is_age(time: Duration) -> bool {
    !time.is_zero() && time <= MAX_AGE
}

/// What to do about one that may not.
pub(super) const AGE_REMEDY: &str = "must be between 1ns and 1000days";

impl Config {
    /// Judges every value, and values against each other.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let mut faults = Vec::new();
        let mut check = |holds: bool, key: &str, value: String, remedy: &str| {
            if !holds {
                faults.push(Fault { key: key.to_owned(), value, remedy: remedy.to_owned() });
            }
        };
        let (admission, limits, flight) = (&self.admission, &self.limits, &self.flight);
        let at_least_one = "must be at least 1";
        for (key, count) in [
            ("listen.max_connections", self.listen.max_connections),
            ("admission.max_requests", admission.max_requests),
        ] {
            check((1..=MAX_COUNT).contains(&count), key, count.to_string(), "must be between 1 and 1000000");
        }
        if let Some(time) = self.cache.memory.time_to_live {
            let value = humantime::format_duration(time).to_string();
            check(is_age(time), "cache.memory.time_to_live", value, AGE_REMEDY);
        }
        let memory = admission.memory.as_u64();
        check(memory >= 1 << 20, "admission.memory", admission.memory.to_string(), "must be at least 1MiB");
        check(
            limits.max_pixels >= 64,
            "limits.max_pixels",
            limits.max_pixels.to_string(),
            "must be at least 64 (8 x 8)",
        );
        check(limits.max_batch > 0, "limits.max_batch", "0".to_owned(), at_least_one);
        check(limits.max_input.as_u64() > 0, "limits.max_input", "0".to_owned(), "must be at least 1B");
        check(
            limits.max_input.as_u64() <= memory,
            "limits.max_input",
            limits.max_input.to_string(),
            "must fit admission.memory, or no such input is ever admitted: lower it, or raise the other",
        );
        for (key, time) in [
            ("limits.request_time", limits.request_time),
            ("limits.stall_time", limits.stall_time),
            ("flight.time", flight.time),
        ] {
            let value = humantime::format_duration(time).to_string();
            check(!time.is_zero() && time <= MAX_TIME, key, value, "must be longer than 0s and at most 1day");
        }
        if let Err(why) = logs::parse(&self.log.filter) {
            check(false, "log.filter", self.log.filter.clone(), &why.to_string());
        }
        let keep_from = flight.keep_from;
        check((0.0..=1.0).contains(&keep_from), "flight.keep_from", keep_from.to_string(), "must be between 0 and 1");
        self.check_disk(&mut faults);
        self.check_listen(&mut faults);
        self.check_origins(&mut faults);
        self.check_clients(&mut faults);
        #[cfg(feature = "local")]
        self.check_engine(&mut faults);
        self.check_models(&mut faults);
        self.check_routes(&mut faults);
        faults.extend(self.trace.faults());
        if faults.is_empty() { Ok(()) } else { Err(ConfigError::Invalid(faults)) }
    }

    /// The disk tier. Whether its folder can be had shows when it is opened.
    fn check_disk(&self, faults: &mut Vec<Fault>) {
        let disk = &self.cache.disk;
        let mut check = |holds: bool, key: &str, value: String, remedy: &str| {
            if !holds {
                faults.push(Fault { key: format!("cache.{key}"), value, remedy: remedy.to_owned() });
            }
        };
        let namespace = &self.cache.namespace;
        check(namespace.len() <= 256, "namespace", namespace.clone(), "must be at most 256 bytes");
        let capacity = disk.capacity.to_string();
        check(disk.capacity.as_u64() >= 1 << 20, "disk.capacity", capacity, "must be at least 1MiB");
        let queue = disk.queue.to_string();
        check(disk.queue.as_u64() >= 1 << 20, "disk.queue", queue, "must be at least 1MiB, or little is ever written");
        for (key, time) in [("disk.read_time", disk.read_time), ("disk.rest_time", disk.rest_time)] {
            let value = humantime::format_duration(time).to_string();
            check(!time.is_zero() && time <= MAX_TIME, key, value, "must be longer than 0s and at most 1day");
        }
    }

    /// What is in the file shows when it is read.
    fn check_clients(&self, faults: &mut Vec<Fault>) {
        if self.reload.every > MAX_TIME {
            let value = humantime::format_duration(self.reload.every).to_string();
            faults.push(Fault { key: "reload.every".to_owned(), value, remedy: "must be at most 1day".to_owned() });
        }
        let clients = &self.clients;
        if let Some(path) = clients.file.as_ref().filter(|path| !path.exists()) {
            let remedy = "no such file: name a TOML file (docs/OPERATIONS.md, *Clients*)".to_owned();
            faults.push(Fault { key: "clients.file".to_owned(), value: path.display().to_string(), remedy });
        }
        for (table, limits) in [("limits", &clients.limits), ("per_address", &clients.per_address)] {
            faults.extend(limits.faults().map(|(key, value, remedy)| {
                let (key, remedy) = (format!("clients.{table}.{key}"), remedy.to_owned());
                Fault { key, value, remedy }
            }));
        }
    }

    fn check_origins(&self, faults: &mut Vec<Fault>) {
        let mut fault = |key: &str, value: String, remedy: &str| {
            faults.push(Fault { key: key.to_owned(), value, remedy: remedy.to_owned() });
        };
        let origins = &self.cors.origins;
        if origins.len() > 1 && origins.iter().any(|origin| origin == cors::ANY) {
            fault("cors.origins", format!("{origins:?}"), "\"*\" stands alone: leave the others out, or it");
        }
        for origin in origins.iter().filter(|origin| *origin != cors::ANY && !cors::is_origin(origin)) {
            let remedy = "wanted an origin as browsers send it, such as https://studio.example or http://localhost:5173: \
                          lower case, no path, no final slash, no default port; or \"*\"";
            fault("cors.origins", origin.clone(), remedy);
        }
    }

    #[cfg(feature = "local")]
    fn check_engine(&self, faults: &mut Vec<Fault>) {
        use crate::backend::local::{Config, devices::Devices, engine::Device, threads::Threads};
        let engine = &self.engine;
        let mut check = |holds: bool, key: &str, value: String, remedy: &str| {
            if !holds {
                faults.push(Fault { key: key.to_owned(), value, remedy: remedy.to_owned() });
            }
        };
        check(
            engine.threads <= Threads::MAX,
            "engine.threads",
            engine.threads.to_string(),
            "must be at most 1024; 0 is as many as there are processors",
        );
        check(
            (1..=MAX_COUNT).contains(&engine.queue),
            "engine.queue",
            engine.queue.to_string(),
            "must be between 1 and 1000000",
        );
        check(
            (1..=Config::MAX_BATCH).contains(&engine.batch),
            "engine.batch",
            engine.batch.to_string(),
            "must be between 1 and 64; 1 gives every job a run of its own",
        );
        let memory = engine.memory;
        check(
            memory.as_u64() >= 64 << 20,
            "engine.memory",
            memory.to_string(),
            "must be at least 64MiB, or nothing can run",
        );
        let devices = engine.device.all();
        let remedy = "name one device at least and 64 at most: a name such as \"cpu\", or a list of names";
        check(
            (1..=Devices::MAX).contains(&devices.len()),
            "engine.device",
            format!("{} devices", devices.len()),
            remedy,
        );
        let is_built_in = |device: &Device| match device {
            Device::Cpu => true,
            Device::Cuda(_) => cfg!(feature = "cuda"),
            Device::Metal => cfg!(feature = "metal"),
        };
        let remedy = "this binary was built without it: build with the cargo feature of that name, or say cpu";
        if let Some(device) = devices.iter().find(|device| !is_built_in(device)) {
            check(false, "engine.device", device.to_string(), remedy);
        }
    }
}
