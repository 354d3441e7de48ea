//! The one-dimensional transforms of F(4, 3) at the points 0, 1, -1, 2, -2 and infinity (Lavin and Gray, "Fast Algorithms for
//! Convolutional Neural Networks", 2015, section 4.3), a vector of channels at a time.

use pulp::Simd;

use super::{TILE, WINDOW};

/// Three taps at the six points.
#[inline(always)]
pub(super) fn of_taps<S: Simd>(s: S, [a, b, c]: [S::f32s; 3]) -> [S::f32s; WINDOW] {
    let all = |value: f32| s.splat_f32s(value);
    let (sixth, twelfth) = (s.mul_f32s(b, all(-1.0 / 6.0)), s.mul_f32s(b, all(1.0 / 12.0)));
    let sum = s.mul_f32s(s.add_f32s(a, c), all(-1.0 / 6.0));
    let far = s.mul_add_e_f32s(a, all(1.0 / 24.0), s.mul_f32s(c, all(1.0 / 6.0)));
    [
        s.mul_f32s(a, all(0.25)),
        s.add_f32s(sum, sixth),
        s.sub_f32s(sum, sixth),
        s.add_f32s(far, twelfth),
        s.sub_f32s(far, twelfth),
        c,
    ]
}

/// Six inputs at the six points.
#[inline(always)]
pub(super) fn of_inputs<S: Simd>(s: S, d: [S::f32s; WINDOW]) -> [S::f32s; WINDOW] {
    let all = |value: f32| s.splat_f32s(value);
    let (a, b) = (s.mul_add_e_f32s(all(-4.0), d[2], d[4]), s.mul_add_e_f32s(all(-4.0), d[1], d[3]));
    let (c, e) = (s.sub_f32s(d[4], d[2]), s.mul_f32s(all(2.0), s.sub_f32s(d[3], d[1])));
    [
        s.mul_add_e_f32s(all(4.0), d[0], s.mul_add_e_f32s(all(-5.0), d[2], d[4])),
        s.add_f32s(a, b),
        s.sub_f32s(a, b),
        s.add_f32s(c, e),
        s.sub_f32s(c, e),
        s.mul_add_e_f32s(all(4.0), d[1], s.mul_add_e_f32s(all(-5.0), d[3], d[5])),
    ]
}

/// Six points to four outputs.
#[inline(always)]
pub(super) fn to_outputs<S: Simd>(s: S, m: [S::f32s; WINDOW]) -> [S::f32s; TILE] {
    let all = |value: f32| s.splat_f32s(value);
    let (a, b) = (s.add_f32s(m[1], m[2]), s.sub_f32s(m[1], m[2]));
    let (c, d) = (s.add_f32s(m[3], m[4]), s.sub_f32s(m[3], m[4]));
    [
        s.add_f32s(s.add_f32s(m[0], a), c),
        s.mul_add_e_f32s(all(2.0), d, b),
        s.mul_add_e_f32s(all(4.0), c, a),
        s.add_f32s(s.mul_add_e_f32s(all(8.0), d, b), m[5]),
    ]
}
