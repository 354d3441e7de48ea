//! The log of this process, as those see it who change what it says while it runs: an operator on the admin port, a
//! configuration that is read again.
//!
//! A handle and no more. What writes the lines is installed once, by `telemetry`; what is changed here is the filter
//! before it. A change holds until the next one or the end of the process.

use std::{str::FromStr as _, sync::Arc};

use parking_lot::Mutex;
use tracing_subscriber::{EnvFilter, Registry, reload};

/// Longer filters are none.
const MAX_FILTER_BYTES: usize = 4096;

/// The log's filter. Clones share it.
#[derive(Clone)]
pub struct Logs(Arc<Shared>);

struct Shared {
    handle: reload::Handle<EnvFilter, Registry>,
    /// As it was spelled: a parsed filter does not remember.
    spelled: Mutex<String>,
}

/// Where the lines pass.
pub type Filter = reload::Layer<EnvFilter, Registry>;

/// Why a filter is none.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FilterError {
    /// It cannot be read.
    #[error("{0}")]
    Unreadable(String),
    /// Nothing at all would let errors through and no more, which nobody means by it.
    #[error("it is empty; `off` is the filter that lets nothing through")]
    Empty,
    /// Nobody writes such a one.
    #[error("it is longer than {MAX_FILTER_BYTES} bytes")]
    TooLong,
    /// The log it was for is gone.
    #[error("the log is gone")]
    Gone,
}

/// Reads a filter: `info`, `latentgate=debug,h2=warn`, ...
pub fn parse(filter: &str) -> Result<EnvFilter, FilterError> {
    match filter.trim() {
        "" => Err(FilterError::Empty),
        long if long.len() > MAX_FILTER_BYTES => Err(FilterError::TooLong),
        filter => EnvFilter::from_str(filter).map_err(|error| FilterError::Unreadable(error.to_string())),
    }
}

impl Logs {
    /// A filter to be put before what writes the lines, and the handle on it.
    pub fn new(filter: &str) -> Result<(Self, Filter), FilterError> {
        let (layer, handle) = reload::Layer::new(parse(filter)?);
        let spelled = Mutex::new(filter.trim().to_owned());
        Ok((Self(Arc::new(Shared { handle, spelled })), layer))
    }

    /// The filter in force.
    pub fn filter(&self) -> String {
        self.0.spelled.lock().clone()
    }

    /// Another filter, from now on. One that cannot be read changes nothing.
    pub fn set_filter(&self, filter: &str) -> Result<(), FilterError> {
        let parsed = parse(filter)?;
        // Held over both, so that of two changes at a time the same one wins in both places.
        let mut spelled = self.0.spelled.lock();
        self.0.handle.reload(parsed).map_err(|_gone| FilterError::Gone)?;
        filter.trim().clone_into(&mut spelled);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use tracing::subscriber;
    use tracing_subscriber::{Layer as _, layer::SubscriberExt as _};

    use super::*;

    /// What was written.
    #[derive(Clone, Default)]
    struct Written(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Written {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn another_filter_holds_from_now_on_and_a_bad_one_changes_nothing() {
        let (logs, filter) = Logs::new("info").unwrap();
        let written = Written::default();
        let writer = written.clone();
        let lines = tracing_subscriber::fmt::layer().with_writer(move || writer.clone()).with_filter(filter);
        // While there is one subscriber alone, what another thread has asked for first counts as never wanted.
        let _second = tracing::Dispatch::new(tracing_subscriber::registry());
        subscriber::with_default(tracing_subscriber::registry().with(lines), || {
            let tells_debug = || {
                let before = written.0.lock().len();
                tracing::debug!(target: "latentgate::test", "a line");
                written.0.lock().len() > before
            };
            assert!(!tells_debug());
            logs.set_filter(" latentgate=debug ").unwrap();
            assert!(tells_debug());
            assert_eq!(logs.filter(), "latentgate=debug");
            assert!(matches!(logs.set_filter("a=b=c"), Err(FilterError::Unreadable(_))));
            assert_eq!(logs.set_filter(" "), Err(FilterError::Empty));
            assert_eq!(logs.set_filter(&"x".repeat(5000)), Err(FilterError::TooLong));
            assert!(tells_debug());
            assert_eq!(logs.filter(), "latentgate=debug");
            logs.set_filter("warn").unwrap();
            assert!(!tells_debug());
        });
    }
}
