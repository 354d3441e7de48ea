//! What every tier must do, run on each of them.

use super::*;
use crate::artifact::envelope::CHUNK_BYTES;

/// Lengths on both sides of every boundary there is.
pub(crate) const LENGTHS: [usize; 8] =
    [0, 1, 4096, (64 << 10) - 1, CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 1, 3 * CHUNK_BYTES + 17];

/// Bytes that depend on `n` and their length.
pub(crate) fn noise(n: u8, bytes: usize) -> Bytes {
    let mut made = vec![0; bytes];
    blake3::Hasher::new().update(&[n]).update(&bytes.to_le_bytes()).finalize_xof().fill(&mut made);
    made.into()
}

/// The whole of what a tier has, or what it says instead.
pub(crate) async fn read(tier: &dyn Tier, key: ContentKey) -> Result<Bytes, &'static str> {
    match tier.get(key).await {
        Lookup::Hit(mut stored) => {
            let mut whole = Vec::new();
            loop {
                match stored.next().await {
                    Ok(Some(chunk)) => whole.extend_from_slice(&chunk),
                    Ok(None) => break,
                    Err(Fault::Corrupt) => return Err("fault: corrupt"),
                    Err(Fault::Unreadable) => return Err("fault: unreadable"),
                }
            }
            assert_eq!(whole.len() as u64, stored.head.seal.length, "a short answer that looks whole");
            assert_eq!(*blake3::hash(&whole).as_bytes(), stored.head.seal.digest, "wrong bytes that look right");
            Ok(whole.into())
        }
        other => Err(other.result().label()),
    }
}

/// Everything that holds for an empty tier with room for some megabytes.
pub(crate) async fn suite(tier: &dyn Tier) {
    let artifacts: Vec<_> = (0u8..).zip(LENGTHS).map(|(n, bytes)| Artifact::sample(n, noise(n, bytes))).collect();
    for artifact in &artifacts {
        assert_eq!(read(tier, *artifact.key()).await, Err("miss"));
        assert!(!tier.remove(*artifact.key()).await);
    }
    for artifact in &artifacts {
        tier.put(artifact.clone()).await.unwrap();
    }
    for (n, artifact) in (0u8..).zip(&artifacts) {
        assert_eq!(read(tier, *artifact.key()).await, Ok(noise(n, LENGTHS[usize::from(n)])));
        let Lookup::Hit(stored) = tier.get(*artifact.key()).await else { panic!("it was there just now") };
        assert_eq!((&stored.head.subject, &stored.head.meta), (artifact.subject(), artifact.meta()));
        // A reader that leaves midway hurts nobody.
        drop(stored);
    }
    let replaced = Artifact::sample(3, noise(200, 777));
    tier.put(replaced).await.unwrap();
    assert_eq!(read(tier, ContentKey::sample(3)).await, Ok(noise(200, 777)));
    assert!(tier.remove(ContentKey::sample(3)).await);
    assert_eq!(read(tier, ContentKey::sample(3)).await, Err("miss"));
    assert_eq!(read(tier, ContentKey::sample(4)).await, Ok(noise(4, LENGTHS[4])));
    let [a, b] = [tier.get(ContentKey::sample(7)), tier.get(ContentKey::sample(7))];
    let (a, b) = tokio::join!(a, b);
    assert!(matches!((a, b), (Lookup::Hit(_), Lookup::Hit(_))), "readers do not exclude each other");
}
