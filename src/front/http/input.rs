//! A request's body: read within bounds, or thrown away.

use std::{io, time::Duration};

use axum::body::Body;
use bytes::Bytes;
use http_body_util::BodyExt as _;
use tokio::time::{Instant, timeout};
use tracing::Span;

use crate::{
    admission::Reservation,
    cache::alias::InputDigest,
    deadline::until,
    error::{Error, ErrorKind},
    front::intake::{Intake, Length},
    task,
};

/// Memory for an input is counted in steps of this: about what a connection reads at once.
const STEP_BYTES: u64 = 256 << 10;

/// How much, and for how long, is read of a body that is of no use any more. A client that is refused while it still
/// sends would find a reset connection in place of the reason.
const MAX_DISCARD_BYTES: u64 = 64 << 20;
const MAX_DISCARD_TIME: Duration = Duration::from_secs(10);

/// A body, and how long its client may say nothing.
pub(super) struct Input {
    body: Body,
    stall: Duration,
}

impl Input {
    pub(super) fn new(body: Body, stall: Duration) -> Self {
        Self { body, stall }
    }

    /// Reads the body to its end, and its digest. `held` grows with it.
    pub(super) async fn read(&mut self, length: Length, held: &mut Reservation) -> Result<(Bytes, InputDigest), Error> {
        let mut intake = Intake::new(length, STEP_BYTES);
        loop {
            let frame = until(Instant::now() + self.stall, self.body.frame()).await.map_err(|_| {
                let (stall, got) = (self.stall, intake.got());
                let message = format!("data: the client said nothing for {stall:?}; {got} bytes have come");
                Error::new(ErrorKind::DeadlineExceeded, message)
            })?;
            match frame {
                None => return intake.finish(),
                // Trailers mean nothing here.
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data() {
                        intake.take(data, held)?;
                    }
                }
                Some(Err(error)) => return Err(broken(error)),
            }
        }
    }

    /// Reads on in the background what nobody wants, within bounds, so that the client gets to read its answer.
    pub(super) fn discard(self) {
        let Self { mut body, stall } = self;
        let reading = async move {
            let mut left = MAX_DISCARD_BYTES;
            while let Ok(Some(Ok(frame))) = timeout(stall, body.frame()).await {
                left = left.saturating_sub(frame.data_ref().map_or(0, |data| data.len() as u64));
                if left == 0 {
                    break;
                }
            }
        };
        // Ends with its connection, or at one of its bounds.
        task::spawn(Span::none(), async move { drop(timeout(MAX_DISCARD_TIME, reading).await) }).detach();
    }
}

/// What a body that cannot be read to its end means: bytes that are no HTTP, or a client that has left.
fn broken(error: axum::Error) -> Error {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(&error);
    let mut is_garbled = false;
    while let Some(error) = cause {
        let io = error.downcast_ref::<io::Error>().map(io::Error::kind);
        is_garbled |= matches!(io, Some(io::ErrorKind::InvalidInput | io::ErrorKind::InvalidData));
        cause = error.source();
    }
    let what = if is_garbled {
        Error::bad_request("body", "its chunks are not readable")
    } else {
        Error::new(ErrorKind::Cancelled, "the client broke off its request")
    };
    what.caused_by(error)
}
