//! JSON bodies: a tensor or a picture as base64 in `inputs`, and errors.

use std::borrow::Cow;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use serde::Deserialize;
use serde_json::{Value, error::Category, json, value::RawValue};

use super::ReplyHead;
use crate::error::Error;

/// JSON around the base64 of a request: the braces, the parameters, white space.
const ROOM_BYTES: u64 = 4096;

/// What an error's text is cut to when it is repeated.
const MAX_TEXT: usize = 300;

/// A request's JSON body, read.
#[derive(Debug, PartialEq, Eq)]
pub struct Envelope {
    /// The bytes of `inputs`.
    pub inputs: Bytes,
    /// What `parameters` adds to the query, lists as repeated keys.
    pub parameters: Vec<(String, String)>,
}

/// The JSON around a tensor's answer. Its base64 is written in between as the bytes come.
#[derive(Clone, Debug)]
pub struct Base64Reply {
    after: String,
}

#[derive(Deserialize)]
struct Text<'a> {
    #[serde(borrow)]
    inputs: Option<Base64<'a>>,
    /// As it stands there: what it would become can be fifty times as large.
    #[serde(borrow)]
    parameters: Option<&'a RawValue>,
}

/// A type of its own because serde borrows no `Cow` in an `Option`.
#[derive(Deserialize)]
#[serde(transparent)]
struct Base64<'a>(#[serde(borrow)] Cow<'a, str>);

// === impl Envelope ===

impl Envelope {
    /// Bytes that the JSON of `input` bytes may have.
    pub const fn most_bytes(input: u64) -> u64 {
        input.div_ceil(3).saturating_mul(4).saturating_add(ROOM_BYTES)
    }

    /// Reads a body. Works through every byte: off the async threads for anything large.
    pub fn parse(body: &[u8]) -> Result<Self, Error> {
        let text: Text<'_> = serde_json::from_slice(body)
            .map_err(|error| unreadable("body", &error, "an object whose `inputs` is a string"))?;
        let Base64(inputs) = text.inputs.ok_or_else(|| Error::bad_request("inputs", "the body needs to provide it"))?;
        let inputs = STANDARD
            .decode(inputs.as_bytes())
            .map_err(|error| Error::bad_request("inputs", format!("not base64: {error}")))?;
        let parameters = text.parameters.map(parameters).transpose()?.unwrap_or_default();
        Ok(Self { inputs: inputs.into(), parameters: parameters.iter().flat_map(pairs).collect() })
    }
}

fn parameters(raw: &RawValue) -> Result<serde_json::Map<String, Value>, Error> {
    let length = raw.get().len();
    if length as u64 > ROOM_BYTES {
        return Err(Error::bad_request("parameters", format!("{length} bytes, at most {ROOM_BYTES} make sense")));
    }
    serde_json::from_str(raw.get()).map_err(|error| unreadable("parameters", &error, "an object"))
}

/// Where it is not the JSON that was wanted. Values of a wrong type are not repeated, as serde's own text would: they
/// may be the payload.
fn unreadable(field: &'static str, error: &serde_json::Error, wanted: &str) -> Error {
    let (line, column) = (error.line(), error.column());
    match error.classify() {
        Category::Data => Error::bad_request(field, format!("wanted {wanted}; not so at line {line} column {column}")),
        Category::Syntax | Category::Eof | Category::Io => Error::bad_request(field, format!("not JSON: {error}")),
    }
}

/// One parameter as the query would spell it.
fn pairs((key, value): (&String, &Value)) -> Vec<(String, String)> {
    let spelled = |value: &Value| match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    match value {
        Value::Array(values) => values.iter().map(|value| (key.clone(), spelled(value))).collect(),
        value => vec![(key.clone(), spelled(value))],
    }
}

// === impl Base64Reply ===

impl Base64Reply {
    /// What stands before the base64.
    pub const BEFORE: &str = "{\"inputs\":\"";

    /// The reply of a tensor.
    pub fn of(head: &ReplyHead) -> Self {
        let (shape, dtype) = (&head.shape, head.dtype);
        Self { after: format!("\",\"parameters\":{{\"shape\":{shape},\"dtype\":\"{dtype}\"}}}}") }
    }

    /// What stands after it.
    pub fn after(&self) -> &str {
        &self.after
    }

    /// Bytes in all, for a tensor of `length` bytes.
    pub fn length(&self, length: u64) -> u64 {
        Self::BEFORE.len() as u64 + length.div_ceil(3) * 4 + self.after.len() as u64
    }

    /// The base64 of a piece. Every piece but the last must be a multiple of three bytes long.
    pub fn encode(piece: &[u8]) -> String {
        STANDARD.encode(piece)
    }
}

/// The body of a failure.
pub fn error_body(message: &str) -> Bytes {
    json!({ "error": message }).to_string().into()
}

/// The text of a failure's body, fit to be repeated: short, on one line; none if it is not the protocol's JSON.
pub fn error_text(body: &[u8]) -> Option<String> {
    let value: Value = serde_json::from_slice(body).ok()?;
    let text = value.get("error")?.as_str()?;
    let printable = |c: char| if c.is_control() { ' ' } else { c };
    Some(text.chars().map(printable).take(MAX_TEXT).collect())
}
