//! Reading a request stream: the spec first, then the input.

use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;
use tonic::{Code, Status, Streaming};

use super::convert::{Opening, RequestMessage};
use crate::{
    admission::Reservation,
    cache::alias::InputDigest,
    deadline::until,
    error::{Error, ErrorKind},
    front::intake::{Intake, Length},
};

/// Memory for an input is counted in steps of this: about what one message brings.
pub(super) const STEP_BYTES: u64 = 4 << 20;

/// A request stream after its first message.
pub(super) struct Input<M> {
    stream: Streaming<M>,
    /// Data of the first message, until it is taken.
    first: Bytes,
    /// How long a client may say nothing.
    stall: Duration,
}

impl<M: RequestMessage> Input<M> {
    /// Reads the first message. It must hold the spec.
    pub(super) async fn open(mut stream: Streaming<M>, stall: Duration) -> Result<(Opening, Self), Error> {
        let first = until(Instant::now() + stall, stream.message()).await;
        let first = first.map_err(|_| stalled("spec", stall, "the first message has not come"))?;
        let Some(message) = first.map_err(|status| broken("spec", &status))? else {
            return Err(Error::bad_request("spec", "the stream ended before a spec"));
        };
        match message.split() {
            (Some(opening), data) => Ok((opening?, Self { stream, first: data, stall })),
            (None, _) => Err(Error::bad_request("spec", "the first message must hold the spec; data came before it")),
        }
    }

    /// Whether data came with the spec.
    pub(super) fn has_data(&self) -> bool {
        !self.first.is_empty()
    }

    /// Waits for the first data, for a client that was asked for them. Says whether there are any.
    pub(super) async fn wait(&mut self) -> Result<bool, Error> {
        let data = self.next_data(|| "none of the input has come".to_owned()).await?;
        self.first = data.unwrap_or_default();
        Ok(self.has_data())
    }

    /// Reads the input to its end: exactly `want` bytes, and their digest.
    pub(super) async fn read(mut self, want: u64, held: &mut Reservation) -> Result<(Bytes, InputDigest), Error> {
        let mut intake = Intake::new(Length::Exactly(want), STEP_BYTES);
        intake.take(std::mem::take(&mut self.first), held)?;
        loop {
            let said = || format!("{} of {want} bytes have come", intake.got());
            let Some(data) = self.next_data(said).await? else { break };
            intake.take(data, held)?;
        }
        intake.finish()
    }
}

impl<M: RequestMessage> Input<M> {
    /// The data of the next message that has any; `None` at half-close. Messages without data do not count as a sign of
    /// life: the stall time is one for all of them.
    async fn next_data(&mut self, so_far: impl FnOnce() -> String) -> Result<Option<Bytes>, Error> {
        let stall = self.stall;
        let speak = async {
            loop {
                let Some(message) = self.stream.message().await.map_err(|status| broken("data", &status))? else {
                    return Ok(None);
                };
                match message.split() {
                    (Some(_), _) => {
                        let message = "a stream has one spec, in its first message; a second came";
                        return Err(Error::bad_request("spec", message));
                    }
                    (None, data) if data.is_empty() => {}
                    (None, data) => return Ok(Some(data)),
                }
            }
        };
        until(Instant::now() + stall, speak).await.unwrap_or_else(|_| Err(stalled("data", stall, &so_far())))
    }
}

fn stalled(field: &'static str, stall: Duration, so_far: &str) -> Error {
    let message = format!("{field}: the client said nothing for {stall:?}; {so_far}");
    Error::new(ErrorKind::DeadlineExceeded, message)
}

/// What a broken request stream means: a client that left, or bytes that are no message.
fn broken(field: &'static str, status: &Status) -> Error {
    match status.code() {
        // tonic's, for a message beyond the limit.
        Code::OutOfRange => {
            let most = super::MAX_MESSAGE_BYTES;
            let message = format!("a message has at most {most} bytes: send the data in several, of a MiB each, say");
            Error::field(ErrorKind::TooLarge, field, message)
        }
        Code::Cancelled | Code::Unknown => Error::new(ErrorKind::Cancelled, "the client broke off its request"),
        _ => Error::bad_request(field, format!("the stream is not readable: {}", status.message())),
    }
}
