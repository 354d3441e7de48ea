use futures_util::StreamExt as _;
use http_body_util::Full;
use prost::Message as _;
use tonic_prost::ProstDecoder;

use super::*;

fn header(length: u64) -> Event {
    Event::Header(proto::Header { content_type: "image/png".to_owned(), tensor: None, length })
}

fn chunk_of(data: &'static [u8]) -> Event {
    Event::Chunk(Bytes::from_static(data))
}

fn trailer_of(data: &[u8]) -> Event {
    let digest = Bytes::copy_from_slice(blake3::hash(data).as_bytes());
    Event::Trailer(proto::Trailer { digest, source: proto::Source::Memory as i32, timings: None })
}

/// What the client makes of these messages.
async fn collected(events: Vec<Event>, go: Option<oneshot::Sender<()>>) -> anyhow::Result<Answer> {
    let mut frames = Vec::new();
    for event in events {
        let message = proto::DecodeResponse { event: Some(event) }.encode_to_vec();
        frames.push(0);
        frames.extend((message.len() as u32).to_be_bytes());
        frames.extend(message);
    }
    // Read as a request: those have no status in their trailers, which is tonic's own affair.
    let body = Full::new(Bytes::from(frames));
    let stream = Streaming::new_request(ProstDecoder::<proto::DecodeResponse>::default(), body, None, None);
    Incoming::new(go, &BlockBar::hidden(), "http://here").collect(stream, Instant::now()).await
}

#[tokio::test]
async fn a_whole_answer_is_put_together() {
    let events = vec![header(6), chunk_of(b"abc"), chunk_of(b"def"), trailer_of(b"abcdef")];
    let answer = collected(events, None).await.unwrap();
    assert_eq!((&answer.data[..], answer.source), (&b"abcdef"[..], proto::Source::Memory));
    assert!(answer.input_sent);
}

#[tokio::test]
async fn an_answer_that_is_not_whole_is_none() {
    let cases = [
        (vec![header(6), chunk_of(b"abc"), trailer_of(b"abc")], "3 of 6 bytes came"),
        (vec![header(3), chunk_of(b"abc")], "ended before its trailer"),
        (vec![header(3), chunk_of(b"abc"), trailer_of(b"abd")], "damaged on its way"),
        (vec![header(2), chunk_of(b"abc"), trailer_of(b"abc")], "longer than the 2 bytes"),
        (vec![chunk_of(b"abc"), trailer_of(b"abc")], "bytes before its header"),
        (vec![trailer_of(b"")], "no header"),
        (vec![], "ended before its trailer"),
    ];
    for (events, want) in cases {
        let error = collected(events, None).await.unwrap_err().to_string();
        assert!(error.contains(want), "{error}");
    }
}

#[tokio::test]
async fn data_wait_for_the_server_when_the_digest_goes_first() {
    let data = Bytes::from(vec![7; CHUNK_BYTES + 1]);
    let spec = proto::DecodeSpec { model: "m".to_owned(), ..proto::DecodeSpec::default() };
    let (outgoing, go) = Outgoing::<proto::DecodeRequest>::new(spec.clone(), data.clone(), Order::DigestFirst);
    let events = vec![Event::NeedData(proto::NeedData {}), header(0), trailer_of(b"")];
    let (sent, answer) = tokio::join!(outgoing.messages().collect::<Vec<_>>(), collected(events, go));
    assert!(answer.unwrap().input_sent);
    assert_eq!(sent.iter().map(|message| message.data.len()).collect::<Vec<_>>(), [0, CHUNK_BYTES, 1]);
    assert!(sent[0].spec.is_some() && sent[1].spec.is_none());

    let (outgoing, go) = Outgoing::<proto::DecodeRequest>::new(spec, data, Order::DigestFirst);
    let (sent, answer) =
        tokio::join!(outgoing.messages().collect::<Vec<_>>(), collected(vec![header(0), trailer_of(b"")], go));
    assert!(!answer.unwrap().input_sent);
    assert_eq!(sent.len(), 1, "the input crossed the wire although its digest was enough");
}
