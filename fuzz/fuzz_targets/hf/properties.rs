//! What holds of the parsers of the HTTP protocol for any bytes at all.
//!
//! An input is three lines and a rest: query, `Accept`, `Content-Type`, body; an empty line is a header that is absent.
//! So the seeds are text that people can read. Nothing panics; what is accepted survives being written and read again;
//! what is refused is the client's fault and says so briefly; and no decode or encode gets past the limits.

use std::sync::LazyLock;

use latentgate::{
    error::{Error, ErrorKind},
    hf::{Accept, Base64Reply, BodyForm, Envelope, Parameters, ReplyHead, error_body, error_text},
    job::{Limits, Spec},
    model::ModelTable,
    tensor::DType,
};

/// A server's, by default.
const LIMITS: Limits = Limits { max_pixels: 4 * 2048 * 2048, max_batch: 16, max_input_bytes: 256 << 20 };

/// Inputs up to this are made up and read: larger ones would only make it slow.
const MOST_READ_BYTES: u64 = 4096;

/// No refusal repeats what came at length: forty characters, each of at most ten when they are escaped, and some words.
const MOST_MESSAGE_BYTES: usize = 600;

/// What an error of an endpoint is cut to.
const MOST_TEXT_CHARS: usize = 300;

static MODELS: LazyLock<ModelTable> = LazyLock::new(ModelTable::known);

/// Checks everything on one input.
pub(crate) fn hold(input: &[u8]) {
    let mut parts = input.splitn(4, |&byte| byte == b'\n');
    let mut part = || parts.next().unwrap_or_default();
    let [query, accept, content_type] = [part(), part(), part()].map(String::from_utf8_lossy);
    let body = part();

    refusable(BodyForm::parse(given(&content_type)));
    let accept = refusable(Accept::parse(given(&accept)));
    if let Some(accept) = accept {
        assert_eq!(Accept::parse(Some(accept.name())).ok(), Some(accept), "an Accept by its own name");
    }
    head(&query, &content_type);
    error_texts(body);
    let told = refusable(Parameters::parse(&query));
    let envelope = refusable(Envelope::parse(body));
    let enveloped = envelope.and_then(|envelope| {
        assert!(envelope.inputs.len() <= body.len(), "base64 grew when it was read");
        refusable(Parameters::parse_with(&query, envelope.parameters))
    });
    for parameters in told.iter().chain(&enveloped) {
        assert_eq!(&Parameters::parse(&parameters.to_query()).expect("our own spelling"), parameters);
        specs(parameters, accept.unwrap_or(Accept::Any), body.len() as u64);
    }
}

/// A header's value, if it is there.
fn given(line: &str) -> Option<&str> {
    (!line.is_empty()).then_some(line)
}

/// What parsed, or a refusal as refusals are to be.
fn refusable<T>(parsed: Result<T, Error>) -> Option<T> {
    parsed
        .inspect_err(|error| {
            assert_ne!(error.kind(), ErrorKind::Internal, "{error}");
            assert!(error.message().len() <= MOST_MESSAGE_BYTES, "{} bytes: {error}", error.message().len());
        })
        .ok()
}

fn head(shape: &str, dtype: &str) {
    for dtype in [dtype].into_iter().chain(DType::ALL.map(DType::name)) {
        let Some(head) = refusable(ReplyHead::parse(shape, dtype)) else { continue };
        assert_eq!(ReplyHead::parse(&head.shape_value(), head.dtype.name()).expect("our own spelling"), head);
        let reply = Base64Reply::of(&head);
        let body = [Base64Reply::BEFORE, reply.after()].concat();
        assert_eq!(body.len() as u64, reply.length(0), "a reply's announced length");
        Envelope::parse(body.as_bytes()).expect("our own reply");
    }
}

fn error_texts(body: &[u8]) {
    let own = error_body(&String::from_utf8_lossy(body));
    let texts = [error_text(body), Some(error_text(&own).expect("our own failure"))];
    for text in texts.into_iter().flatten() {
        assert!(text.chars().count() <= MOST_TEXT_CHARS && !text.contains(char::is_control), "{text:?}");
        assert_eq!(error_text(&error_body(&text)), Some(text), "a text that is fit to be repeated stays as it is");
    }
}

/// What the parameters ask of every model, against the limits.
fn specs(parameters: &Parameters, accept: Accept, length: u64) {
    for model in MODELS.iter() {
        let name = model.id.as_str();
        if let Some((spec, _)) = refusable(parameters.decode(name, accept)) {
            check(Spec::Decode(spec));
        }
        for length in [length, LIMITS.max_input_bytes + 1, u64::MAX] {
            if let Some((spec, _)) = refusable(parameters.encode(name, accept, length)) {
                check(Spec::Encode(spec));
            }
        }
    }
}

/// A spec within the limits keeps what it promises: zeros of the announced length are a job, and its answer is known.
fn check(spec: Spec) {
    let Some(checked) = refusable(spec.check(&MODELS, &LIMITS)) else { return };
    let bytes = checked.input_bytes();
    assert!(bytes <= LIMITS.max_input_bytes, "{bytes} bytes of {:?}", checked.spec());
    let zeros = vec![0; bytes.min(MOST_READ_BYTES) as usize].into();
    if let Some(job) = refusable(checked.canonicalise(zeros)) {
        assert!(bytes <= MOST_READ_BYTES, "fewer bytes than announced were enough for {:?}", checked.spec());
        job.predicted().expect("what holds can be predicted");
    } else if bytes <= MOST_READ_BYTES {
        assert!(is_file(checked.spec()), "zeros are refused by {:?}", checked.spec());
    }
}

fn is_file(spec: &Spec) -> bool {
    matches!(spec, Spec::Encode(encode) if matches!(encode.input, latentgate::job::EncodeInput::Image { .. }))
}
