//! The named clients in force, found by token and by certificate.

use std::{collections::HashMap, sync::Arc};

use super::{ANONYMOUS, Account, Credentials, Origin, Prepared, SocketTrust, Unnamed, Usage, account::Rates};
use crate::{
    error::{Error, ErrorKind},
    metrics::Metrics,
};

/// One reading of the file. It does not change; the next one replaces it.
pub(super) struct Table {
    accounts: HashMap<String, Arc<Account>>,
    by_token: HashMap<u64, (blake3::Hash, Arc<Account>)>,
    by_certificate: HashMap<Box<str>, Arc<Account>>,
    /// Everybody without a name, where that is not told apart by address; and what such accounts are made like.
    pub(super) anonymous: Arc<Account>,
    pub(super) per_address: Rates,
    unnamed: Unnamed,
    socket: SocketTrust,
}

impl Table {
    /// Clients that were in `old` go on with what they have used.
    pub(super) fn new(prepared: &Prepared, old: Option<&Self>, metrics: &Metrics) -> Self {
        let config = &prepared.config;
        let account = |name: &str, rates: Rates, known: Option<&Arc<Account>>| {
            let name: Arc<str> = known.map_or_else(|| name.into(), |known| known.name.clone());
            let usage = known.map_or_else(|| Arc::new(Usage::default()), |known| known.usage.clone());
            let series = known.map_or_else(|| Arc::new(metrics.client(&name)), |known| known.series.clone());
            Arc::new(Account { name, rates, usage, series })
        };
        let per_address = Rates::of(config.per_address);
        let anonymous = account(ANONYMOUS, per_address, old.map(|old| &old.anonymous));
        let (mut accounts, mut by_token, mut by_certificate) = (HashMap::new(), HashMap::new(), HashMap::new());
        for client in &prepared.clients {
            let rates = Rates::of(client.limits.or(config.limits));
            let account = account(&client.name, rates, old.and_then(|old| old.accounts.get(&client.name)));
            by_token.extend(client.tokens.iter().map(|hash| (first_bytes(hash), (*hash, account.clone()))));
            by_certificate.extend(client.certificates.iter().map(|name| (name.clone(), account.clone())));
            accounts.insert(client.name.clone(), account);
        }
        let (unnamed, socket) = (config.unnamed, config.socket);
        Self { accounts, by_token, by_certificate, anonymous, per_address, unnamed, socket }
    }

    /// The named client that asks; none for one that may do without a name.
    pub(super) fn named(&self, credentials: &Credentials<'_>) -> Result<Option<Arc<Account>>, Error> {
        if self.accounts.is_empty() {
            return Ok(None);
        }
        if let Some(token) = credentials.token {
            // A token that is wrong is no reason to take its sender for somebody without one.
            let message = "the token is none of this server's clients': it may have been replaced; ask the operator";
            return self.by_token(token).map(Some).ok_or_else(|| unauthenticated(message));
        }
        let by_certificate = credentials.certificate.iter().find_map(|name| self.by_certificate(name));
        if by_certificate.is_some() || self.lets_in(credentials.origin) {
            return Ok(by_certificate);
        }
        Err(unauthenticated(if credentials.certificate.is_empty() {
            "this server is for its named clients: send the header `authorization: Bearer TOKEN`"
        } else {
            "no name in the certificate is one of this server's clients: send `authorization: Bearer TOKEN`, or have \
             the operator add the certificate's name"
        }))
    }

    pub(super) fn names(&self) -> Vec<String> {
        let mut names: Vec<_> = self.accounts.keys().cloned().collect();
        names.sort_unstable();
        names
    }

    /// Found by the first bytes of its digest, judged by all of it in constant time.
    fn by_token(&self, token: &[u8]) -> Option<Arc<Account>> {
        let shown = blake3::hash(token);
        let (hash, account) = self.by_token.get(&first_bytes(&shown))?;
        (*hash == shown).then(|| account.clone())
    }

    fn by_certificate(&self, name: &str) -> Option<Arc<Account>> {
        self.by_certificate.get(name).cloned()
    }

    /// Whether a client without a name is served.
    fn lets_in(&self, origin: Origin) -> bool {
        self.unnamed == Unnamed::Served || (origin == Origin::Socket && self.socket == SocketTrust::Mode)
    }
}

fn unauthenticated(message: &str) -> Error {
    Error::new(ErrorKind::Unauthenticated, message)
}

pub(super) fn first_bytes(hash: &blake3::Hash) -> u64 {
    let bytes = hash.as_bytes().first_chunk().expect("a digest has 32 bytes");
    u64::from_le_bytes(*bytes)
}
