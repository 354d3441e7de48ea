//! Accounts of those without a name, by address. Bounded: quiet ones are forgotten when room is needed, and where there
//! are none, those that come beyond the bound share one account.

use std::{
    collections::HashMap,
    hash::{BuildHasher as _, RandomState},
    net::{IpAddr, Ipv6Addr},
    sync::Arc,
};

use parking_lot::Mutex;

use super::{Account, Clock, Origin, Usage};

/// Shards, each behind a lock of its own that is held for one look-up.
const SHARDS: usize = 16;
/// Addresses a shard knows: 65,536 in all, about 16 MiB.
const PER_SHARD: usize = 4096;
/// A shard that is full is swept no more often than this: a sweep looks at all of it.
const SWEEP_NANOS: u64 = 1_000_000_000;

#[derive(Default)]
pub(super) struct Addresses {
    hasher: RandomState,
    shards: [Mutex<Shard>; SHARDS],
}

#[derive(Default)]
struct Shard {
    accounts: HashMap<Key, Arc<Account>>,
    /// Of all that there is no room for.
    overflow: Option<Arc<Account>>,
    swept_at: Option<u64>,
}

/// Whom one account is for. A host has a whole /64 of IPv6 addresses to itself.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Key {
    V4([u8; 4]),
    V6([u8; 8]),
    Socket,
}

impl Addresses {
    /// The account of an address, made like `model` if it is new.
    pub(super) fn account(&self, origin: Origin, model: &Account, clock: Clock) -> Arc<Account> {
        let key = Key::of(origin);
        let at = self.hasher.hash_one(key) as usize % SHARDS;
        let mut shard = self.shards[at].lock();
        if let Some(known) = shard.accounts.get(&key) {
            return known.clone();
        }
        shard.make_room(clock);
        let account = || {
            let (name, rates, series) = (model.name.clone(), model.rates, model.series.clone());
            Arc::new(Account { name, rates, usage: Arc::new(Usage::default()), series })
        };
        if shard.accounts.len() >= PER_SHARD {
            return shard.overflow.get_or_insert_with(account).clone();
        }
        shard.accounts.entry(key).or_insert_with(account).clone()
    }

    /// Starts anew, after the limits have changed.
    pub(super) fn forget(&self) {
        self.shards.iter().for_each(|shard| *shard.lock() = Shard::default());
    }
}

impl Shard {
    fn make_room(&mut self, clock: Clock) {
        let now = clock.now();
        let is_due = self.swept_at.is_none_or(|swept| now - swept >= SWEEP_NANOS);
        if self.accounts.len() >= PER_SHARD && is_due {
            self.swept_at = Some(now);
            self.accounts.retain(|_, account| !account.is_quiet(clock));
        }
    }
}

impl Key {
    fn of(origin: Origin) -> Self {
        match origin {
            Origin::Socket => Self::Socket,
            Origin::Address(IpAddr::V4(address)) => Self::V4(address.octets()),
            Origin::Address(IpAddr::V6(address)) => Self::v6(address),
        }
    }

    fn v6(address: Ipv6Addr) -> Self {
        if let Some(address) = address.to_ipv4_mapped() {
            return Self::V4(address.octets());
        }
        let [a, b, c, d, e, f, g, h, ..] = address.octets();
        Self::V6([a, b, c, d, e, f, g, h])
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::{super::Table, *};
    use crate::{
        clients::{Config, Limits, Prepared},
        metrics::Metrics,
    };

    #[tokio::test(start_paused = true)]
    async fn however_many_addresses_there_are_memory_is_bounded_and_quiet_ones_are_forgotten() {
        let per_address = Limits { requests_per_second: Some(1.0), ..Limits::default() };
        let prepared = Prepared::read(&Config { per_address, ..Config::default() }).unwrap();
        let model = Table::new(&prepared, None, &Metrics::new()).anonymous.clone();
        let (addresses, clock) = (Addresses::default(), Clock(tokio::time::Instant::now()));
        let known = || addresses.shards.iter().map(|shard| shard.lock().accounts.len()).sum::<usize>();
        let ask = |n: u32| {
            let origin = Origin::Address(Ipv4Addr::from(n).into());
            addresses.account(origin, &model, clock).enter(clock).map(drop)
        };
        let refused = (0..200_000).filter(|n| ask(*n).is_err()).count();
        assert_eq!(known(), SHARDS * PER_SHARD);
        assert!(refused > 100_000, "those beyond share {SHARDS} accounts: {refused}");
        tokio::time::advance(std::time::Duration::from_secs(5)).await;
        ask(1_000_000).expect("there is room again");
        assert!(known() < SHARDS * PER_SHARD);
    }

    #[test]
    fn a_host_is_one_address_however_it_is_written() {
        let key = |text: &str| Key::of(Origin::Address(text.parse().unwrap()));
        assert!(key("10.0.0.1") == key("::ffff:10.0.0.1") && key("10.0.0.1") != key("10.0.0.2"));
        assert!(key("2001:db8::1") == key("2001:db8::ffff:0:0:2") && key("2001:db8::1") != key("2001:db8:0:1::1"));
    }
}
