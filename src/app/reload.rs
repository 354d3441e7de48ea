//! Reading again while the server runs: by order (SIGHUP, the admin port), all of the configuration; by itself, the files
//! that hold certificates and clients, when they change.
//!
//! Everything is read and tried before anything is used, so what cannot be used changes nothing. What can change is used
//! for new connections and new requests; those in progress go on as they began. What cannot is named, and waits for the
//! next start. Everything here blocks, so it runs on the blocking pool, one reading at a time.

use std::sync::Arc;

use parking_lot::Mutex;

use super::{StartError, internal, models::Askable};
use crate::{
    clients::{self, Clients},
    config::{Config, ConfigError},
    error::{Error, ErrorKind, chain},
    front::{
        admin::{Reload, Reloaded},
        listen::tls,
    },
    metrics::{Metrics, Reloadable},
    pipeline::Routes,
    task,
};

mod changes;
mod files;

use changes::{Changes, Takes};
use files::Files;

/// Reads again. Clones share it.
#[derive(Clone)]
pub struct Reloader(Arc<Shared>);

struct Shared {
    tls: Option<tls::Acceptor>,
    clients: Clients,
    metrics: Metrics,
    state: Mutex<State>,
}

struct State {
    /// In force.
    config: Config,
    files: Files,
    source: Source,
    /// None until there are backends.
    routing: Option<Routing>,
}

/// Whom there is to ask, and who is asked.
struct Routing {
    askable: Askable,
    routes: Routes,
    /// Of the start, when the backends took what they need.
    started: Config,
}

/// Where a configuration comes from, and where what it says of the log goes to.
pub struct Source {
    /// Reads and judges the configuration.
    pub load: Box<dyn Fn() -> Result<Config, ConfigError> + Send>,
    /// Sets the filter of the log. None: it is set at the start only.
    pub set_log_filter: Option<SetLogFilter>,
}

/// Sets the filter of the log, or says why not.
pub type SetLogFilter = Box<dyn Fn(&str) -> Result<(), String> + Send>;

// === impl Reloader ===

impl Reloader {
    /// Reads certificate and clients for the first time. Blocks.
    pub(super) fn start(config: &Config, metrics: Metrics) -> Result<Self, StartError> {
        let tls = config.listen.tls.as_ref().map(tls::Prepared::read).transpose()?;
        let clients = clients::Prepared::read(&config.clients)?;
        let files = Files::of(tls.as_ref(), &clients);
        metrics.reloadable(Reloadable::Config);
        metrics.reloadable(Reloadable::Clients);
        if let Some(tls) = &tls {
            metrics.reloadable(Reloadable::Certificate);
            metrics.certificate_expires(tls.expires_at());
        }
        let unchanged = config.clone();
        let source = Source { load: Box::new(move || Ok(unchanged.clone())), set_log_filter: None };
        let state = Mutex::new(State { config: config.clone(), files, source, routing: None });
        let clients = Clients::new(&clients, metrics.clone());
        Ok(Self(Arc::new(Shared { tls: tls.map(tls::Acceptor::new), clients, metrics, state })))
    }

    /// Reads the configuration from there from now on.
    pub fn read_from(&self, source: Source) {
        self.0.state.lock().source = source;
    }

    pub(super) fn tls(&self) -> Option<tls::Acceptor> {
        self.0.tls.clone()
    }

    pub(super) fn clients(&self) -> Clients {
        self.0.clients.clone()
    }

    /// Routes by the configuration, and by those that come.
    pub(super) fn route(&self, askable: Askable, config: &Config) -> Routes {
        let routes = Routes::new(askable.policy(config));
        let routing = Routing { askable, routes: routes.clone(), started: config.clone() };
        self.0.state.lock().routing = Some(routing);
        routes
    }

    /// For the admin port.
    pub(super) fn handle(&self) -> Reload {
        let reloader = self.clone();
        Arc::new(move || {
            let reloader = reloader.clone();
            Box::pin(async move { reloader.reload().await })
        })
    }

    /// Reads everything again, and tells what came of it, in the log too.
    pub async fn reload(&self) -> Result<Reloaded, Error> {
        let reloader = self.clone();
        let read = task::blocking(move || reloader.reload_now()).await;
        let read = read.map_err(|panic| internal("reading the configuration again panicked", panic)).and_then(|it| it);
        self.0.metrics.reloaded(Reloadable::Config, read.is_ok());
        match &read {
            Ok(Reloaded { changed, needs_restart }) => {
                let (changed, ignored) = (changed.join(", "), needs_restart.join(", "));
                tracing::info!(changed, needs_restart = ignored, "the configuration was read again");
            }
            Err(error) => {
                tracing::warn!(%error, "the configuration was read again and cannot be used: all stays as it was");
            }
        }
        read
    }

    fn reload_now(&self) -> Result<Reloaded, Error> {
        let refused = |error: &dyn std::error::Error| Error::new(ErrorKind::ReloadRefused, chain(error));
        let Shared { metrics, tls: acceptor, clients, state } = &*self.0;
        let mut state = state.lock();
        let new = (state.source.load)().map_err(|error| refused(&error))?;
        let routes = state.routing.as_ref().is_some_and(|routing| routing.askable.can_change(&routing.started, &new));
        let takes = Takes { tls: acceptor.is_some(), filter: state.source.set_log_filter.is_some(), routes };
        let mut changes = Changes::between(&state.config, &new, takes);
        // First everything is tried ...
        let mut wanted = state.config.clone();
        changes.apply(&mut wanted, &new);
        let tls = match &wanted.listen.tls {
            Some(config) if acceptor.is_some() => Some(tls::Prepared::read(config).map_err(|error| refused(&error))?),
            _ => None,
        };
        let named = clients::Prepared::read(&wanted.clients).map_err(|error| refused(&error))?;
        if let (Some(set), true) = (&state.source.set_log_filter, wanted.log.filter != state.config.log.filter) {
            let unusable = |why| Error::new(ErrorKind::ReloadRefused, format!("log.filter: {why}"));
            set(&wanted.log.filter).map_err(unusable)?;
        }
        // ... and then used.
        let files = Files::of(tls.as_ref(), &named);
        changes.files(&state.files, &files, &wanted);
        // What is as it was keeps what it knows: sessions to resume, what addresses have used.
        if let (Some(acceptor), Some(tls)) = (acceptor, tls)
            && files.certificate.differs(&state.files.certificate)
        {
            metrics.certificate_expires(tls.expires_at());
            metrics.reloaded(Reloadable::Certificate, true);
            acceptor.replace(tls);
        }
        if wanted.clients != state.config.clients || files.clients.differs(&state.files.clients) {
            clients.replace(&named);
            metrics.reloaded(Reloadable::Clients, true);
        }
        if let Some(Routing { askable, routes, .. }) = &state.routing {
            routes.replace(askable.policy(&wanted));
        }
        (state.config, state.files) = (wanted, files);
        Ok(changes.told())
    }

    /// Looks after the files until it is dropped.
    pub(super) async fn watch_files(self) {
        let every = self.0.state.lock().config.reload.every;
        if every.is_zero() {
            return;
        }
        loop {
            tokio::time::sleep(every).await;
            let reloader = self.clone();
            if let Err(panic) = task::blocking(move || reloader.look()).await {
                tracing::error!(%panic, "reading certificate and clients again panicked");
            }
        }
    }

    /// Uses what has changed and can be used.
    fn look(&self) {
        let Shared { metrics, tls: acceptor, clients, state } = &*self.0;
        let State { config, files, .. } = &mut *state.lock();
        if let (Some(acceptor), Some(config)) = (acceptor, &config.listen.tls) {
            let read = tls::Prepared::read(config).map(|new| (new.digest(), new));
            if let Some(new) = files.certificate.news(read, Reloadable::Certificate, metrics) {
                tracing::info!(expires_at = new.expires_at(), "the certificate was replaced");
                metrics.certificate_expires(new.expires_at());
                acceptor.replace(new);
            }
        }
        if config.clients.file.is_some() {
            let read =
                clients::Prepared::read(&config.clients).map(|new| (new.digest().unwrap_or(files::NOTHING), new));
            if let Some(new) = files.clients.news(read, Reloadable::Clients, metrics) {
                clients.replace(&new);
                tracing::info!(clients = clients.names().join(", "), "the named clients were replaced");
            }
        }
    }
}
