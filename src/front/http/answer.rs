//! The response: its head from the metadata, its body slice by slice as the answer is made.

use std::{fmt::Write as _, time::Duration};

use axum::body::Body;
use bytes::{Bytes, BytesMut};
use futures_util::Stream;
use http::{HeaderName, HeaderValue, Response, header};
use http_body::Frame;

use crate::{
    deadline::Deadline,
    error::Error,
    front::{
        lease::{Frames, Leases, TakenBack, Terms},
        record::Record,
        status,
    },
    hf::{self, Accept, Base64Reply, ReplyHead, Representation},
    job::CachePolicy,
    meta::{ContentType, Meta},
    metrics::Outcome,
    pipeline::Reply,
};

/// RFC 9211: what the cache did.
const CACHE_STATUS: HeaderName = HeaderName::from_static("cache-status");
/// The content key, 64 hex digits.
const KEY: HeaderName = HeaderName::from_static("latentgate-key");
/// Where the time went, for the tools of browsers.
const SERVER_TIMING: HeaderName = HeaderName::from_static("server-timing");

/// A head has no more headers than this, hyper's own included.
const HEADERS: usize = 8;

/// Payload bytes encoded to base64 at a time; a multiple of three.
const BASE64_STEP: usize = 3 << 18;

/// What a client wants of an answer beside its bytes.
#[derive(Clone, Copy)]
pub(super) struct Wishes {
    pub(super) accept: Accept,
    pub(super) representation: Representation,
    pub(super) policy: CachePolicy,
}

/// A reply on its way to a client.
pub(super) struct Answer {
    reply: Reply,
    meta: Meta,
    wishes: Wishes,
    deadline: Deadline,
    stall: Duration,
    /// From the request's first byte to the job.
    received: Duration,
}

impl Answer {
    /// Waits until the answer begins: until then, what goes wrong has a status.
    pub(super) async fn begin(
        mut reply: Reply,
        wishes: Wishes,
        (deadline, stall): (Deadline, Duration),
        record: &mut Record,
    ) -> Result<Self, Error> {
        let received = record.began().elapsed();
        let meta = deadline.bound("waiting for the answer", reply.reader.meta()).await?;
        // By now it is known where it comes from.
        record.accepted(reply.key, reply.outcome());
        record.begins(&meta);
        Ok(Self { reply, meta, wishes, deadline, stall, received })
    }

    pub(super) fn respond(self, leases: &Leases, mut record: Record) -> Response<Body> {
        let head = match self.head() {
            Ok(head) => head,
            Err(error) => {
                record.failed(&error);
                return status::http(&error);
            }
        };
        let (deadline, stall, overdue) = (self.deadline, self.stall, record.overdue());
        let terms = Terms { deadline, stall, overdue, taken_back: TakenBack::BrokenOff };
        let frames: Frames = match self.wishes.representation {
            Representation::Raw => Box::pin(self.frames(record)),
            Representation::Base64 => Box::pin(self.base64_frames(record)),
        };
        head.map(|()| Body::new(leases.lease(frames, terms)))
    }

    fn head(&self) -> Result<Response<()>, Error> {
        let (meta, outcome) = (&self.meta, self.reply.outcome());
        let mut head = Response::new(());
        let headers = head.headers_mut();
        headers.reserve(HEADERS);
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(self.content_type()));
        headers.insert(header::CONTENT_LENGTH, HeaderValue::from(self.length()));
        if meta.content_type == ContentType::Tensor {
            let tensor = reply_head(meta);
            headers.insert(hf::SHAPE_HEADER, value(&tensor.shape_value())?);
            headers.insert(hf::DTYPE_HEADER, HeaderValue::from_static(tensor.dtype.name()));
        }
        headers.insert(CACHE_STATUS, cache_status(outcome, self.wishes.policy, meta)?);
        headers.insert(KEY, value(&self.reply.key.to_string())?);
        headers.insert(SERVER_TIMING, value(&timing(self.received, outcome, meta))?);
        Ok(head)
    }

    fn content_type(&self) -> &'static str {
        match (self.meta.content_type, self.wishes.representation, self.wishes.accept) {
            (ContentType::Tensor, Representation::Raw, _) => hf::TENSOR_BINARY,
            (ContentType::Tensor, Representation::Base64, _) => hf::TENSOR_BASE64,
            (ContentType::Mp4, _, Accept::Text) => hf::TEXT_PLAIN,
            (other, ..) => other.name(),
        }
    }

    fn length(&self) -> u64 {
        match self.wishes.representation {
            Representation::Raw => self.meta.length,
            Representation::Base64 => Base64Reply::of(&reply_head(&self.meta)).length(self.meta.length),
        }
    }

    /// The bytes, as slices of the artifact. A body has no trailer: its length is what tells a client that it is whole, so
    /// the slice that completes the length waits for the seal. What turns out bad at its very end never looks whole.
    fn frames(self, mut record: Record) -> impl Stream<Item = Result<Frame<Bytes>, Error>> + Send {
        async_stream::stream! {
            // The whole of it moves in: permit and waiter live as long as the body, not as long as the fields used below.
            let mut answer = self;
            let (mut left, mut last) = (answer.meta.length, None);
            loop {
                match answer.deadline.bound("sending the answer", answer.reply.reader.next()).await {
                    Ok(Some(slice)) => {
                        left = left.saturating_sub(slice.len() as u64);
                        if left == 0 {
                            last = Some(slice);
                            continue;
                        }
                        record.sent(slice.len());
                        yield Ok(Frame::data(slice));
                    }
                    Ok(None) => {
                        record.done();
                        if let Some(slice) = last.take() {
                            record.sent(slice.len());
                            yield Ok(Frame::data(slice));
                        }
                        break;
                    }
                    Err(error) => {
                        record.failed(&error);
                        yield Err(error);
                        break;
                    }
                }
            }
        }
    }

    /// The same bytes, as base64 in JSON.
    fn base64_frames(self, record: Record) -> impl Stream<Item = Result<Frame<Bytes>, Error>> + Send {
        let reply = Base64Reply::of(&reply_head(&self.meta));
        let raw = self.frames(record);
        async_stream::stream! {
            yield Ok(Frame::data(Bytes::from_static(Base64Reply::BEFORE.as_bytes())));
            let mut rest = BytesMut::new();
            for await frame in raw {
                match frame.map(Frame::into_data) {
                    Ok(Ok(data)) => rest.extend_from_slice(&data),
                    Ok(Err(_)) => {}
                    Err(error) => {
                        yield Err(error);
                        return;
                    }
                }
                while rest.len() >= BASE64_STEP {
                    yield Ok(Frame::data(Base64Reply::encode(&rest.split_to(BASE64_STEP)).into()));
                }
            }
            yield Ok(Frame::data(Base64Reply::encode(&rest).into()));
            yield Ok(Frame::data(reply.after().to_owned().into()));
        }
    }
}

fn reply_head(meta: &Meta) -> ReplyHead {
    ReplyHead { dtype: meta.dtype, shape: meta.shape.clone() }
}

fn cache_status(outcome: Outcome, policy: CachePolicy, meta: &Meta) -> Result<HeaderValue, Error> {
    let forwarded = if policy == CachePolicy::Bypass { "fwd=request" } else { "fwd=miss" };
    let stored = if policy == CachePolicy::NoStore { "" } else { "; stored" };
    let text = match outcome {
        Outcome::HitMemory => return Ok(HeaderValue::from_static("latentgate; hit; detail=memory")),
        Outcome::HitDisk => return Ok(HeaderValue::from_static("latentgate; hit; detail=disk")),
        // Not the answer that was asked for, and no endpoint was asked: a hit of a variant, in RFC 9211's own words.
        Outcome::Derived => format!("latentgate; hit{stored}; detail=derived"),
        Outcome::Coalesced => format!("latentgate; {forwarded}; collapsed; detail={}", meta.provenance.backend),
        Outcome::Computed | Outcome::Error => {
            format!("latentgate; {forwarded}{stored}; detail={}", meta.provenance.backend)
        }
    };
    value(&text)
}

/// `Server-Timing`: receiving the input, and what the run took if there was one.
fn timing(received: Duration, outcome: Outcome, meta: &Meta) -> String {
    let mut text = String::with_capacity(96);
    // Milliseconds in whole numbers: those of floating point take longer to print than the rest of a hit's head.
    let mut entry = |name: &str, took: Duration| {
        let (comma, micros) = (if text.is_empty() { "" } else { ", " }, took.as_micros());
        let _ = write!(text, "{comma}{name};dur={}.{:03}", micros / 1000, micros % 1000);
    };
    entry("receive", received);
    if !outcome.is_hit() {
        let made = &meta.provenance;
        for (name, took) in [("queue", made.queued), ("compute", made.computed), ("render", made.rendered)] {
            entry(name, took);
        }
    }
    text
}

fn value(text: &str) -> Result<HeaderValue, Error> {
    HeaderValue::from_str(text).map_err(|error| Error::internal("a header of ours is none").caused_by(error))
}
