//! One exchange, from an admitted spec to the last frame of its answer.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::{Stream, StreamExt as _};
use http_body::Frame;
use tokio::time::Instant;
use tonic::body::Body;
use tracing::Instrument as _;

use super::{
    Response, convert,
    convert::RequestMessage,
    framing::{self, CHUNK_BYTES},
    input::{Input, STEP_BYTES},
};
use crate::{
    admission::Permit,
    body::Seal,
    cache::alias::InputDigest,
    deadline::Deadline,
    error::{Error, ErrorKind},
    front::{
        lease::{Lease, Leases, TakenBack, Terms},
        record::{Record, Stage},
        status,
    },
    hops::Hops,
    job::{CachePolicy, Checked},
    meta::Meta,
    metrics::Outcome,
    pipeline::{Pipeline, Reply, Request},
    progress::Progress,
    proto::{self, decode_response::Event},
};

const NOT_KNOWN: &str = "only-if-cached: no answer to such an input is kept under this digest; with the input itself it \
                         may be found under another spelling";

/// A request that was admitted, before its input was read.
pub(super) struct Exchange<M> {
    pub(super) pipeline: Pipeline,
    pub(super) deadline: Deadline,
    pub(super) stall: Duration,
    pub(super) input: Input<M>,
    pub(super) checked: Checked,
    pub(super) policy: CachePolicy,
    pub(super) claimed: Option<InputDigest>,
    pub(super) wants: proto::Wants,
    pub(super) permit: Permit,
    pub(super) hops: Hops,
    pub(super) leases: Leases,
}

/// The frames of a response, in order. Failures are frames too: trailers.
type Frames = std::pin::Pin<Box<dyn Stream<Item = Frame<Bytes>> + Send>>;

/// A reply and what is told beside it.
struct Answer {
    reply: Reply,
    wants: proto::Wants,
    deadline: Deadline,
    record: Record,
    received_at: Instant,
}

impl<M: RequestMessage> Exchange<M> {
    /// Answers; the head comes when the request is accepted, has failed, or needs data.
    pub(super) async fn respond(self, mut record: Record) -> Response {
        let (deadline, wants, leases) = (self.deadline, self.wants, self.leases.clone());
        let (stall, overdue) = (self.stall, record.overdue());
        let stream = |frames: Frames| {
            let terms = Terms { deadline, stall, overdue, taken_back: TakenBack::Trailers };
            respond(leases.lease(Box::pin(frames.map(Ok)), terms))
        };
        if let (Some(claimed), false) = (self.claimed, self.input.has_data()) {
            record.enter(Stage::Lookup);
            let found = self.pipeline.find(&self.checked, &claimed, self.policy, self.permit);
            return match deadline.bound("looking the answer up", async { Ok(found.await) }).await {
                Ok(Ok(reply)) => stream(Box::pin(Answer::new(reply, wants, deadline, record).frames())),
                Ok(Err(permit)) => stream(Box::pin(Exchange { permit, ..self }.ask_for_data(record))),
                Err(error) => {
                    record.failed(&error);
                    status::grpc(&error).into_http()
                }
            };
        }
        match self.serve(&mut record).await {
            Ok(reply) => stream(Box::pin(Answer::new(reply, wants, deadline, record).frames())),
            Err(error) => {
                record.failed(&error);
                status::grpc(&error).into_http()
            }
        }
    }

    /// Digest first, and not found: the response opens with `need_data`.
    fn ask_for_data(self, mut record: Record) -> impl Stream<Item = Frame<Bytes>> {
        async_stream::stream! {
            let (deadline, wants, span) = (self.deadline, self.wants, record.span());
            record.enter(Stage::Receive);
            yield Frame::data(framing::event(Event::NeedData(proto::NeedData {})));
            match self.serve_asked(&mut record).instrument(span).await {
                Ok(reply) => {
                    let frames = Answer::new(reply, wants, deadline, record).frames();
                    for await frame in frames {
                        yield frame;
                    }
                }
                Err(error) => {
                    record.failed(&error);
                    yield status::trailers(Err(&error));
                }
            }
        }
    }

    /// After `need_data`: a client that has yet to speak holds no place of those that have; it is admitted again with its
    /// first data.
    async fn serve_asked(self, record: &mut Record) -> Result<Reply, Error> {
        let Self { pipeline, deadline, mut input, permit, .. } = self;
        drop(permit);
        let has_data = deadline.bound("waiting for the data", input.wait()).await?;
        // The question of a client that has only a digest, and wants no more than what is kept.
        if !has_data && self.policy == CachePolicy::OnlyIfCached {
            return Err(Error::new(ErrorKind::NotCached, NOT_KNOWN));
        }
        let permit = pipeline.admit()?;
        Self { pipeline, input, permit, ..self }.serve(record).await
    }

    /// Reads the input and hands it to the pipeline.
    async fn serve(self, record: &mut Record) -> Result<Reply, Error> {
        let Self { pipeline, deadline, input, checked, policy, claimed, permit, hops, .. } = self;
        let want = checked.input_bytes();
        let mut held = pipeline.reserve(want.min(STEP_BYTES))?;
        let (data, digest) = deadline.bound("reading the input", input.read(want, &mut held)).await?;
        record.received(want);
        if claimed.is_some_and(|claimed| claimed != digest) {
            return Err(Error::bad_request("digest", "the data do not have the digest that the spec claims"));
        }
        record.enter(Stage::Lookup);
        let request = Request { checked, data, digest, policy, permit, held, hops };
        deadline.bound("looking the answer up", pipeline.serve(request)).await
    }
}

/// The head of a response whose frames follow.
fn respond(body: Lease) -> Response {
    let mut response = Response::new(Body::new(body));
    response.headers_mut().insert(http::header::CONTENT_TYPE, http::HeaderValue::from_static("application/grpc"));
    response
}

/// Small frames that wait for the next one. A frame of its own costs each side about as much as some KiB of payload.
struct Ahead {
    /// None where every frame goes at once.
    waiting: Option<BytesMut>,
}

/// Up to this much is copied behind what waits, so that the whole of a small answer is one frame; what is larger is sent
/// from where it lies.
const COPIED_BYTES: usize = 64 << 10;

impl Ahead {
    fn new(waits: bool) -> Self {
        Self { waiting: waits.then(BytesMut::new) }
    }

    /// A message that may wait.
    fn small(&mut self, message: Bytes) -> Option<Frame<Bytes>> {
        match &mut self.waiting {
            None => Some(Frame::data(message)),
            Some(waiting) => {
                waiting.extend_from_slice(&message);
                None
            }
        }
    }

    /// A chunk and what waits before it: frames to be sent now.
    fn chunk(&mut self, chunk: Bytes) -> impl Iterator<Item = Frame<Bytes>> + use<> {
        let head = framing::chunk_head(chunk.len());
        let frames = match &mut self.waiting {
            None => [Some(head), Some(chunk)],
            Some(waiting) => {
                waiting.extend_from_slice(&head);
                if waiting.len() + chunk.len() <= COPIED_BYTES {
                    waiting.extend_from_slice(&chunk);
                    [None, None]
                } else {
                    [Some(waiting.split().freeze()), Some(chunk)]
                }
            }
        };
        frames.into_iter().flatten().map(Frame::data)
    }

    /// What waits and the last message, in one.
    fn last(self, message: &[u8]) -> Frame<Bytes> {
        let mut waiting = self.waiting.unwrap_or_default();
        waiting.extend_from_slice(message);
        Frame::data(waiting.freeze())
    }
}

impl Answer {
    fn new(reply: Reply, wants: proto::Wants, deadline: Deadline, mut record: Record) -> Self {
        record.accepted(reply.key, reply.outcome());
        record.enter(Stage::Wait);
        Self { reply, wants, deadline, record, received_at: Instant::now() }
    }

    /// accepted, progress and preview, header, chunks, trailer; or the status of what went wrong, at whatever point.
    fn frames(mut self) -> impl Stream<Item = Frame<Bytes>> + Send {
        async_stream::stream! {
            // Of an answer that is there nothing is waited for, so the small messages travel with what follows them.
            let mut ahead = Ahead::new(self.reply.outcome() == Outcome::HitMemory);
            if let Some(frame) = ahead.small(self.accepted()) {
                yield frame;
            }
            if let Some(preview) = self.preview().await {
                yield Frame::data(preview);
            }
            while let Some(progress) = self.progress().await {
                yield Frame::data(progress);
            }
            let meta = match self.deadline.bound("waiting for the answer", self.reply.reader.meta()).await {
                Ok(meta) => meta,
                Err(error) => {
                    self.record.failed(&error);
                    yield status::trailers(Err(&error));
                    return;
                }
            };
            self.record.accepted(self.reply.key, self.reply.outcome());
            self.record.begins(&meta);
            if let Some(frame) = ahead.small(framing::event(Event::Header(convert::header(&meta)))) {
                yield frame;
            }
            loop {
                match self.deadline.bound("sending the answer", self.reply.reader.next()).await {
                    Ok(Some(mut slice)) => while !slice.is_empty() {
                        let chunk = slice.split_to(slice.len().min(CHUNK_BYTES));
                        self.record.sent(chunk.len());
                        for frame in ahead.chunk(chunk) {
                            yield frame;
                        }
                    },
                    Ok(None) => break,
                    Err(error) => {
                        self.record.failed(&error);
                        yield status::trailers(Err(&error));
                        return;
                    }
                }
            }
            match self.reply.reader.seal().await {
                Ok(seal) => {
                    yield ahead.last(&self.trailer(&meta, &seal));
                    self.record.done();
                    yield status::trailers(Ok(()));
                }
                Err(error) => {
                    self.record.failed(&error);
                    yield status::trailers(Err(&error));
                }
            }
        }
    }

    fn accepted(&self) -> Bytes {
        let content_key = Bytes::copy_from_slice(self.reply.key.as_bytes());
        let source = convert::source(self.reply.outcome()) as i32;
        framing::event(Event::Accepted(proto::Accepted { content_key, source }))
    }

    async fn preview(&self) -> Option<Bytes> {
        if !self.wants.preview {
            return None;
        }
        let preview = self.reply.preview().await?;
        let (jpeg, width, height) = (preview.jpeg, preview.width, preview.height);
        Some(framing::event(Event::Preview(proto::Preview { jpeg, width, height })))
    }

    /// The next progress message; `None` once there are no more, or the answer begins.
    async fn progress(&mut self) -> Option<Bytes> {
        if !self.wants.progress {
            return None;
        }
        let watched = self.reply.progress.as_mut()?;
        let changed = async { watched.changed().await.ok().map(|()| *watched.borrow_and_update()) };
        let meta = self.reply.reader.meta();
        let news = async {
            tokio::select! {
                biased;
                _ = meta => Ok(None),
                progress = changed => Ok(progress),
            }
        };
        // A deadline that passes here is met again, and told, where the metadata is awaited.
        let Progress { done, total } = self.deadline.bound("computing", news).await.ok().flatten()?;
        Some(framing::event(Event::Progress(proto::Progress { done, total })))
    }

    fn trailer(&self, meta: &Meta, seal: &Seal) -> Bytes {
        let us = |duration: Duration| duration.as_micros() as u64;
        let (began, made) = (self.record.began(), &meta.provenance);
        let is_hit = self.reply.outcome().is_hit();
        let of_run = |duration| if is_hit { 0 } else { us(duration) };
        let received = self.received_at.duration_since(began);
        let timings = proto::Timings {
            receive_us: us(received),
            first_byte_us: us(self.record.first_byte().saturating_sub(received)),
            total_us: us(began.elapsed()),
            queue_us: of_run(made.queued),
            compute_us: of_run(made.computed),
            render_us: of_run(made.rendered),
        };
        let trailer = proto::Trailer {
            digest: Bytes::copy_from_slice(&seal.digest),
            source: convert::source(self.reply.outcome()) as i32,
            timings: Some(timings),
        };
        framing::event(Event::Trailer(trailer))
    }
}
