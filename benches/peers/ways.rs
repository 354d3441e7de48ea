//! The ways of asking for a body: whom, in which protocol, and what a request brings along.

use std::{net::SocketAddr, path::PathBuf};

use anyhow::Context as _;
use bytes::{BufMut as _, Bytes, BytesMut};
use http::{Method, Request};
use latentgate::proto::{self, DecodeRequest, DecodeSpec, Dtype, TensorSpec, output::Kind};
use prost::Message as _;

use crate::{
    http1::Http1,
    http2::{Asked, Content, Http2},
    received::Received,
    servers::{Server, Servers},
};

/// A body by its name at the origin, and the latents whose decode it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Body {
    pub(crate) name: &'static str,
    /// Of half floats `[n, c, h, w]`; the body is `[n, 3, 8h, 8w]`.
    pub(crate) latents: [usize; 4],
    /// Requests of a slice, as far as the connections do not make them more: about a quarter of a second.
    pub(crate) slice: u32,
}

/// 48 KiB, 1.5 MiB and 25 MiB.
pub(crate) const BODIES: [Body; 3] = [
    Body { name: "small", latents: [1, 4, 16, 8], slice: 2000 },
    Body { name: "middle", latents: [1, 4, 64, 64], slice: 320 },
    Body { name: "large", latents: [1, 4, 256, 267], slice: 24 },
];

/// One way of asking.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Way {
    pub(crate) whom: Whom,
    pub(crate) protocol: Protocol,
    pub(crate) input: Input,
}

/// Who is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Whom {
    Nginx,
    Varnish,
    /// A latentgate that answers from memory.
    Memory,
    /// One that has no memory tier and answers from its disk.
    Disk,
}

/// What is spoken, over what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Protocol {
    Http1,
    Http2,
    Grpc,
    GrpcUnix,
}

/// What a request brings along.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Input {
    /// A GET has nothing.
    Nothing,
    Latents,
    /// The latents' digest in their place.
    Digest,
}

/// Every way, in the order of the table.
pub(crate) const WAYS: [Way; 10] = [
    Way { whom: Whom::Nginx, protocol: Protocol::Http1, input: Input::Nothing },
    Way { whom: Whom::Varnish, protocol: Protocol::Http1, input: Input::Nothing },
    Way { whom: Whom::Memory, protocol: Protocol::Http1, input: Input::Latents },
    Way { whom: Whom::Disk, protocol: Protocol::Http1, input: Input::Latents },
    Way { whom: Whom::Nginx, protocol: Protocol::Http2, input: Input::Nothing },
    Way { whom: Whom::Varnish, protocol: Protocol::Http2, input: Input::Nothing },
    Way { whom: Whom::Memory, protocol: Protocol::Grpc, input: Input::Latents },
    Way { whom: Whom::Memory, protocol: Protocol::Grpc, input: Input::Digest },
    Way { whom: Whom::Memory, protocol: Protocol::GrpcUnix, input: Input::Digest },
    Way { whom: Whom::Disk, protocol: Protocol::Grpc, input: Input::Latents },
];

/// Where a server is.
#[derive(Clone, Debug)]
pub(crate) enum Place {
    Tcp(SocketAddr),
    Unix(PathBuf),
}

/// A connection of whatever protocol.
pub(crate) enum Connection {
    Http1(Http1),
    Http2(Box<Http2>),
}

// === impl Body ===

impl Body {
    /// Which of `BODIES` it is.
    pub(crate) fn place(self) -> usize {
        BODIES.iter().position(|body| *body == self).unwrap_or_default()
    }

    /// Latents about as large as a denoiser's, the same in every run.
    fn input(self) -> Bytes {
        let mut random = fastrand::Rng::with_seed(self.slice.into());
        let value = |_| half::f16::from_f32(random.f32() * 8.0 - 4.0).to_le_bytes();
        (0..self.latents.iter().product()).flat_map(value).collect::<Vec<u8>>().into()
    }
}

// === impl Way ===

impl Way {
    /// For people.
    pub(crate) fn name(self) -> String {
        let whom = match self.whom {
            Whom::Nginx => "nginx",
            Whom::Varnish => "Varnish",
            Whom::Memory => "latentgate",
            Whom::Disk => "latentgate disk",
        };
        let protocol = match self.protocol {
            Protocol::Http1 => "HTTP/1.1",
            Protocol::Http2 => "h2",
            Protocol::Grpc => "gRPC",
            Protocol::GrpcUnix => "gRPC, Unix",
        };
        let mut name = format!("{whom} {protocol}");
        match self.input {
            Input::Nothing => {}
            Input::Latents => name.push_str(", latents"),
            Input::Digest => name.push_str(", digest"),
        }
        name
    }

    pub(crate) const fn server(self, servers: &Servers) -> Option<&Server> {
        match self.whom {
            Whom::Nginx => Some(&servers.nginx),
            Whom::Varnish => Some(&servers.varnish),
            Whom::Memory => Some(&servers.memory),
            Whom::Disk => servers.disk.as_ref(),
        }
    }

    pub(crate) async fn connect(self, server: &Server, body: Body) -> anyhow::Result<Connection> {
        if self.protocol == Protocol::Http1 {
            return Ok(Connection::Http1(Http1::connect(server.http1, self.http1(body)).await?));
        }
        let place = match self.protocol {
            Protocol::GrpcUnix => Place::Unix(server.socket.clone().context("this server has no Unix socket")?),
            _ => Place::Tcp(server.http2),
        };
        let asked = match self.protocol {
            Protocol::Http2 => {
                let head = Request::get(format!("http://{}/{}", server.http2, body.name)).body(())?;
                Asked { head, body: Bytes::new(), content: Content::Plain }
            }
            _ => self.grpc(body)?,
        };
        Ok(Connection::Http2(Box::new(Http2::connect(&place, asked).await?)))
    }

    fn http1(self, body: Body) -> Bytes {
        let name = body.name;
        if self.input == Input::Nothing {
            return format!("GET /{name} HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n").into();
        }
        let shape = body.latents.map(|dim| format!("&shape={dim}")).concat();
        let input = body.input();
        let head = format!(
            "POST /decode/{name}?output_type=pt&partial_postprocess=False{shape}&dtype=float16&scaling_factor=0.18215 \
             HTTP/1.1\r\nhost: 127.0.0.1\r\naccept: tensor/binary\r\ncontent-type: tensor/binary\r\n\
             content-length: {}\r\n\r\n",
            input.len()
        );
        [head.as_bytes(), &input].concat().into()
    }

    fn grpc(self, body: Body) -> anyhow::Result<Asked> {
        let input = body.input();
        let is_digest = self.input == Input::Digest;
        let digest = if is_digest { Bytes::copy_from_slice(blake3::hash(&input).as_bytes()) } else { Bytes::new() };
        let shape = body.latents.map(|dim| dim as i64).to_vec();
        let spec = DecodeSpec {
            model: body.name.to_owned(),
            latents: Some(TensorSpec { dtype: Dtype::F16 as i32, shape }),
            output: Some(proto::Output {
                kind: Some(Kind::Tensor(proto::output::Tensor { dtype: Dtype::F16 as i32 })),
            }),
            digest,
            ..DecodeSpec::default()
        };
        let message = DecodeRequest { spec: Some(spec), data: if is_digest { Bytes::new() } else { input } };
        let mut framed = BytesMut::new();
        framed.put_u8(0);
        framed.put_u32(u32::try_from(message.encoded_len())?);
        message.encode(&mut framed)?;
        let head = Request::builder()
            .method(Method::POST)
            .uri("http://127.0.0.1/latentgate.v1.Latents/Decode")
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .body(())?;
        Ok(Asked { head, body: framed.freeze(), content: Content::Grpc })
    }
}

// === impl Connection ===

impl Connection {
    pub(crate) async fn ask(&mut self, received: &mut Received) -> anyhow::Result<()> {
        match self {
            Self::Http1(connection) => connection.ask(received).await,
            Self::Http2(connection) => connection.ask(received).await,
        }
    }

    /// Bytes that a request brings along behind its head.
    pub(crate) fn request_bytes(&self) -> usize {
        match self {
            Self::Http1(connection) => connection.body_bytes(),
            Self::Http2(connection) => connection.asked.body.len(),
        }
    }
}
