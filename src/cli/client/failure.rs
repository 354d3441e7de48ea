//! What went wrong, in one line that names the remedy.

use std::{error::Error, time::Duration};

use anyhow::anyhow;
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

/// No connection.
pub(super) fn unreachable(flag: &str, server: &str, error: &tonic::transport::Error) -> anyhow::Error {
    anyhow!("cannot reach {server}: {}; is `latentgate serve` running? ({flag} URL names another)", innermost(error))
}

/// The deadline passed, and not even the server said so.
pub(super) fn late(limit: Duration) -> anyhow::Error {
    anyhow!("no answer within {}; a longer --timeout may help", humantime::format_duration(limit))
}

/// The server's refusal, or a broken connection.
pub(super) fn refused(server: &str, status: &Status) -> anyhow::Error {
    told(server, status, hint(status))
}

/// The same, with what the person can do about it.
pub(in crate::cli) fn told(server: &str, status: &Status, hint: Option<String>) -> anyhow::Error {
    if let Some(source) = status.source() {
        let cause = innermost(source);
        // Tonic's own watch over the deadline, which races the server's.
        if status.code() == Code::Cancelled || status.code() == Code::DeadlineExceeded {
            return anyhow!("DEADLINE_EXCEEDED: {}; a longer --timeout may help", one_line(status.message()));
        }
        return anyhow!("the connection to {server} broke: {cause}; is `latentgate serve` still running?");
    }
    let hint = hint.map(|hint| format!("; {hint}")).unwrap_or_default();
    anyhow!("{}: {}{hint}", name(status.code()), one_line(status.message()))
}

/// What the person can do about it.
fn hint(status: &Status) -> Option<String> {
    let reason = status.get_details_error_info().map(|info| info.reason).unwrap_or_default();
    let hint = match (status.code(), reason.as_str()) {
        (Code::Unauthenticated, _) => "--token-file FILE sends a token",
        (Code::NotFound, "NOT_CACHED") => "leave --cache only-if-cached out to have it computed",
        (Code::NotFound, _) => "`latentgate models` lists what the server has",
        (Code::Unimplemented, "") => "is --server the data port of a latentgate? (its default is 8790)",
        (Code::Unimplemented, _) => "`latentgate models` lists what each model can do",
        (Code::ResourceExhausted, "TOO_LARGE") => "send less, or raise the server's limits",
        (Code::ResourceExhausted, _) => {
            let wait = status.get_details_retry_info().and_then(|info| info.retry_delay);
            let wait = wait.map_or_else(|| "a moment".to_owned(), |wait| humantime::format_duration(wait).to_string());
            return Some(format!("try again in {wait}"));
        }
        // Of a model without weights the server says what to do; waiting is no remedy.
        (Code::Unavailable, _) => "`latentgate models` shows what can answer now",
        (Code::DeadlineExceeded, _) => "a longer --timeout may help",
        (Code::Cancelled, _) => "the server may be stopping; try again",
        (Code::Internal, _) => "the server's log says more under the same id",
        _ => return None,
    };
    Some(hint.to_owned())
}

/// The error that began it: what tonic and hyper wrap says nothing that a person needs.
fn innermost<'a>(mut error: &'a (dyn Error + 'static)) -> &'a (dyn Error + 'static) {
    while let Some(source) = error.source() {
        error = source;
    }
    error
}

fn one_line(message: &str) -> String {
    message.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// gRPC's own name of a code.
const fn name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::Unknown => "UNKNOWN",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        Code::Unauthenticated => "UNAUTHENTICATED",
    }
}
