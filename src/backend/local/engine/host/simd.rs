//! The instruction set, chosen once a process, and the functions that layers apply to each number.

use std::sync::OnceLock;

use half::{bf16, f16};
use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;

use super::super::{Activation, Precision};

/// Channels that travel together: one cache line, one register of AVX-512, two of AVX2.
pub(in super::super) const BLOCK: usize = 16;

/// Numbers a task: 64 KiB, small enough to stay in the first caches, large enough to be worth handing over.
const CHUNK: usize = 16 * 1024;

static ARCH: OnceLock<Arch> = OnceLock::new();

/// What the kernels may use of the processor; a choice for a process, made before its first run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Instructions {
    /// The widest that it has.
    Widest,
    /// AVX2 and FMA at most.
    Avx2,
    /// What every processor of its kind has.
    Portable,
}

impl Instructions {
    /// Has this process's kernels use no more than this. `false` where they have been used already.
    pub fn choose(self) -> bool {
        ARCH.set(self.arch()).is_ok()
    }

    /// Numbers of f32 that the kernels compute at a time: 16 with AVX-512, 8 with AVX2, 4 with NEON, 1 without.
    pub fn lanes() -> usize {
        struct Lanes;

        impl WithSimd for Lanes {
            type Output = usize;

            fn with_simd<S: Simd>(self, _: S) -> usize {
                S::F32_LANES
            }
        }

        arch().dispatch(Lanes)
    }

    fn arch(self) -> Arch {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => pulp::x86::V3::try_new().map_or(Arch::Scalar, Arch::V3),
            #[cfg(not(target_arch = "x86_64"))]
            Self::Avx2 => Arch::Scalar,
            Self::Portable => Arch::Scalar,
            Self::Widest => Arch::new(),
        }
    }
}

/// The instruction set of this process: the widest of this machine, unless something else was chosen.
pub(in super::super) fn arch() -> Arch {
    *ARCH.get_or_init(|| Instructions::Widest.arch())
}

/// `e^x` to about two units in the last place, for `x` in -87..88; clamped outside. Cephes' polynomial: no table and no
/// branch.
#[inline(always)]
pub(in super::super) fn exp<S: Simd>(simd: S, x: S::f32s) -> S::f32s {
    /// Adding 1.5 * 2^23 leaves no bit for fractions: the sum is rounded, and its low bits are the integer.
    const ROUND: f32 = 12_582_912.0;
    /// What f32 adds to an exponent, and the place where it keeps it.
    const BIAS: u32 = 127;
    const MANTISSA: u32 = 23;
    let all = |value: f32| simd.splat_f32s(value);
    let x = simd.min_f32s(simd.max_f32s(x, all(-87.0)), all(88.0));
    let rounded = simd.mul_add_e_f32s(x, all(std::f32::consts::LOG2_E), all(ROUND));
    let n = simd.sub_f32s(rounded, all(ROUND));
    // ln 2 in two parts, the first exact in f32 for every n here.
    let r = simd.mul_add_e_f32s(n, all(-0.693_359_4), x);
    let r = simd.mul_add_e_f32s(n, all(2.121_944_4e-4), r);
    let mut p = all(1.987_569_1e-4);
    for c in [1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5] {
        p = simd.mul_add_e_f32s(p, r, all(c));
    }
    let y = simd.add_f32s(simd.mul_add_e_f32s(simd.mul_f32s(p, r), r, r), all(1.0));
    // 2^n: the shift moves the integer into the exponent and drops all that stood above it.
    let exponent = simd.add_u32s(simd.transmute_u32s_f32s(rounded), simd.splat_u32s(BIAS));
    let power = simd.wrapping_dyn_shl_u32s(exponent, simd.splat_u32s(MANTISSA));
    simd.mul_f32s(y, simd.transmute_f32s_u32s(power))
}

/// Applies `activation`.
#[inline(always)]
pub(in super::super) fn activate<S: Simd>(simd: S, x: S::f32s, activation: Activation) -> S::f32s {
    match activation {
        Activation::None => x,
        Activation::Relu => simd.max_f32s(x, simd.splat_f32s(0.0)),
        Activation::Silu => simd.div_f32s(x, simd.add_f32s(simd.splat_f32s(1.0), exp(simd, simd.neg_f32s(x)))),
    }
}

/// Rounds to `precision` and back.
pub(in super::super) fn round(data: &mut [f32], precision: Precision) {
    let one: fn(&mut [f32]) = match precision {
        Precision::F32 => return,
        Precision::F16 => |d| d.iter_mut().for_each(|v| *v = f16::from_f32(*v).to_f32()),
        Precision::BF16 => |d| d.iter_mut().for_each(|v| *v = bf16::from_f32(*v).to_f32()),
    };
    data.par_chunks_mut(CHUNK).for_each(one);
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Each<'a>(&'a mut [f32], fn(f32) -> f64);

    impl WithSimd for Each<'_> {
        /// The worst relative error of `exp`.
        type Output = f64;

        #[inline(always)]
        fn with_simd<S: Simd>(self, simd: S) -> f64 {
            let want: Vec<f64> = self.0.iter().map(|&x| self.1(x)).collect();
            for x in S::as_mut_simd_f32s(self.0).0 {
                *x = exp(simd, *x);
            }
            let apart = self.0.iter().zip(want).map(|(&got, want)| (f64::from(got) - want).abs() / want);
            apart.fold(0.0, f64::max)
        }
    }

    #[test]
    fn exponentials_are_right_on_every_instruction_set() {
        for instructions in [Instructions::Widest, Instructions::Avx2, Instructions::Portable] {
            let mut x: Vec<f32> = (-86 * 1024..88 * 1024).map(|i| i as f32 / 1024.0).collect();
            let worst = instructions.arch().dispatch(Each(&mut x, |x| f64::from(x).exp()));
            assert!(worst < 3e-7, "{instructions:?}: {worst:.1e}");
        }
    }

    #[test]
    fn far_out_it_is_clamped() {
        let mut x = vec![-1e30f32; 64];
        arch().dispatch(Each(&mut x, |_| f64::from(f32::MIN_POSITIVE)));
        assert!(x.iter().all(|&y| y > 0.0 && y < 1.7e-38), "{}", x[0]);
        let mut x = vec![f32::INFINITY; 64];
        arch().dispatch(Each(&mut x, |_| 1.0));
        assert!(x.iter().all(|&y| y.is_finite()));
    }
}
