use proptest::prelude::*;

use super::*;

fn noise(bytes: usize) -> Bytes {
    let mut made = vec![0; bytes];
    blake3::Hasher::new().update(&bytes.to_le_bytes()).finalize_xof().fill(&mut made);
    made.into()
}

#[test]
fn a_head_comes_back_and_proves_its_chunks_and_no_others() {
    for bytes in [0, 1, 1000, CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 1, 3 * CHUNK_BYTES, 6 * CHUNK_BYTES + 17] {
        let payload = noise(bytes);
        let artifact = Artifact::sample(1, payload.clone());
        let head = Head::of(&artifact);
        let encoded = head.encode();
        assert_eq!(Head::length(encoded.first_chunk().unwrap()), Ok(encoded.len()));
        assert_eq!(Head::decode(&encoded).unwrap(), head);
        assert_eq!(head.seal.digest, *blake3::hash(&payload).as_bytes());
        for chunk in 0..head.chunk_count() {
            let range = chunk * CHUNK_BYTES..chunk * CHUNK_BYTES + head.chunk_bytes(chunk);
            let mut proved = payload[range].to_vec();
            assert!(head.proves(chunk, &proved), "chunk {chunk} of {bytes}");
            assert_eq!(head.checksums[chunk], checksum(&proved));
            if let Some(last) = proved.last_mut() {
                *last ^= 1;
                assert!(!head.proves(chunk, &proved));
                assert!(!head.proves(chunk, &proved[1..]));
            }
        }
    }
}

#[test]
fn chunks_are_the_same_in_slices_of_any_length() {
    let payload = noise(3 * CHUNK_BYTES + 5);
    let whole = checksums(std::slice::from_ref(&payload));
    let mut rest = payload.clone();
    let mut slices = vec![Bytes::new()];
    for length in [1, CHUNK_BYTES - 1, 7, CHUNK_BYTES, 300_000] {
        slices.push(rest.split_to(length));
    }
    slices.extend([rest, Bytes::new()]);
    assert_eq!(checksums(&slices), whole);
    assert_eq!(whole, payload.chunks(CHUNK_BYTES).map(checksum).collect::<Vec<_>>());
}

#[test]
fn other_versions_are_told_from_damage() {
    let mut head = Head::of(&Artifact::sample(1, noise(100))).encode();
    head[8] = 2;
    assert_eq!(Head::decode(&head), Err(EnvelopeError::Version(2)));
    head[0] = b'P';
    assert_eq!(Head::decode(&head), Err(EnvelopeError::Magic));
}

proptest! {
    #[test]
    fn no_damaged_head_is_believed(bytes in 0usize..3 * CHUNK_BYTES, at in 0.0f64..1.0, flip in 1u8..) {
        let mut head = Head::of(&Artifact::sample(1, noise(bytes))).encode();
        let at = (head.len() as f64 * at) as usize;
        head[at] ^= flip;
        prop_assert!(Head::decode(&head).is_err());
    }

    #[test]
    fn no_bytes_are_a_head_by_chance(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
        prop_assert!(Head::decode(&bytes).is_err());
        prop_assert!(Fields::parse(&bytes).is_err() || bytes.len() < 600);
    }
}
