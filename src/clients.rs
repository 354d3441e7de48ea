//! Who asks, and how much each may: named clients with tokens or certificates, and everybody else by address.
//!
//! With a file of named clients, who is none of them is refused, unless the configuration lets the unnamed in. Without
//! one, everybody is unnamed, and served. What a client has used is counted in an [`Account`], without locks: a request
//! rate, rates of bytes in and out, requests in flight. A [`Visit`] is one request that was let in; it rides in the
//! request's record, so it ends when the last byte of the answer has been handed over.
//!
//! Bytes are counted when they have come and gone, so a client can be in debt: it is let in again when the debt is paid.

use std::{net::IpAddr, sync::Arc};

use parking_lot::RwLock;
use tokio::time::Instant;

use crate::{error::Error, metrics::Metrics};

mod account;
mod addresses;
mod config;
mod file;
mod table;

pub use account::Visit;
use account::{Account, Usage};
use addresses::Addresses;
pub use config::{Config, Limits, SocketTrust, Unnamed};
pub use file::{ClientsError, Prepared, is_client_name};
use table::Table;

/// In metrics and logs, the name of everybody who has none.
pub const ANONYMOUS: &str = "anonymous";

/// Everybody who may ask. Clones share it.
#[derive(Clone)]
pub struct Clients(Arc<Shared>);

struct Shared {
    table: RwLock<Arc<Table>>,
    addresses: Addresses,
    clock: Clock,
    metrics: Metrics,
}

/// What a request says of whom it comes from.
#[derive(Clone, Copy, Debug)]
pub struct Credentials<'a> {
    /// What stands behind `Bearer`.
    pub token: Option<&'a [u8]>,
    /// The names in the peer's certificate.
    pub certificate: &'a [Box<str>],
    /// Where the connection comes from.
    pub origin: Origin,
}

/// Where a connection comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// By TCP, from this address.
    Address(IpAddr),
    /// From this machine, by the Unix socket.
    Socket,
}

/// Nanoseconds since the start, which fit an atomic.
#[derive(Clone, Copy, Debug)]
struct Clock(Instant);

// === impl Clients ===

impl Clients {
    /// Those that were prepared.
    pub fn new(prepared: &Prepared, metrics: Metrics) -> Self {
        let table = RwLock::new(Arc::new(Table::new(prepared, None, &metrics)));
        Self(Arc::new(Shared { table, addresses: Addresses::default(), clock: Clock(Instant::now()), metrics }))
    }

    /// Others from now on. Who is among both goes on with what it has used; requests in progress are finished.
    pub fn replace(&self, prepared: &Prepared) {
        let mut table = self.0.table.write();
        *table = Arc::new(Table::new(prepared, Some(&table), &self.0.metrics));
        self.0.addresses.forget();
    }

    /// The names of all named clients, in order.
    pub fn names(&self) -> Vec<String> {
        self.0.table.read().names()
    }

    /// Lets a request in, or says why not.
    pub fn admit(&self, credentials: &Credentials<'_>) -> Result<Visit, Error> {
        let table = self.0.table.read().clone();
        let account = match table.named(credentials)? {
            Some(account) => account,
            None if table.per_address.is_unlimited() => table.anonymous.clone(),
            None => self.0.addresses.account(credentials.origin, &table.anonymous, self.0.clock),
        };
        account.enter(self.0.clock)
    }

    /// Judges who asks, and counts nothing: for what costs nothing.
    pub fn authenticate(&self, credentials: &Credentials<'_>) -> Result<(), Error> {
        let table = self.0.table.read().clone();
        table.named(credentials).map(drop)
    }
}

// === impl Clock ===

impl Clock {
    fn now(self) -> u64 {
        self.0.elapsed().as_nanos() as u64
    }
}

#[cfg(test)]
mod tests;
