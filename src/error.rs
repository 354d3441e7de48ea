//! The one error that crosses rooms, and the one table that says what each kind of it means outside.
//!
//! A room has an enum of its own with facts as fields; at the room's door it becomes an [`Error`], which is cheap to
//! clone because every waiter of a failed flight gets it. Nobody but `front/status.rs` reads the codes of the table.
//! Messages are lower case and hold neither payload nor secret.

use std::{
    error::Error as StdError,
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

/// How long a shed client is asked to wait: about one small decode on a CPU.
pub const RETRY_AFTER: Duration = Duration::from_millis(500);

/// What went wrong, as everybody outside a room sees it. Clones share one allocation.
#[derive(Clone)]
pub struct Error(Arc<Inner>);

struct Inner {
    kind: ErrorKind,
    message: String,
    field: Option<&'static str>,
    resource: Option<Resource>,
    id: Option<String>,
    retry: Retry,
    retry_after: Option<Duration>,
    source: Option<Box<dyn StdError + Send + Sync>>,
}

/// A thing that was named and is not there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resource {
    /// What sort of thing: `model`, `content`.
    pub sort: &'static str,
    /// Its name.
    pub name: String,
}

/// Every way a request can fail. The table is [`ErrorKind::row`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ErrorKind {
    /// Who asks is not known, or not by this token.
    Unauthenticated,
    /// The client has used up what one client may use.
    ClientLimit,
    /// The request cannot mean anything: spec, byte count, dtype, NaN, an undecodable picture, channels.
    BadRequest,
    /// No such model.
    UnknownModel,
    /// The model exists and does not do that task.
    TaskUnsupported,
    /// The model does not make that output, or the output cannot hold the answer.
    OutputUnsupported,
    /// Messages compressed in a way that this server does not read.
    EncodingUnsupported,
    /// Input or predicted output over a limit; trying again is of no use.
    TooLarge,
    /// A queue or a budget is full; trying again can help.
    Overloaded,
    /// Somebody's time ran out.
    DeadlineExceeded,
    /// Only-if-cached, and it is not.
    NotCached,
    /// Nothing is kept under this key.
    UnknownKey,
    /// It takes a disk tier, and none is configured.
    NoDiskTier,
    /// A configuration that cannot be used: the one in force stays.
    ReloadRefused,
    /// The request has come back to where it was.
    LoopDetected,
    /// No backend can answer now.
    Unavailable,
    /// Nobody waits for the answer any more.
    Cancelled,
    /// A bug of ours.
    Internal,
}

/// Who is at fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The client.
    Downstream,
    /// Us, by load or by a bug.
    Internal,
}

/// gRPC status codes the table uses, by their wire numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names are gRPC's own")]
pub enum GrpcCode {
    Cancelled = 1,
    InvalidArgument = 3,
    DeadlineExceeded = 4,
    NotFound = 5,
    FailedPrecondition = 9,
    ResourceExhausted = 8,
    Unimplemented = 12,
    Internal = 13,
    Unavailable = 14,
    Unauthenticated = 16,
}

/// Whether a client may send the same request again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Retry {
    /// It would fail the same way.
    Never,
    /// After [`Error::retry_after`].
    Later,
}

/// An error and its causes, in one line.
pub fn chain(error: &dyn StdError) -> String {
    let mut line = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        line.push_str(": ");
        line.push_str(&error.to_string());
        cause = error.source();
    }
    line
}

/// One row of the table.
#[derive(Clone, Copy, Debug)]
pub struct Row {
    /// Stable name: `ErrorInfo.reason`, and in lower case the metric label.
    pub reason: &'static str,
    /// gRPC status.
    pub grpc: GrpcCode,
    /// HTTP status.
    pub http: u16,
    /// May it be tried again?
    pub retry: Retry,
    /// At which level it is logged.
    pub level: tracing::Level,
    /// Whose fault it is.
    pub side: Side,
}

// === impl ErrorKind ===

impl ErrorKind {
    /// Every kind, for tables and tests.
    pub const ALL: [Self; 18] = [
        Self::Unauthenticated,
        Self::ClientLimit,
        Self::BadRequest,
        Self::UnknownModel,
        Self::TaskUnsupported,
        Self::OutputUnsupported,
        Self::EncodingUnsupported,
        Self::TooLarge,
        Self::Overloaded,
        Self::DeadlineExceeded,
        Self::NotCached,
        Self::UnknownKey,
        Self::NoDiskTier,
        Self::ReloadRefused,
        Self::LoopDetected,
        Self::Unavailable,
        Self::Cancelled,
        Self::Internal,
    ];

    /// THE table.
    pub const fn row(self) -> Row {
        use GrpcCode as G;
        use Retry::{Later, Never};
        use Side::{Downstream, Internal};
        use tracing::Level;
        let (reason, grpc, http, retry, level, side) = match self {
            Self::Unauthenticated => ("UNAUTHENTICATED", G::Unauthenticated, 401, Never, Level::DEBUG, Downstream),
            Self::ClientLimit => ("CLIENT_LIMIT", G::ResourceExhausted, 429, Later, Level::DEBUG, Downstream),
            Self::BadRequest => ("BAD_REQUEST", G::InvalidArgument, 400, Never, Level::DEBUG, Downstream),
            Self::UnknownModel => ("UNKNOWN_MODEL", G::NotFound, 404, Never, Level::DEBUG, Downstream),
            Self::TaskUnsupported => ("TASK_UNSUPPORTED", G::Unimplemented, 404, Never, Level::DEBUG, Downstream),
            Self::OutputUnsupported => ("OUTPUT_UNSUPPORTED", G::InvalidArgument, 400, Never, Level::DEBUG, Downstream),
            Self::EncodingUnsupported => {
                ("ENCODING_UNSUPPORTED", G::Unimplemented, 415, Never, Level::DEBUG, Downstream)
            }
            Self::TooLarge => ("TOO_LARGE", G::ResourceExhausted, 413, Never, Level::DEBUG, Downstream),
            Self::Overloaded => ("OVERLOADED", G::ResourceExhausted, 429, Later, Level::DEBUG, Internal),
            Self::DeadlineExceeded => ("DEADLINE_EXCEEDED", G::DeadlineExceeded, 504, Never, Level::DEBUG, Downstream),
            Self::NotCached => ("NOT_CACHED", G::NotFound, 504, Never, Level::DEBUG, Downstream),
            Self::UnknownKey => ("UNKNOWN_KEY", G::NotFound, 404, Never, Level::DEBUG, Downstream),
            Self::NoDiskTier => ("NO_DISK_TIER", G::FailedPrecondition, 409, Never, Level::DEBUG, Downstream),
            Self::ReloadRefused => ("RELOAD_REFUSED", G::FailedPrecondition, 409, Never, Level::WARN, Downstream),
            Self::LoopDetected => ("LOOP_DETECTED", G::FailedPrecondition, 508, Never, Level::WARN, Internal),
            Self::Unavailable => ("UNAVAILABLE", G::Unavailable, 503, Later, Level::WARN, Internal),
            Self::Cancelled => ("CANCELLED", G::Cancelled, 499, Never, Level::DEBUG, Downstream),
            Self::Internal => ("INTERNAL", G::Internal, 500, Never, Level::ERROR, Internal),
        };
        Row { reason, grpc, http, retry, level, side }
    }

    /// The metric label: the reason in lower case.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Unauthenticated => "unauthenticated",
            Self::ClientLimit => "client_limit",
            Self::BadRequest => "bad_request",
            Self::UnknownModel => "unknown_model",
            Self::TaskUnsupported => "task_unsupported",
            Self::OutputUnsupported => "output_unsupported",
            Self::EncodingUnsupported => "encoding_unsupported",
            Self::TooLarge => "too_large",
            Self::Overloaded => "overloaded",
            Self::DeadlineExceeded => "deadline_exceeded",
            Self::NotCached => "not_cached",
            Self::UnknownKey => "unknown_key",
            Self::NoDiskTier => "no_disk_tier",
            Self::ReloadRefused => "reload_refused",
            Self::LoopDetected => "loop_detected",
            Self::Unavailable => "unavailable",
            Self::Cancelled => "cancelled",
            Self::Internal => "internal",
        }
    }
}

// === impl Error ===

impl Error {
    fn build(kind: ErrorKind, message: String) -> Inner {
        let retry = kind.row().retry;
        Inner { kind, message, field: None, resource: None, id: None, retry, retry_after: None, source: None }
    }

    /// An error of `kind` that says `message`.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        if kind == ErrorKind::Internal {
            return Self::internal(message);
        }
        Self(Arc::new(Self::build(kind, message.into())))
    }

    /// A bad request: which field of the spec, and what is wrong with it.
    pub fn bad_request(field: &'static str, message: impl fmt::Display) -> Self {
        Self::field(ErrorKind::BadRequest, field, message)
    }

    /// An error of `kind` that a field of the spec caused.
    pub fn field(kind: ErrorKind, field: &'static str, message: impl fmt::Display) -> Self {
        let message = format!("{field}: {message}");
        Self(Arc::new(Inner { field: Some(field), ..Self::build(kind, message) }))
    }

    /// Something named is not there.
    pub fn missing(kind: ErrorKind, resource: Resource, message: impl Into<String>) -> Self {
        Self(Arc::new(Inner { resource: Some(resource), ..Self::build(kind, message.into()) }))
    }

    /// A bug. The message gets an id, and the log line that the front writes bears it too.
    pub fn internal(message: impl Into<String>) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let id = format!("{:x}-{:x}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let message = format!("{} (error id {id})", message.into());
        Self(Arc::new(Inner { id: Some(id), ..Self::build(ErrorKind::Internal, message) }))
    }

    /// The same, worth another try after `wait`.
    #[must_use]
    pub fn after(self, wait: Duration) -> Self {
        match Arc::try_unwrap(self.0) {
            Ok(inner) => Self(Arc::new(Inner { retry_after: Some(wait), ..inner })),
            Err(shared) => Self(shared),
        }
    }

    /// The same, caused by `source`.
    #[must_use]
    pub fn caused_by(self, source: impl StdError + Send + Sync + 'static) -> Self {
        match Arc::try_unwrap(self.0) {
            Ok(inner) => Self(Arc::new(Inner { source: Some(Box::new(source)), ..inner })),
            // Already shared with waiters: the cause they know stays.
            Err(shared) => Self(shared),
        }
    }

    /// The same, which no waiting mends: whoever tries again would hear it again.
    #[must_use]
    pub fn for_good(self) -> Self {
        match Arc::try_unwrap(self.0) {
            Ok(inner) => Self(Arc::new(Inner { retry: Retry::Never, ..inner })),
            Err(shared) => Self(shared),
        }
    }

    /// May it be tried again?
    pub fn retry(&self) -> Retry {
        self.0.retry
    }

    /// What kind of failure this is.
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// The kind's row of the table.
    pub fn row(&self) -> Row {
        self.0.kind.row()
    }

    /// What happened, for people.
    pub fn message(&self) -> &str {
        &self.0.message
    }

    /// After which time the same request is worth another try, if it is at all.
    pub fn retry_after(&self) -> Option<Duration> {
        (self.0.retry == Retry::Later).then(|| self.0.retry_after.unwrap_or(RETRY_AFTER))
    }

    /// The field of the spec at fault, if one is.
    pub fn field_name(&self) -> Option<&'static str> {
        self.0.field
    }

    /// What was not found, if that is the matter.
    pub fn resource(&self) -> Option<&Resource> {
        self.0.resource.as_ref()
    }

    /// The id that the log bears too; bugs only.
    pub fn id(&self) -> Option<&str> {
        self.0.id.as_deref()
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.message)
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Error")
            .field("kind", &self.0.kind)
            .field("message", &self.0.message)
            .field("source", &self.0.source)
            .finish_non_exhaustive()
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.0.source.as_ref().map(|source| &**source as _)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_are_distinct_and_labels_are_their_lower_case() {
        let mut seen = std::collections::HashSet::new();
        for kind in ErrorKind::ALL {
            assert!(seen.insert(kind.row().reason));
            assert_eq!(kind.label(), kind.row().reason.to_lowercase());
        }
    }

    #[test]
    fn only_load_is_worth_another_try() {
        let later: Vec<_> = ErrorKind::ALL.into_iter().filter(|k| k.row().retry == Retry::Later).collect();
        assert_eq!(later, [ErrorKind::ClientLimit, ErrorKind::Overloaded, ErrorKind::Unavailable]);
    }

    #[test]
    fn bugs_bear_an_id_in_their_message() {
        let bug = Error::new(ErrorKind::Internal, "engine gone");
        assert!(bug.message().contains(bug.id().expect("bugs have ids")));
    }
}
