//! Which keys differ between two configurations, and which of them a running server takes over.

use std::collections::BTreeMap;

use toml::Value;

use super::files::Files;
use crate::{config::Config, front::admin::Reloaded};

/// The keys that differ.
pub(super) struct Changes {
    taken: Vec<String>,
    left: Vec<String>,
    takes: Takes,
}

/// What a running server can take over, beside its clients.
#[derive(Clone, Copy)]
pub(super) struct Takes {
    /// The port speaks TLS, and can go on to with other files.
    pub(super) tls: bool,
    /// The filter of the log can be set.
    pub(super) filter: bool,
    /// Those who are to be asked are there.
    pub(super) routes: bool,
}

impl Takes {
    /// Whether a key's new value is taken over.
    fn takes(self, key: &str) -> bool {
        let is_under =
            |start: &str| key.strip_prefix(start).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'));
        is_under("clients")
            || (is_under("listen.tls") && self.tls)
            || (key == "log.filter" && self.filter)
            || (is_under("route") && self.routes)
    }
}

impl Changes {
    /// What differs between two configurations.
    pub(super) fn between(old: &Config, new: &Config, takes: Takes) -> Self {
        let takes = Takes { tls: takes.tls && new.listen.tls.is_some(), ..takes };
        // Of models that both configurations name: another one is not there yet, or is gone.
        let named = |name: &str| old.models.contains_key(name) && new.models.contains_key(name);
        let model = |key: &str| key.strip_prefix("models.")?.strip_suffix(".backends").map(str::to_owned);
        let is_routed = |key: &str| takes.routes && model(key).is_some_and(|name| named(&name));
        let (before, after) = (keys(old), keys(new));
        let differs = |key: &&String| before.get(*key) != after.get(*key);
        let mut differing: Vec<_> = before.keys().chain(after.keys()).filter(differs).cloned().collect();
        differing.sort_unstable();
        differing.dedup();
        let (taken, left) = differing.into_iter().partition(|key| takes.takes(key) || is_routed(key));
        Self { taken, left, takes }
    }

    /// Takes over what can be.
    pub(super) fn apply(&self, config: &mut Config, new: &Config) {
        config.clients.clone_from(&new.clients);
        if self.takes.tls {
            config.listen.tls.clone_from(&new.listen.tls);
        }
        if self.takes.filter {
            config.log.filter.clone_from(&new.log.filter);
        }
        if self.takes.routes {
            config.route.clone_from(&new.route);
            for (name, model) in &mut config.models {
                if let Some(new) = new.models.get(name) {
                    model.backends.clone_from(&new.backends);
                }
            }
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
        let (no, all) =
            (Takes { tls: false, filter: false, routes: false }, Takes { tls: true, filter: true, routes: true });
        new.route.spill_at = 9;
        let changes = Changes::between(&old, &new, Takes { filter: true, routes: true, ..no });
        let mut wanted = old.clone();
        changes.apply(&mut wanted, &new);
        assert_eq!((wanted.limits.max_batch, wanted.clients.limits.in_flight), (old.limits.max_batch, Some(7)));
        assert_eq!((wanted.log.filter.as_str(), &wanted.listen.tls), ("debug", &None));
        let told = changes.told();
        assert_eq!(wanted.route.spill_at, 9);
        assert_eq!(told.changed, ["clients.limits.in_flight", "log.filter", "route.spill_at"]);
        let left =
            ["limits.max_batch", "listen.tls.certificate", "listen.tls.client_certificates", "listen.tls.private_key"];
        assert_eq!(told.needs_restart, left);
        assert_eq!(Changes::between(&old, &new, all).told().needs_restart, ["limits.max_batch"]);
        assert_eq!(Changes::between(&old, &new, no).told().changed, ["clients.limits.in_flight"]);
    }
}
