//! Who asks: the token in a request's head, the certificate of its connection, or where that comes from.
//!
//! Asked at the beginning of every request that can cost something, by both fronts. Open to everybody are health (gRPC's,
//! `GET /health`, `GET /`), since probes have no token, and permissions for browsers (CORS preflights), which have none by
//! their protocol.

use http::{HeaderMap, header::AUTHORIZATION, request::Parts};
use tonic::{Request, Status, service::Interceptor};

use super::{
    peer::{Peer, Way},
    status,
};
use crate::{
    clients::{Clients, Credentials, Origin, Visit},
    error::Error,
};

/// The door. Clones share the clients.
#[derive(Clone)]
pub struct Guard(Clients);

impl Guard {
    /// The door to what these clients may have.
    pub fn new(clients: Clients) -> Self {
        Self(clients)
    }

    /// Lets a request in, or says why not.
    pub(super) fn admit(&self, headers: &HeaderMap, peer: Option<&Peer>) -> Result<Visit, Error> {
        self.0.admit(&credentials(headers, peer))
    }

    /// Judges who asks for what costs nothing.
    pub(super) fn authenticate(&self, parts: &Parts) -> Result<(), Error> {
        self.0.authenticate(&credentials(&parts.headers, Peer::of(&parts.extensions)))
    }
}

/// For gRPC services that are not ours.
impl Interceptor for Guard {
    fn call(&mut self, request: Request<()>) -> Result<Request<()>, Status> {
        let (metadata, extensions, message) = request.into_parts();
        let headers = metadata.into_headers();
        let judged = self.0.authenticate(&credentials(&headers, Peer::of(&extensions)));
        judged.map_err(|error| status::grpc(&error))?;
        Ok(Request::from_parts(tonic::metadata::MetadataMap::from_headers(headers), extensions, message))
    }
}

fn credentials<'a>(headers: &'a HeaderMap, peer: Option<&'a Peer>) -> Credentials<'a> {
    let origin = match peer.map(|peer| peer.way) {
        Some(Way::Tcp(address)) => Origin::Address(address),
        Some(Way::Unix) => Origin::Socket,
        // No listener of ours: nobody's address, which nothing is known of.
        None => Origin::Address(std::net::Ipv4Addr::UNSPECIFIED.into()),
    };
    let certificate = peer.map_or(&[][..], |peer| &peer.names);
    let token = headers.get(AUTHORIZATION).and_then(|value| bearer(value.as_bytes()));
    Credentials { token, certificate, origin }
}

/// What stands behind `Bearer`, which may be in any case.
fn bearer(value: &[u8]) -> Option<&[u8]> {
    let (scheme, token) = value.split_at_checked(7)?;
    scheme.eq_ignore_ascii_case(b"bearer ").then(|| token.trim_ascii())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_stands_behind_its_scheme() {
        assert_eq!(bearer(b"Bearer abc"), Some(&b"abc"[..]));
        assert_eq!(bearer(b"bEARER   abc "), Some(&b"abc"[..]));
        assert_eq!(bearer(b"Bearer "), Some(&b""[..]));
        for other in [&b""[..], b"Bearer", b"Basic abc", b"Bearerabc"] {
            assert_eq!(bearer(other), None, "{other:?}");
        }
    }
}
