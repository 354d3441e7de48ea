//! What a request asks for: from its head to a checked spec with its input.

use bytes::Bytes;
use http::{HeaderMap, header, request::Parts};

use super::{input::Input, policy};
use crate::{
    admission::Reservation,
    cache::alias::InputDigest,
    error::{Error, ErrorKind},
    front::intake::Length,
    hf::{Accept, BodyForm, Envelope, Parameters, Representation},
    job::{CachePolicy, Checked, Spec},
    model::Task,
    pipeline::Pipeline,
    task,
};

/// The head of a request.
pub(super) struct Head<'a> {
    task: Task,
    model: &'a str,
    query: &'a str,
    parameters: Parameters,
    form: BodyForm,
    /// What the client says of its body's length.
    length: Option<u64>,
    pub(super) accept: Accept,
    pub(super) policy: CachePolicy,
}

/// An input, read.
pub(super) struct Read {
    pub(super) data: Bytes,
    pub(super) digest: InputDigest,
    pub(super) held: Reservation,
}

/// Envelopes below this are read on the async thread: it takes less time than handing them over.
const INLINE_BYTES: usize = 64 << 10;

impl<'a> Head<'a> {
    /// Reads the query and the headers.
    pub(super) fn parse(task: Task, model: &'a str, parts: &'a Parts) -> Result<Self, Error> {
        let query = parts.uri.query().unwrap_or_default();
        let parameters = Parameters::parse(query)?;
        let accept = Accept::parse(text(&parts.headers, header::ACCEPT, "accept")?)?;
        let form = BodyForm::parse(text(&parts.headers, header::CONTENT_TYPE, "content-type")?)?;
        // hyper has judged it: digits, and the only one.
        let length = parts.headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse().ok());
        Ok(Self { task, model, query, parameters, form, length, accept, policy: policy::of(&parts.headers) })
    }

    /// Judges what is asked, then reads the body. What the head alone shows to be wrong is refused before that.
    pub(super) async fn read(
        &self,
        pipeline: &Pipeline,
        input: &mut Input,
    ) -> Result<(Checked, Representation, Read), Error> {
        match self.form {
            BodyForm::Raw => self.read_raw(pipeline, input).await,
            BodyForm::Envelope => self.read_envelope(pipeline, input).await,
        }
    }

    async fn read_raw(&self, pipeline: &Pipeline, input: &mut Input) -> Result<(Checked, Representation, Read), Error> {
        // A picture file is as long as it is: without a length said, that is known at its end.
        let is_picture = self.task == Task::Encode && self.parameters.shape.is_none();
        let open_end = is_picture && self.length.is_none();
        let (checked, representation) = self.check(pipeline, &self.parameters, self.length.unwrap_or(1))?;
        let want = checked.input_bytes();
        if let Some(said) = self.length.filter(|said| *said != want) {
            return Err(Error::bad_request("data", format!("wanted {want} bytes, Content-Length says {said}")));
        }
        let length = if open_end { Length::AtMost(pipeline.limits().max_input_bytes) } else { Length::Exactly(want) };
        let mut held = pipeline.reserve(0)?;
        let (data, digest) = input.read(length, &mut held).await?;
        let (checked, representation) = if open_end {
            self.check(pipeline, &self.parameters, data.len() as u64)?
        } else {
            (checked, representation)
        };
        Ok((checked, representation, Read { data, digest, held }))
    }

    async fn read_envelope(
        &self,
        pipeline: &Pipeline,
        input: &mut Input,
    ) -> Result<(Checked, Representation, Read), Error> {
        // The envelope may hold the parameters too; where the query has them, they bound it.
        let max = pipeline.limits().max_input_bytes;
        let is_told = self.parameters.shape.is_some() && self.parameters.dtype.is_some();
        let most = if is_told { self.check(pipeline, &self.parameters, max)?.0.input_bytes() } else { max };
        let most = Envelope::most_bytes(most);
        if let Some(said) = self.length.filter(|said| *said > most) {
            let message = format!("at most {most} bytes make sense here, Content-Length says {said}");
            return Err(Error::field(ErrorKind::TooLarge, "data", message));
        }
        let mut held = pipeline.reserve(0)?;
        let (body, _) = input.read(Length::AtMost(most), &mut held).await?;
        held.grow_to(body.len() as u64 * 2)?;
        let (Envelope { inputs: data, parameters }, digest) = opened(body).await?;
        let parameters = Parameters::parse_with(self.query, parameters)?;
        let (checked, representation) = self.check(pipeline, &parameters, data.len() as u64)?;
        Ok((checked, representation, Read { data, digest, held }))
    }

    fn check(
        &self,
        pipeline: &Pipeline,
        parameters: &Parameters,
        length: u64,
    ) -> Result<(Checked, Representation), Error> {
        let (spec, representation) = match self.task {
            Task::Decode => {
                let (spec, representation) = parameters.decode(self.model, self.accept)?;
                (Spec::Decode(spec), representation)
            }
            Task::Encode => {
                let (spec, representation) = parameters.encode(self.model, self.accept, length)?;
                (Spec::Encode(spec), representation)
            }
        };
        Ok((pipeline.check(spec)?, representation))
    }
}

/// What is in an envelope, and its digest.
async fn opened(body: Bytes) -> Result<(Envelope, InputDigest), Error> {
    let is_small = body.len() <= INLINE_BYTES;
    let open = move || {
        let envelope = Envelope::parse(&body)?;
        let digest = *blake3::hash(&envelope.inputs).as_bytes();
        Ok((envelope, digest))
    };
    if is_small {
        return open();
    }
    let opened = task::blocking(open).await;
    opened.map_err(|panic| Error::internal("reading the body panicked").caused_by(panic))?
}

/// A header's text. Given twice, the first counts, as in most servers.
fn text<'a>(headers: &'a HeaderMap, name: header::HeaderName, field: &'static str) -> Result<Option<&'a str>, Error> {
    let value = headers.get(name).map(|value| value.to_str());
    value.transpose().map_err(|_| Error::bad_request(field, "not readable"))
}
