//! Cache administration over gRPC: `latentgate.v1.CacheAdmin`, on the admin port.
//!
//! On tonic's generated server, unlike `Latents`: an operator's listing does not need frames without copies. A client
//! that leaves drops its stream, and with it what the sweep behind it tells, which stops the sweep.

use std::{pin::Pin, time::Duration};

use bytes::Bytes;
use futures_util::Stream;
use tonic::{Request, Response, Status};

use super::{convert, framing::CHUNK_BYTES, status};
use crate::{
    error::Error,
    inventory::{
        Fault, Finding, Given, Inventory, Item, Listing, Place, Progress, Purging, Repair, Selection, Telling,
        TierStats, Verifying, Wish,
    },
    key::ContentKey,
    model::Task,
    proto::{
        self,
        cache_admin_server::{CacheAdmin, CacheAdminServer},
        get_response, purge_response, verify_response,
    },
};

/// The service.
pub struct CacheAdminService(Inventory);

type Stated<T> = Result<Response<T>, Status>;
type Messages<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

impl CacheAdminService {
    /// The service of an inventory.
    pub const fn new(inventory: Inventory) -> Self {
        Self(inventory)
    }

    /// As tonic routes it.
    pub fn server(self) -> CacheAdminServer<Self> {
        CacheAdminServer::new(self)
    }
}

#[tonic::async_trait]
impl CacheAdmin for CacheAdminService {
    type ListStream = Messages<proto::ListResponse>;
    type GetStream = Messages<proto::GetResponse>;
    type PurgeStream = Messages<proto::PurgeResponse>;
    type VerifyStream = Messages<proto::VerifyResponse>;

    async fn stats(&self, _: Request<proto::StatsRequest>) -> Stated<proto::StatsResponse> {
        Ok(Response::new(proto::StatsResponse { tiers: self.0.stats().into_iter().map(tier).collect() }))
    }

    async fn list(&self, request: Request<proto::ListRequest>) -> Stated<Self::ListStream> {
        let proto::ListRequest { model, limit } = request.into_inner();
        let telling = Listing::try_new(&model, (limit > 0).then_some(limit)).and_then(|meant| self.0.list(meant));
        Ok(Response::new(messages(telling.map_err(refused)?, item)))
    }

    async fn get(&self, request: Request<proto::GetRequest>) -> Stated<Self::GetStream> {
        let given = async { self.0.give(key(&request.into_inner().content_key)?).await };
        Ok(Response::new(Box::pin(events(given.await.map_err(refused)?))))
    }

    async fn purge(&self, request: Request<proto::PurgeRequest>) -> Stated<Self::PurgeStream> {
        let telling = selection(request.into_inner()).and_then(|meant| self.0.purge(meant));
        Ok(Response::new(messages(telling.map_err(refused)?, purging)))
    }

    async fn verify(&self, request: Request<proto::VerifyRequest>) -> Stated<Self::VerifyStream> {
        let repair = if request.into_inner().repair { Repair::Remove } else { Repair::Leave };
        Ok(Response::new(messages(self.0.verify(repair).map_err(refused)?, verifying)))
    }
}

fn refused(error: impl std::borrow::Borrow<Error>) -> Status {
    status::grpc(error.borrow())
}

/// What a sweep tells, as messages.
fn messages<T: Send + 'static, M: Send + 'static>(mut telling: Telling<T>, message: fn(T) -> M) -> Messages<M> {
    Box::pin(async_stream::stream! {
        while let Some(told) = telling.next().await {
            yield told.map(message).map_err(refused);
        }
    })
}

/// header, chunks, trailer; or the status of what went wrong.
fn events(mut given: Given) -> impl Stream<Item = Result<proto::GetResponse, Status>> {
    use get_response::Event;
    let response = |event| Ok(proto::GetResponse { event: Some(event) });
    async_stream::stream! {
        yield response(Event::Header(item(given.item.clone())));
        loop {
            match given.next().await {
                Ok(Some(mut slice)) => while !slice.is_empty() {
                    yield response(Event::Chunk(slice.split_to(slice.len().min(CHUNK_BYTES))));
                },
                Ok(None) => break,
                Err(error) => {
                    yield Err(refused(error));
                    return;
                }
            }
        }
        let digest = Bytes::copy_from_slice(&given.seal.digest);
        yield response(Event::Trailer(get_response::End { digest }));
    }
}

fn key(bytes: &Bytes) -> Result<ContentKey, Error> {
    let digest = bytes.as_ref().try_into();
    digest
        .map(ContentKey::from_bytes)
        .map_err(|_| Error::bad_request("content_key", format!("wanted 32 bytes, got {}", bytes.len())))
}

fn selection(request: proto::PurgeRequest) -> Result<Selection, Error> {
    let proto::PurgeRequest { model, content_key, older_than_seconds, all } = request;
    let model = (!model.is_empty()).then_some(model);
    let key = (!content_key.is_empty()).then(|| key(&content_key)).transpose()?;
    Selection::try_from(Wish { model, key, older_than: older_than_seconds.map(Duration::from_secs), all })
}

fn tier(tier: TierStats) -> proto::TierStats {
    proto::TierStats {
        place: place(tier.place),
        entries: tier.entries,
        bytes: tier.bytes,
        capacity_bytes: tier.capacity_bytes,
        queue_bytes: tier.queue_bytes,
        queue_capacity_bytes: tier.queue_capacity_bytes,
        degraded: tier.is_degraded,
        scanned: tier.is_scanned,
        path: tier.path,
    }
}

fn item(Item { subject, meta, disk_bytes, places }: Item) -> proto::ListResponse {
    let made = subject.made.duration_since(std::time::SystemTime::UNIX_EPOCH).unwrap_or_default();
    let task = match subject.task {
        Task::Decode => proto::Task::Decode,
        Task::Encode => proto::Task::Encode,
    };
    proto::ListResponse {
        content_key: Bytes::copy_from_slice(subject.key.as_bytes()),
        disk_bytes,
        model: subject.model.to_string(),
        task: task as i32,
        header: Some(convert::header(&meta)),
        made_unix_ms: made.as_millis() as u64,
        places: places.into_iter().map(place).collect(),
    }
}

fn purging(told: Purging) -> proto::PurgeResponse {
    use purge_response::{Event, Totals};
    let event = match told {
        Purging::Progress(at) => Event::Progress(progress(at)),
        Purging::Done(purged) => Event::Done(Totals {
            memory_entries: purged.memory,
            queue_entries: purged.queue,
            disk_entries: purged.disk,
            disk_bytes: purged.disk_bytes,
            left_entries: purged.left,
        }),
    };
    proto::PurgeResponse { event: Some(event) }
}

fn verifying(told: Verifying) -> proto::VerifyResponse {
    use verify_response::{Event, Totals};
    let event = match told {
        Verifying::Progress(at) => Event::Progress(progress(at)),
        Verifying::Finding(found) => Event::Finding(finding(found)),
        Verifying::Done(verified) => Event::Done(Totals {
            entries: verified.entries,
            bytes: verified.bytes,
            damaged_entries: verified.damaged,
            unreadable_entries: verified.unreadable,
            gone_entries: verified.gone,
            removed_entries: verified.removed,
            took_ms: verified.took.as_millis() as u64,
        }),
    };
    proto::VerifyResponse { event: Some(event) }
}

fn finding(found: Finding) -> proto::Finding {
    let fault = match found.fault {
        Fault::Damaged => proto::finding::Fault::Damaged,
        Fault::Unreadable => proto::finding::Fault::Unreadable,
    };
    proto::Finding {
        content_key: Bytes::copy_from_slice(found.key.as_bytes()),
        disk_bytes: found.bytes,
        fault: fault as i32,
        detail: found.detail,
        removed: found.is_removed,
    }
}

const fn progress(at: Progress) -> proto::SweepProgress {
    let Progress { entries, entries_in_all, bytes, bytes_in_all } = at;
    proto::SweepProgress { entries, entries_in_all, bytes, bytes_in_all }
}

const fn place(place: Place) -> i32 {
    let word = match place {
        Place::Memory => proto::Place::Memory,
        Place::Queue => proto::Place::Queue,
        Place::Disk => proto::Place::Disk,
    };
    word as i32
}
