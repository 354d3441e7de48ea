//! Normal noise from a seed, the same on every machine and in every release.
//!
//! The seed in little-endian keys a BLAKE3 stream (derive-key mode). Each pair of normals takes sixteen bytes of it as two
//! little-endian `u64`; the upper 53 bits `b` of each become `(b + 1/2) / 2^53`, which is never 0 and never 1; Box and
//! Muller's transform in f64 makes `r cos` and `r sin` of them; both round to f32. Logarithm, sine and cosine are `libm`'s
//! in plain Rust, since the platforms' own differ in the last bit.

use std::f64::consts::TAU;

/// Separates this use of BLAKE3 from every other; a change of the algorithm changes it.
const CONTEXT: &str = "latentgate 2026-11 gaussian noise of a posterior sample v1";

/// `len` independent standard normals.
pub(super) fn normals(seed: u64, len: usize) -> Vec<f32> {
    let mut stream = blake3::Hasher::new_derive_key(CONTEXT).update(&seed.to_le_bytes()).finalize_xof();
    let mut out = Vec::with_capacity(len + 1);
    while out.len() < len {
        let mut bytes = [0; 16];
        stream.fill(&mut bytes);
        let [a, b] = [uniform(&bytes[..8]), uniform(&bytes[8..])];
        let radius = libm::sqrt(-2.0 * libm::log(a));
        out.push((radius * libm::cos(TAU * b)) as f32);
        out.push((radius * libm::sin(TAU * b)) as f32);
    }
    out.truncate(len);
    out
}

fn uniform(bytes: &[u8]) -> f64 {
    let word = bytes.iter().rev().fold(0u64, |word, &b| word << 8 | u64::from(b));
    ((word >> 11) as f64 + 0.5) / (1u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_gives_these_numbers_forever() {
        let bits: Vec<u32> = normals(42, 4).into_iter().map(f32::to_bits).collect();
        assert_eq!(bits, [3_204_832_615, 3_205_860_179, 1_062_981_221, 3_194_709_681]);
        assert_eq!(normals(42, 3), normals(42, 4)[..3]);
        assert_ne!(normals(43, 4), normals(42, 4));
    }

    #[test]
    fn the_numbers_are_normal() {
        let x = normals(7, 100_000);
        let moment = |k: i32| x.iter().map(|&v| f64::from(v).powi(k)).sum::<f64>() / x.len() as f64;
        assert!(moment(1).abs() < 0.02, "{}", moment(1));
        assert!((moment(2) - 1.0).abs() < 0.03, "{}", moment(2));
        assert!((moment(4) - 3.0).abs() < 0.2, "{}", moment(4));
    }
}
