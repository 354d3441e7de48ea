//! Who is at the other end of a connection, as far as the connection tells. Every request of it has this in its
//! extensions.

use std::{net::IpAddr, sync::Arc};

use http::Extensions;

/// The other end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// By which way it came.
    pub way: Way,
    /// The names in its certificate, if it has shown a good one: `dns:`, `uri:` and `cn:` with what they name.
    pub names: Vec<Box<str>>,
}

/// How a connection came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// By TCP, from this address. A proxy in between is who is seen.
    Tcp(IpAddr),
    /// By the Unix socket: the mode of its file has let it in.
    Unix,
}

impl Peer {
    /// The peer of the connection that a request came by; none of a request that came by none.
    pub(super) fn of(extensions: &Extensions) -> Option<&Self> {
        extensions.get::<Arc<Self>>().map(|peer| &**peer)
    }
}
