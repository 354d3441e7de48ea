//! Which keys differ between two configurations, and which of them a running server takes over.

use std::collections::BTreeMap;

use toml::Value;

use super::files::Files;
use crate::{config::Config, front::admin::Reloaded};

/// Keys that a running server takes over, and everything under them.
const CHANGEABLE: [&str; 3] = ["clients", "listen.tls", "log.filter"];

/// The keys that differ.
pub(super) struct Changes {
    taken: Vec<String>,
    left: Vec<String>,
    takes_tls: bool,
    takes_filter: bool,
}

impl Changes {
    /// `has_tls`: the port speaks TLS, and goes on to. `has_filter`: the filter of the log can be set.
    pub(super) fn between(old: &Config, new: &Config, has_tls: bool, has_filter: bool) -> Self {
        let takes_tls = has_tls && new.listen.tls.is_some();
        let (old, new) = (keys(old), keys(new));
        let differs = |key: &&String| old.get(*key) != new.get(*key);
        let mut differing: Vec<_> = old.keys().chain(new.keys()).filter(differs).cloned().collect();
        differing.sort_unstable();
        differing.dedup();
        let is_taken = |key: &String| {
            let is_under =
                |start: &str| key.strip_prefix(start).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'));
            CHANGEABLE.into_iter().any(is_under)
                && (takes_tls || !is_under("listen.tls"))
                && (has_filter || key != "log.filter")
        };
        let (taken, left) = differing.into_iter().partition(is_taken);
        Self { taken, left, takes_tls, takes_filter: has_filter }
    }

    /// Takes over what can be.
    pub(super) fn apply(&self, config: &mut Config, new: &Config) {
        config.clients.clone_from(&new.clients);
        if self.takes_tls {
            config.listen.tls.clone_from(&new.listen.tls);
        }
        if self.takes_filter {
            config.log.filter.clone_from(&new.log.filter);
        }
    }

    /// Counts what changed in the files whose names did not.
    pub(super) fn files(&mut self, old: &Files, new: &Files, config: &Config) {
        if old.certificate() != new.certificate() {
            self.taken.push("listen.tls (the files)".to_owned());
        }
        if old.clients() != new.clients() && config.clients.file.is_some() {
            self.taken.push("clients.file (what is in it)".to_owned());
        }
    }

    pub(super) fn told(self) -> Reloaded {
        Reloaded { changed: self.taken, needs_restart: self.left }
    }
}

/// Every key with its value.
fn keys(config: &Config) -> BTreeMap<String, Value> {
    fn walk(path: &str, value: Value, keys: &mut BTreeMap<String, Value>) {
        let Value::Table(table) = value else {
            keys.insert(path.to_owned(), value);
            return;
        };
        for (key, value) in table {
            walk(&if path.is_empty() { key } else { format!("{path}.{key}") }, value, keys);
        }
    }
    let mut keys = BTreeMap::new();
    walk("", Value::try_from(config).expect("every value has a TOML form"), &mut keys);
    keys
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_that_need_a_restart_are_named_and_left_as_they_are() {
        let old = Config::default();
        let mut new = old.clone();
        new.limits.max_batch = 3;
        new.clients.limits.in_flight = Some(7);
        new.log.filter = "debug".to_owned();
        new.listen.tls = Some(crate::front::listen::tls::Config::new("a".into(), "b".into()));
        let changes = Changes::between(&old, &new, false, true);
        let mut wanted = old.clone();
        changes.apply(&mut wanted, &new);
        assert_eq!((wanted.limits.max_batch, wanted.clients.limits.in_flight), (old.limits.max_batch, Some(7)));
        assert_eq!((wanted.log.filter.as_str(), &wanted.listen.tls), ("debug", &None));
        let told = changes.told();
        assert_eq!(told.changed, ["clients.limits.in_flight", "log.filter"]);
        let left =
            ["limits.max_batch", "listen.tls.certificate", "listen.tls.client_certificates", "listen.tls.private_key"];
        assert_eq!(told.needs_restart, left);
        assert_eq!(Changes::between(&old, &new, true, false).told().needs_restart, ["limits.max_batch", "log.filter"]);
    }
}
