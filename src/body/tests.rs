use super::*;
use crate::{error::ErrorKind, meta::Meta};

fn meta(length: u64) -> Meta {
    Meta::sample(length)
}

#[tokio::test]
async fn readers_early_and_late_get_every_byte() {
    let (mut writer, body) = Body::channel();
    let mut early = body.reader();
    writer.begin(meta(6)).unwrap();
    writer.append(Bytes::from_static(b"abc")).unwrap();
    assert_eq!(early.meta().await.unwrap().length, 6);
    assert_eq!(early.next().await.unwrap().unwrap(), "abc");
    writer.append(Bytes::from_static(b"def")).unwrap();
    let seal = writer.finish(|_, _, _| {}).unwrap();
    assert_eq!(seal.digest, *blake3::hash(b"abcdef").as_bytes());
    let mut late = body.reader();
    for reader in [&mut early, &mut late] {
        let mut rest = Vec::new();
        while let Some(slice) = reader.next().await.unwrap() {
            rest.extend_from_slice(&slice);
        }
        assert!(b"abcdef".ends_with(&rest) && !rest.is_empty());
        assert_eq!(reader.seal().await.unwrap(), seal);
    }
}

#[tokio::test]
async fn slices_are_shared_not_copied() {
    let (mut writer, body) = Body::channel();
    let bytes = Bytes::from(vec![7u8; 1 << 20]);
    writer.begin(meta(1 << 20)).unwrap();
    writer.append(bytes.clone()).unwrap();
    writer.finish(|_, _, _| {}).unwrap();
    assert_eq!(body.reader().next().await.unwrap().unwrap().as_ptr(), bytes.as_ptr());
}

#[tokio::test]
async fn a_dropped_writer_fails_the_body_for_everybody() {
    let (mut writer, body) = Body::channel();
    writer.begin(meta(6)).unwrap();
    writer.append(Bytes::from_static(b"abc")).unwrap();
    drop(writer);
    let mut reader = body.reader();
    assert!(reader.next().await.unwrap().is_some(), "what was published stays readable");
    assert_eq!(reader.next().await.unwrap_err().kind(), ErrorKind::Internal);
    assert!(body.reader().seal().await.is_err());
}

#[tokio::test]
async fn a_short_body_cannot_be_finished_nor_a_long_one_appended() {
    let (mut writer, body) = Body::channel();
    writer.begin(meta(3)).unwrap();
    writer.append(Bytes::from_static(b"ab")).unwrap();
    assert!(writer.finish(|_, _, _| {}).is_err());
    assert!(matches!(body.end(), Some(End::Failed(_))));

    let (mut writer, _body) = Body::channel();
    assert!(writer.append(Bytes::from_static(b"a")).is_err(), "no byte before the metadata");
    writer.begin(meta(1)).unwrap();
    assert!(writer.append(Bytes::from_static(b"ab")).is_err());
}

#[tokio::test]
async fn a_reader_waits_without_losing_the_wake_up() {
    let (mut writer, body) = Body::channel();
    let mut reader = body.reader();
    let waiting = crate::task::spawn(tracing::Span::none(), async move {
        let meta = reader.meta().await.unwrap();
        (meta.length, reader.next().await.unwrap().unwrap())
    });
    tokio::task::yield_now().await;
    writer.begin(meta(1)).unwrap();
    tokio::task::yield_now().await;
    writer.append(Bytes::from_static(b"x")).unwrap();
    assert_eq!(waiting.join().await.unwrap(), (1, Bytes::from_static(b"x")));
}
