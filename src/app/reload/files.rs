//! What was in the files when they were read last.

use crate::{
    clients,
    error::chain,
    front::listen::tls,
    metrics::{Metrics, Reloadable},
};

/// The digest of no file.
pub(super) const NOTHING: blake3::Hash = blake3::Hash::from_bytes([0; 32]);

/// Contents, by their digests.
pub(super) struct Files {
    pub(super) certificate: Content,
    pub(super) clients: Content,
}

/// One reading.
pub(super) struct Content {
    in_force: blake3::Hash,
    /// Why what is there now is not in force.
    fault: Option<String>,
}

impl Files {
    pub(super) fn of(tls: Option<&tls::Prepared>, clients: &clients::Prepared) -> Self {
        let content = |in_force: Option<blake3::Hash>| Content { in_force: in_force.unwrap_or(NOTHING), fault: None };
        Self { certificate: content(tls.map(tls::Prepared::digest)), clients: content(clients.digest()) }
    }

    pub(super) fn certificate(&self) -> blake3::Hash {
        self.certificate.in_force
    }

    pub(super) fn clients(&self) -> blake3::Hash {
        self.clients.in_force
    }
}

impl Content {
    /// Whether this reading is another one than that, or what was there then could not be used.
    pub(super) fn differs(&self, that: &Self) -> bool {
        self.in_force != that.in_force || that.fault.is_some()
    }

    /// What has been read, if it is new and can be used. What cannot is told once, and again when it has another fault.
    pub(super) fn news<T>(
        &mut self,
        read: Result<(blake3::Hash, T), impl std::error::Error>,
        what: Reloadable,
        metrics: &Metrics,
    ) -> Option<T> {
        match read {
            Ok((digest, new)) => {
                let is_new = digest != self.in_force;
                if is_new || self.fault.take().is_some() {
                    metrics.reloaded(what, true);
                }
                self.in_force = digest;
                self.fault = None;
                is_new.then_some(new)
            }
            Err(error) => {
                let error = chain(&error);
                if self.fault.as_ref() != Some(&error) {
                    metrics.reloaded(what, false);
                    tracing::warn!(
                        what = what.label(),
                        error,
                        "a changed file cannot be used: the one before it stays"
                    );
                    self.fault = Some(error);
                }
                None
            }
        }
    }
}
