//! Both directions of one exchange: the messages that go out, and the answer put together from those that come in.
//!
//! Decode and Encode differ in their messages alone, so that both are written once.

use std::io::IsTerminal as _;

use anyhow::{bail, ensure};
use bytes::Bytes;
use futures_util::Stream;
use indicatif::{ProgressBar, ProgressStyle};
use tokio::{sync::oneshot, time::Instant};
use tonic::Streaming;

use super::{Answer, failure};
use crate::{
    cli::request::Order,
    proto::{self, decode_response::Event, encode_response},
};

/// Most data in one message: what the server sends, too.
const CHUNK_BYTES: usize = 1 << 20;
/// Memory taken on the word of a header alone; more is taken as it comes.
const TRUSTED_BYTES: u64 = 64 << 20;

/// A message of either request stream.
pub(super) trait RequestMessage: Send + 'static {
    type Spec: Send + 'static;

    fn new(spec: Option<Self::Spec>, data: Bytes) -> Self;
}

/// A message of either response stream.
pub(super) trait ResponseMessage: prost::Message + Default + 'static {
    fn event(self) -> Option<Event>;
}

/// A request, about to be sent.
pub(super) struct Outgoing<M: RequestMessage> {
    spec: M::Spec,
    data: Bytes,
    /// With the digest first: says that the server wants the data. Dropped when it does not.
    go: Option<oneshot::Receiver<()>>,
}

/// A response, being put together.
pub(super) struct Incoming<'a> {
    go: Option<oneshot::Sender<()>>,
    bar: &'a BlockBar,
    server: &'a str,
    input_sent: bool,
    key: Bytes,
    preview: Option<Bytes>,
    header: Option<proto::Header>,
    data: Vec<u8>,
}

/// Blocks of the computation done, for people; nothing where nobody looks.
#[derive(Clone, Debug)]
pub(in crate::cli) struct BlockBar(Option<ProgressBar>);

impl RequestMessage for proto::DecodeRequest {
    type Spec = proto::DecodeSpec;

    fn new(spec: Option<Self::Spec>, data: Bytes) -> Self {
        Self { spec, data }
    }
}

impl RequestMessage for proto::EncodeRequest {
    type Spec = proto::EncodeSpec;

    fn new(spec: Option<Self::Spec>, data: Bytes) -> Self {
        Self { spec, data }
    }
}

impl ResponseMessage for proto::DecodeResponse {
    fn event(self) -> Option<Event> {
        self.event
    }
}

impl ResponseMessage for proto::EncodeResponse {
    fn event(self) -> Option<Event> {
        Some(match self.event? {
            encode_response::Event::NeedData(it) => Event::NeedData(it),
            encode_response::Event::Accepted(it) => Event::Accepted(it),
            encode_response::Event::Progress(it) => Event::Progress(it),
            encode_response::Event::Header(it) => Event::Header(it),
            encode_response::Event::Chunk(it) => Event::Chunk(it),
            encode_response::Event::Trailer(it) => Event::Trailer(it),
        })
    }
}

// === impl Outgoing ===

impl<M: RequestMessage> Outgoing<M> {
    /// The request, and with the digest first what lets the data go.
    pub(super) fn new(spec: M::Spec, data: Bytes, order: Order) -> (Self, Option<oneshot::Sender<()>>) {
        let (sender, receiver) = match order {
            Order::DataAtOnce => (None, None),
            Order::DigestFirst => {
                let (sender, receiver) = oneshot::channel();
                (Some(sender), Some(receiver))
            }
        };
        (Self { spec, data, go: receiver }, sender)
    }

    /// The spec, with the first data unless the digest goes first; then the rest of the data.
    pub(super) fn messages(self) -> impl Stream<Item = M> + Send + 'static {
        let Self { spec, mut data, go } = self;
        async_stream::stream! {
            match go {
                None => yield M::new(Some(spec), chunk(&mut data)),
                Some(go) => {
                    yield M::new(Some(spec), Bytes::new());
                    if go.await.is_err() {
                        return;
                    }
                }
            }
            while !data.is_empty() {
                yield M::new(None, chunk(&mut data));
            }
        }
    }
}

fn chunk(data: &mut Bytes) -> Bytes {
    data.split_to(data.len().min(CHUNK_BYTES))
}

// === impl Incoming ===

impl<'a> Incoming<'a> {
    pub(super) fn new(go: Option<oneshot::Sender<()>>, bar: &'a BlockBar, server: &'a str) -> Self {
        let (input_sent, key, data) = (go.is_none(), Bytes::new(), Vec::new());
        Self { go, bar, server, input_sent, key, preview: None, header: None, data }
    }

    /// Reads to the trailer, and checks length and digest.
    pub(super) async fn collect<M: ResponseMessage>(
        mut self,
        mut stream: Streaming<M>,
        began: Instant,
    ) -> anyhow::Result<Answer> {
        let mut trailer = None;
        let mut hasher = blake3::Hasher::new();
        while let Some(message) = stream.message().await.map_err(|status| failure::refused(self.server, &status))? {
            match message.event() {
                Some(Event::Chunk(chunk)) => {
                    hasher.update(&chunk);
                    self.take(&chunk)?;
                }
                Some(Event::Trailer(it)) => trailer = Some(it),
                Some(other) => self.note(other),
                // An event of a later version of the protocol.
                None => {}
            }
        }
        let took = began.elapsed();
        let Some(trailer) = trailer else { bail!("the answer ended before its trailer; try again") };
        let Some(header) = self.header else { bail!("the answer has no header; is the server of another version?") };
        let (want, got) = (header.length, self.data.len() as u64);
        ensure!(want == got, "the answer is not whole: {got} of {want} bytes came; try again");
        ensure!(
            hasher.finalize().as_bytes()[..] == trailer.digest[..],
            "the answer was damaged on its way: its digest is another; try again"
        );
        Ok(Answer {
            key: self.key,
            source: trailer.source(),
            header,
            data: self.data.into(),
            timings: trailer.timings.unwrap_or_default(),
            preview: self.preview,
            took,
            input_sent: self.input_sent,
        })
    }

    fn take(&mut self, chunk: &[u8]) -> anyhow::Result<()> {
        let Some(header) = &self.header else { bail!("the answer has bytes before its header") };
        let got = (self.data.len() + chunk.len()) as u64;
        ensure!(got <= header.length, "the answer is longer than the {} bytes it announced", header.length);
        self.data.extend_from_slice(chunk);
        Ok(())
    }

    fn note(&mut self, event: Event) {
        match event {
            Event::NeedData(_) => {
                self.input_sent = true;
                if let Some(go) = self.go.take() {
                    // The request stream is gone only if the call is, whose status comes next.
                    let _ = go.send(());
                }
            }
            Event::Accepted(accepted) => self.key = accepted.content_key,
            Event::Progress(progress) => self.bar.at(progress),
            Event::Preview(preview) => self.preview = Some(preview.jpeg),
            Event::Header(header) => {
                self.data.reserve(header.length.min(TRUSTED_BYTES) as usize);
                self.header = Some(header);
            }
            Event::Chunk(_) | Event::Trailer(_) => unreachable!("taken by the caller"),
        }
    }
}

// === impl BlockBar ===

impl BlockBar {
    /// A bar on standard error, if that is a terminal.
    pub(in crate::cli) fn on_terminal() -> Self {
        if !std::io::stderr().is_terminal() {
            return Self::hidden();
        }
        let bar = ProgressBar::new(1);
        if let Ok(style) = ProgressStyle::with_template("computing {bar:32} {pos}/{len} blocks {elapsed}") {
            bar.set_style(style);
        }
        Self(Some(bar))
    }

    /// No bar.
    pub(in crate::cli) fn hidden() -> Self {
        Self(None)
    }

    pub(super) fn is_shown(&self) -> bool {
        self.0.is_some()
    }

    fn at(&self, progress: proto::Progress) {
        if let Some(bar) = &self.0 {
            bar.set_length(u64::from(progress.total));
            bar.set_position(u64::from(progress.done));
        }
    }

    /// Takes the bar off the screen.
    pub(super) fn clear(&self) {
        if let Some(bar) = &self.0 {
            bar.finish_and_clear();
        }
    }
}

#[cfg(test)]
mod tests;
