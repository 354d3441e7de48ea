//! A client of `CacheAdmin`: calls, their failures in a person's words, and keys by their first digits.

use anyhow::{Context as _, bail, ensure};
use bytes::Bytes;
use tonic::{Code, Status, Streaming, transport::Channel};
use tonic_types::StatusExt as _;

use super::AdminConnection;
use crate::{
    cli::client::{self, failure},
    key::ContentKey,
    proto::{self, cache_admin_client::CacheAdminClient},
};

/// Hex digits of a key.
const DIGITS: usize = 64;
/// Fewer first digits than this are a typing error rather than a name.
const FEWEST_DIGITS: usize = 8;

/// A connection to the admin port.
pub(super) struct AdminPort {
    stub: CacheAdminClient<Channel>,
    server: String,
}

impl AdminPort {
    pub(super) async fn connect(connection: &AdminConnection) -> anyhow::Result<Self> {
        let (channel, server) = client::channel("--admin", &connection.admin).await?;
        let stub = CacheAdminClient::new(channel).max_decoding_message_size(client::MAX_MESSAGE_BYTES);
        Ok(Self { stub, server })
    }

    pub(super) async fn stats(&mut self) -> anyhow::Result<Vec<proto::TierStats>> {
        let response = self.stub.stats(proto::StatsRequest {}).await;
        Ok(self.heard(response)?.into_inner().tiers)
    }

    pub(super) async fn list(&mut self, model: &str, limit: u64) -> anyhow::Result<Streaming<proto::ListResponse>> {
        let response = self.stub.list(proto::ListRequest { model: model.to_owned(), limit }).await;
        Ok(self.heard(response)?.into_inner())
    }

    pub(super) async fn get(&mut self, key: ContentKey) -> anyhow::Result<Streaming<proto::GetResponse>> {
        let response = self.stub.get(proto::GetRequest { content_key: wire(key) }).await;
        Ok(self.heard(response)?.into_inner())
    }

    pub(super) async fn purge(
        &mut self,
        request: proto::PurgeRequest,
    ) -> anyhow::Result<Streaming<proto::PurgeResponse>> {
        let response = self.stub.purge(request).await;
        Ok(self.heard(response)?.into_inner())
    }

    pub(super) async fn verify(
        &mut self,
        request: proto::VerifyRequest,
    ) -> anyhow::Result<Streaming<proto::VerifyResponse>> {
        let response = self.stub.verify(request).await;
        Ok(self.heard(response)?.into_inner())
    }

    /// The next message of a stream; none after the last.
    pub(super) async fn next<T>(&self, stream: &mut Streaming<T>) -> anyhow::Result<Option<T>> {
        self.heard(stream.message().await)
    }

    /// The key that `digits` are, or begin.
    pub(super) async fn key(&mut self, digits: &str) -> anyhow::Result<ContentKey> {
        let digits = digits.to_ascii_lowercase();
        ensure!(
            digits.bytes().all(|digit| digit.is_ascii_hexdigit()) && (FEWEST_DIGITS..=DIGITS).contains(&digits.len()),
            "{digits:?} is no content key: wanted its {DIGITS} hex digits, or at least the first {FEWEST_DIGITS}"
        );
        if let Some(key) = ContentKey::from_hex(&digits) {
            return Ok(key);
        }
        let mut found = Vec::new();
        let mut listed = self.list("", 0).await?;
        while let Some(item) = self.next(&mut listed).await? {
            let key = read(&item.content_key)?;
            if key.to_string().starts_with(&digits) {
                found.push(key);
            }
        }
        match found[..] {
            [] => bail!("nothing is kept under a key that begins with {digits}; `latentgate cache list` lists what is"),
            [key] => Ok(key),
            _ => bail!("{} keys begin with {digits}; give more of its digits", found.len()),
        }
    }

    fn heard<T>(&self, result: Result<T, Status>) -> anyhow::Result<T> {
        result.map_err(|status| failure::told(&self.server, &status, hint(&status)))
    }
}

/// What the person can do about it, where the message does not say so itself.
fn hint(status: &Status) -> Option<String> {
    let is_ours = status.get_details_error_info().is_some();
    let hint = match (status.code(), is_ours) {
        (Code::NotFound, _) => "`latentgate cache list` lists what is kept",
        (Code::Internal, true) => "the server's log says more under the same id",
        (Code::Unimplemented | Code::Internal, _) => "is --admin the admin port of a latentgate? (its default is 8791)",
        _ => return None,
    };
    Some(hint.to_owned())
}

pub(super) fn wire(key: ContentKey) -> Bytes {
    Bytes::copy_from_slice(key.as_bytes())
}

pub(super) fn read(key: &Bytes) -> anyhow::Result<ContentKey> {
    let digest = key.as_ref().try_into().context("the server says a key that is none; is it of another version?")?;
    Ok(ContentKey::from_bytes(digest))
}
