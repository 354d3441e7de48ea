//! Responses as HTTP/2 frames, without prost's copy of the payload.
//!
//! A gRPC message is one flag byte (0: not compressed), its length as four big-endian bytes, then the message. prost
//! would copy a chunk's payload into that buffer. Here a chunk is two pieces: a dozen bytes of our own, and the slice of
//! the artifact as it is. Decode and Encode responses share their field numbers, so one encoder serves both.

use bytes::{BufMut as _, Bytes, BytesMut};
use prost::{
    Message as _,
    encoding::{WireType, encode_key, encode_varint, encoded_len_varint, key_len},
};

use crate::proto::{DecodeResponse, decode_response::Event};

/// Payload bytes a chunk holds at most: every language's default limit for a message is 4 MiB, and at 1 MiB the cost of
/// a message is far below the cost of moving it.
pub(super) const CHUNK_BYTES: usize = 1 << 20;

/// Field number of `chunk` in both responses.
const CHUNK_FIELD: u32 = 6;

/// Flag byte and length.
const PREFIX_BYTES: usize = 5;

/// A small message, whole.
pub(super) fn event(event: Event) -> Bytes {
    let message = DecodeResponse { event: Some(event) };
    let length = message.encoded_len();
    let mut frame = BytesMut::with_capacity(PREFIX_BYTES + length);
    put_prefix(&mut frame, length);
    message.encode(&mut frame).expect("the buffer grows");
    frame.freeze()
}

/// The bytes that stand before a chunk's payload.
pub(super) fn chunk_head(payload: usize) -> Bytes {
    let field = key_len(CHUNK_FIELD) + encoded_len_varint(payload as u64);
    let mut head = BytesMut::with_capacity(PREFIX_BYTES + field);
    put_prefix(&mut head, field + payload);
    encode_key(CHUNK_FIELD, WireType::LengthDelimited, &mut head);
    encode_varint(payload as u64, &mut head);
    head.freeze()
}

fn put_prefix(frame: &mut BytesMut, length: usize) {
    frame.put_u8(0);
    frame.put_u32(u32::try_from(length).expect("a message is far below 4 GiB"));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::{EncodeResponse, encode_response};

    #[test]
    fn a_chunk_in_two_pieces_is_what_prost_writes_in_one() {
        for length in [1, 127, 128, 70_000, CHUNK_BYTES] {
            let payload = Bytes::from(vec![42u8; length]);
            let pieces = [chunk_head(length), payload.clone()].concat();
            assert_eq!(pieces, event(Event::Chunk(payload.clone())), "{length}");
            let encode = EncodeResponse::decode(&pieces[PREFIX_BYTES..]).unwrap();
            assert!(matches!(encode.event, Some(encode_response::Event::Chunk(got)) if got == payload));
        }
    }

    #[test]
    fn both_responses_read_every_event_alike() {
        use crate::proto::{Accepted, Header, Progress, Trailer};
        let accepted = event(Event::Accepted(Accepted { content_key: Bytes::from_static(&[1; 32]), source: 1 }));
        let read = EncodeResponse::decode(&accepted[PREFIX_BYTES..]).unwrap().event.unwrap();
        assert!(matches!(read, encode_response::Event::Accepted(a) if a.source == 1));
        for (sent, name) in [
            (Event::Progress(Progress { done: 1, total: 2 }), "progress"),
            (Event::Header(Header { length: 9, ..Header::default() }), "header"),
            (Event::Trailer(Trailer::default()), "trailer"),
        ] {
            let bytes = event(sent);
            let read = EncodeResponse::decode(&bytes[PREFIX_BYTES..]).unwrap().event.unwrap();
            let got = match read {
                encode_response::Event::Progress(p) if p.total == 2 => "progress",
                encode_response::Event::Header(h) if h.length == 9 => "header",
                encode_response::Event::Trailer(_) => "trailer",
                _ => "something else",
            };
            assert_eq!(got, name);
        }
    }
}
