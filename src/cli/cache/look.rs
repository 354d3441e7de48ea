//! `cache stats`, `list` and `get`: looking without changing anything.

use std::time::{Duration, SystemTime};

use anyhow::{Context as _, bail, ensure};
use bytes::Bytes;
use bytesize::ByteSize;
use serde_json::{Value, json};

use super::{
    Get, List, Stats,
    port::{self, AdminPort},
};
use crate::{
    cli::{
        answer,
        client::tensor_of,
        files::{self, Format},
        models::table,
        request::dtype_of,
        say,
    },
    key::ContentKey,
    proto::{self, Place, get_response::Event},
};

/// Digits of a key that a person is shown; `get` and `purge` take them.
const SHOWN_DIGITS: usize = 16;

const STATS_COLUMNS: [&str; 6] = ["TIER", "ENTRIES", "BYTES", "CAPACITY", "WAITING", "STATE"];
const LIST_COLUMNS: [&str; 8] = ["KEY", "MODEL", "TASK", "CONTENT", "BYTES", "ON DISK", "WHERE", "MADE"];

impl Stats {
    pub(super) async fn run(&self, mut port: AdminPort) -> anyhow::Result<()> {
        let tiers = port.stats().await?;
        if self.json {
            return answer(format_args!("{:#}", tiers.iter().map(tier_as_json).collect::<Value>()));
        }
        let rows = tiers.iter().map(tier_row);
        let rows: Vec<_> = std::iter::once(STATS_COLUMNS.map(str::to_owned)).chain(rows).collect();
        table(&rows).iter().try_for_each(answer)
    }
}

impl List {
    pub(super) async fn run(&self, mut port: AdminPort) -> anyhow::Result<()> {
        let mut listed = port.list(&self.model, self.limit.unwrap_or(0)).await?;
        let mut items = Vec::new();
        while let Some(item) = port.next(&mut listed).await? {
            items.push(item);
        }
        // Newest first; the server has no order.
        items.sort_by_key(|item| std::cmp::Reverse(item.made_unix_ms));
        if self.json {
            let items = items.iter().map(item_as_json).collect::<anyhow::Result<Value>>()?;
            return answer(format_args!("{items:#}"));
        }
        let mut rows = vec![LIST_COLUMNS.map(str::to_owned)];
        for item in &items {
            rows.push(item_row(item)?);
        }
        table(&rows).iter().try_for_each(answer)
    }
}

impl Get {
    pub(super) async fn run(&self, mut port: AdminPort) -> anyhow::Result<()> {
        files::check_place(&self.output)?;
        let key = port.key(&self.key).await?;
        let (item, data) = fetch(&mut port, key).await?;
        let header = item.header.as_ref().context("the artifact has no header; is the server of another version?")?;
        files::write(&self.output, &self.file(header, &data)?)?;
        let (bytes, place) = (size(data.len() as u64), places(&item).join(", "));
        say(format_args!("{}: {}, {bytes}, from {place}", self.output.display(), what(header)));
        Ok(())
    }

    /// The bytes as the file's name wants them.
    fn file(&self, header: &proto::Header, data: &Bytes) -> anyhow::Result<Bytes> {
        // Names that say nothing get the bytes as they are.
        let Ok(format) = Format::of(&self.output) else { return Ok(data.clone()) };
        let (want, got) = (format.content_type(), &header.content_type);
        ensure!(want == got, "{}: the artifact is {got}; give it another extension", self.output.display());
        if format.is_picture() { Ok(data.clone()) } else { format.file_of("tensor", &tensor_of(header, data)?) }
    }
}

/// An artifact, whole and proved.
async fn fetch(port: &mut AdminPort, key: ContentKey) -> anyhow::Result<(proto::ListResponse, Bytes)> {
    let mut events = port.get(key).await?;
    let (mut item, mut data, mut hasher) = (None, Vec::new(), blake3::Hasher::new());
    while let Some(response) = port.next(&mut events).await? {
        match response.event {
            Some(Event::Header(header)) => item = Some(header),
            Some(Event::Chunk(chunk)) => {
                hasher.update(&chunk);
                data.extend_from_slice(&chunk);
            }
            Some(Event::Trailer(end)) => {
                let item = item.context("the artifact has no header; is the server of another version?")?;
                ensure!(hasher.finalize().as_bytes()[..] == end.digest[..], "it was damaged on its way; try again");
                return Ok((item, data.into()));
            }
            None => {}
        }
    }
    bail!("the artifact ended before its trailer; try again")
}

pub(super) fn size(bytes: u64) -> String {
    ByteSize(bytes).display().iec().to_string()
}

fn tier_row(tier: &proto::TierStats) -> [String; 6] {
    let waiting = match tier.queue_capacity_bytes {
        0 => "-".to_owned(),
        capacity => format!("{} of {}", size(tier.queue_bytes), size(capacity)),
    };
    let state = match (tier.degraded, tier.scanned) {
        (true, _) => "failing, left alone for a while",
        (false, false) => "still being read",
        (false, true) => "ok",
    };
    let bytes = [tier.bytes, tier.capacity_bytes].map(size);
    let [bytes, capacity] = bytes;
    [place_name(tier.place()).to_owned(), tier.entries.to_string(), bytes, capacity, waiting, state.to_owned()]
}

fn tier_as_json(tier: &proto::TierStats) -> Value {
    json!({
        "tier": place_name(tier.place()),
        "entries": tier.entries,
        "bytes": tier.bytes,
        "capacity_bytes": tier.capacity_bytes,
        "queue_bytes": tier.queue_bytes,
        "queue_capacity_bytes": tier.queue_capacity_bytes,
        "degraded": tier.degraded,
        "scanned": tier.scanned,
        "path": tier.path,
    })
}

fn item_row(item: &proto::ListResponse) -> anyhow::Result<[String; 8]> {
    let header = item.header.clone().unwrap_or_default();
    let on_disk = if item.disk_bytes == 0 { "-".to_owned() } else { size(item.disk_bytes) };
    Ok([
        port::read(&item.content_key)?.to_string()[..SHOWN_DIGITS].to_owned(),
        item.model.clone(),
        task_name(item.task()).to_owned(),
        what(&header),
        size(header.length),
        on_disk,
        places(item).join(","),
        humantime::format_rfc3339_seconds(made(item)).to_string(),
    ])
}

fn item_as_json(item: &proto::ListResponse) -> anyhow::Result<Value> {
    let header = item.header.clone().unwrap_or_default();
    let tensor = header.tensor.unwrap_or_default();
    Ok(json!({
        "key": port::read(&item.content_key)?.to_string(),
        "model": item.model,
        "task": task_name(item.task()),
        "content_type": header.content_type,
        "dtype": dtype_of(tensor.dtype).map(crate::tensor::DType::name),
        "shape": tensor.shape,
        "bytes": header.length,
        "disk_bytes": item.disk_bytes,
        "made": humantime::format_rfc3339_millis(made(item)).to_string(),
        "places": places(item),
    }))
}

/// In few words: `image/png 512x512`, `float16 [1,4,64,64]`.
fn what(header: &proto::Header) -> String {
    let tensor = header.tensor.clone().unwrap_or_default();
    match (header.content_type.as_str(), &tensor.shape[..], dtype_of(tensor.dtype)) {
        (picture, [_, height, width, _], _) if picture.starts_with("image/") => format!("{picture} {width}x{height}"),
        ("application/octet-stream", shape, Some(dtype)) => {
            let dims: Vec<_> = shape.iter().map(i64::to_string).collect();
            format!("{} [{}]", dtype.name(), dims.join(","))
        }
        (other, ..) => other.to_owned(),
    }
}

fn made(item: &proto::ListResponse) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_millis(item.made_unix_ms)
}

fn places(item: &proto::ListResponse) -> Vec<&'static str> {
    item.places().map(place_name).collect()
}

const fn place_name(place: Place) -> &'static str {
    match place {
        Place::Unspecified => "unknown",
        Place::Memory => "memory",
        Place::Queue => "queue",
        Place::Disk => "disk",
    }
}

const fn task_name(task: proto::Task) -> &'static str {
    match task {
        proto::Task::Unspecified => "unknown",
        proto::Task::Decode => "decode",
        proto::Task::Encode => "encode",
    }
}
