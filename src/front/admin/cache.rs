//! Cache administration over plain HTTP and JSON, for curl and scripts: what gRPC's `CacheAdmin` does, without progress.
//!
//! ```text
//! GET  /cache                           how full each tier is
//! GET  /cache/entries?model=&limit=     what is kept
//! GET  /cache/entries/KEY               the bytes of one artifact
//! POST /cache/purge                     {"model": .., "key": .., "older_than": "7d", "all": true}
//! POST /cache/verify?repair=true        proves everything on disk
//! ```
//!
//! Answers are whole before they are sent, so they are bounded; only an artifact's bytes stream. Numbers are bytes,
//! milliseconds and counts. A client that hangs up stops the work behind its request.

use std::{collections::HashMap, time::Duration};

use axum::{
    Router,
    body::Body,
    extract::{Path, State},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use bytes::Bytes;
use http::{HeaderName, HeaderValue, Uri, header};
use serde::Deserialize;
use serde_json::{Value, json};

use super::status;
use crate::{
    error::Error,
    hf::{self, ReplyHead},
    inventory::{
        Fault, Finding, Given, Inventory, Item, Listing, Place, Purging, Repair, Selection, TierStats, Verifying, Wish,
    },
    key::ContentKey,
    meta::ContentType,
};

/// Entries in one listing, and findings in one verification, unless fewer are asked for. gRPC has no such bound.
const MOST: usize = 1000;

/// The content key, as on the data port.
const KEY: HeaderName = HeaderName::from_static("latentgate-key");

/// The body of a purge.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct PurgeBody {
    model: Option<String>,
    key: Option<String>,
    #[serde(with = "humantime_serde")]
    older_than: Option<Duration>,
    all: bool,
}

pub(super) fn router(inventory: Inventory) -> Router {
    Router::new()
        .route("/cache", get(stats))
        .route("/cache/entries", get(entries))
        .route("/cache/entries/{key}", get(entry))
        .route("/cache/purge", post(purge))
        .route("/cache/verify", post(verify))
        .with_state(inventory)
}

async fn stats(State(inventory): State<Inventory>) -> Response {
    json(&json!({ "tiers": inventory.stats().iter().map(tier).collect::<Vec<_>>() }))
}

async fn entries(State(inventory): State<Inventory>, uri: Uri) -> Response {
    answer(list(&inventory, &uri).await)
}

async fn entry(State(inventory): State<Inventory>, Path(digits): Path<String>) -> Response {
    let given = async { inventory.give(key(&digits)?).await };
    given.await.and_then(bytes).unwrap_or_else(|error| status::http(&error))
}

async fn purge(State(inventory): State<Inventory>, body: Bytes) -> Response {
    answer(purged(&inventory, &body).await)
}

async fn verify(State(inventory): State<Inventory>, uri: Uri) -> Response {
    answer(verified(&inventory, &uri).await)
}

async fn list(inventory: &Inventory, uri: &Uri) -> Result<Value, Error> {
    let query = query(uri, &["model", "limit"])?;
    let model = query.get("model").map_or("", String::as_str);
    let limit = match query.get("limit") {
        None => MOST,
        Some(text) => match text.parse() {
            Ok(limit @ 1..=MOST) => limit,
            _ => return Err(Error::bad_request("limit", format!("wanted 1 to {MOST}, got {text:?}"))),
        },
    };
    // One more shows whether there are more.
    let mut telling = inventory.list(Listing::try_new(model, Some(limit as u64 + 1))?)?;
    let mut entries = Vec::new();
    while let Some(told) = telling.next().await {
        entries.push(item(&told?));
    }
    let is_cut = entries.len() > limit;
    entries.truncate(limit);
    Ok(json!({ "entries": entries, "more": is_cut }))
}

async fn purged(inventory: &Inventory, body: &Bytes) -> Result<Value, Error> {
    let body: PurgeBody = serde_json::from_slice(body)
        .map_err(|error| Error::bad_request("body", format!("wanted JSON such as {{\"all\":true}}: {error}")))?;
    let key = body.key.as_deref().map(key).transpose()?;
    let wish = Wish { model: body.model, key, older_than: body.older_than, all: body.all };
    let mut telling = inventory.purge(Selection::try_from(wish)?)?;
    while let Some(told) = telling.next().await {
        if let Purging::Done(purged) = told? {
            return Ok(json!({
                "memory_entries": purged.memory,
                "queue_entries": purged.queue,
                "disk_entries": purged.disk,
                "disk_bytes": purged.disk_bytes,
                "left_entries": purged.left,
            }));
        }
    }
    Err(broken_off())
}

async fn verified(inventory: &Inventory, uri: &Uri) -> Result<Value, Error> {
    let query = query(uri, &["repair"])?;
    let repair = match query.get("repair").map(String::as_str) {
        None | Some("false") => Repair::Leave,
        Some("true") => Repair::Remove,
        Some(other) => return Err(Error::bad_request("repair", format!("wanted true or false, got {other:?}"))),
    };
    let mut telling = inventory.verify(repair)?;
    let mut findings = Vec::new();
    while let Some(told) = telling.next().await {
        match told? {
            Verifying::Finding(found) if findings.len() < MOST => findings.push(finding(&found)),
            // The totals count those beyond the bound, too.
            Verifying::Finding(_) | Verifying::Progress(_) => {}
            Verifying::Done(verified) => {
                return Ok(json!({
                    "entries": verified.entries,
                    "bytes": verified.bytes,
                    "damaged_entries": verified.damaged,
                    "unreadable_entries": verified.unreadable,
                    "gone_entries": verified.gone,
                    "removed_entries": verified.removed,
                    "took_ms": verified.took.as_millis() as u64,
                    "findings": findings,
                }));
            }
        }
    }
    Err(broken_off())
}

/// The bytes of an artifact, as they are read and proved. What breaks off is cut, and never ends as if it were whole.
fn bytes(mut given: Given) -> Result<Response, Error> {
    let Item { subject, meta, .. } = given.item.clone();
    let body = async_stream::stream! {
        loop {
            match given.next().await {
                Ok(Some(slice)) => yield Ok(slice),
                Ok(None) => return,
                Err(error) => {
                    yield Err(error);
                    return;
                }
            }
        }
    };
    let mut response = Response::new(Body::from_stream(body));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(meta.content_type.name()));
    headers.insert(header::CONTENT_LENGTH, HeaderValue::from(meta.length));
    headers.insert(KEY, value(&subject.key.to_string())?);
    if meta.content_type == ContentType::Tensor {
        let head = ReplyHead { dtype: meta.dtype, shape: meta.shape };
        headers.insert(hf::SHAPE_HEADER, value(&head.shape_value())?);
        headers.insert(hf::DTYPE_HEADER, HeaderValue::from_static(head.dtype.name()));
    }
    Ok(response)
}

fn answer(result: Result<Value, Error>) -> Response {
    result.map_or_else(|error| status::http(&error), |value| json(&value))
}

/// A line for a terminal, too.
pub(super) fn json(value: &Value) -> Response {
    ([(header::CONTENT_TYPE, "application/json")], format!("{value}\n")).into_response()
}

/// The words of a query, each known and there once.
fn query(uri: &Uri, known: &'static [&'static str]) -> Result<HashMap<String, String>, Error> {
    let mut words = HashMap::new();
    for (name, value) in form_urlencoded::parse(uri.query().unwrap_or_default().as_bytes()) {
        let is_new = words.insert(name.to_string(), value.into_owned()).is_none();
        if !known.contains(&&*name) || !is_new {
            return Err(Error::bad_request("query", format!("{name:?}: known are, once each, {}", known.join(", "))));
        }
    }
    Ok(words)
}

fn key(digits: &str) -> Result<ContentKey, Error> {
    let key = ContentKey::from_hex(&digits.to_ascii_lowercase());
    key.ok_or_else(|| Error::bad_request("key", "wanted the 64 hex digits of a content key"))
}

fn broken_off() -> Error {
    Error::internal("a sweep ended without its totals")
}

fn value(text: &str) -> Result<HeaderValue, Error> {
    HeaderValue::from_str(text).map_err(|error| Error::internal("a header of ours is none").caused_by(error))
}

fn tier(tier: &TierStats) -> Value {
    json!({
        "tier": place(tier.place),
        "entries": tier.entries,
        "bytes": tier.bytes,
        "capacity_bytes": tier.capacity_bytes,
        "queue_bytes": tier.queue_bytes,
        "queue_capacity_bytes": tier.queue_capacity_bytes,
        "degraded": tier.is_degraded,
        "scanned": tier.is_scanned,
        "path": tier.path,
    })
}

fn item(Item { subject, meta, disk_bytes, places }: &Item) -> Value {
    json!({
        "key": subject.key.to_string(),
        "model": subject.model.as_str(),
        "task": subject.task.label(),
        "content_type": meta.content_type.name(),
        "dtype": meta.dtype.name(),
        "shape": meta.shape.dims(),
        "bytes": meta.length,
        "disk_bytes": disk_bytes,
        "made": humantime::format_rfc3339_millis(subject.made).to_string(),
        "places": places.iter().copied().map(place).collect::<Vec<_>>(),
    })
}

fn finding(finding: &Finding) -> Value {
    let fault = match finding.fault {
        Fault::Damaged => "damaged",
        Fault::Unreadable => "unreadable",
    };
    json!({
        "key": finding.key.to_string(),
        "disk_bytes": finding.bytes,
        "fault": fault,
        "detail": finding.detail,
        "removed": finding.is_removed,
    })
}

const fn place(place: Place) -> &'static str {
    match place {
        Place::Memory => "memory",
        Place::Queue => "queue",
        Place::Disk => "disk",
    }
}
