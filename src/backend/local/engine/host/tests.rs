//! Every kernel against sums in f64 over random shapes, and equal bits however the work is shared out.

use proptest::{collection::vec, prelude::*};

use super::{
    super::Activation, arena::Arena, attend::attend, convolve::HostConv, moments, simd::Instructions, source::*, *,
};

/// Geometries of the networks: kernel, stride, zeros before and after, upsampling.
const GEOMETRIES: [[usize; 5]; 6] =
    [[3, 1, 1, 1, 1], [1, 1, 0, 0, 1], [3, 2, 1, 1, 1], [3, 2, 0, 1, 1], [3, 1, 1, 1, 2], [3, 1, 1, 1, 3]];

/// Relative distance from sums in f64: Winograd's transforms cost a few units in the sixth digit, and what ReLU lets through may
/// be little beside what was summed.
const WITHIN: f64 = 4e-6;

fn noise(seed: u64, len: usize) -> Vec<f32> {
    super::super::gaussian::normals(seed, len)
}

/// Names the instruction set that this process's kernels are to use, where a test starts it for one.
const INSTRUCTIONS: &str = "LATENTGATE_TEST_INSTRUCTIONS";

#[expect(clippy::disallowed_methods, reason = "no configuration: one test tells another")]
fn choose_instructions() {
    match std::env::var(INSTRUCTIONS).as_deref() {
        Ok("avx2") => Instructions::Avx2.choose(),
        Ok("portable") => Instructions::Portable.choose(),
        _ => return,
    };
    // AVX-512 has sixteen, and it was taken away.
    assert!(Instructions::lanes() < 16);
}

fn map(arena: &Arena, planes: &[f32], dims: [usize; 4]) -> HostMap {
    choose_instructions();
    HostMap::from_planes(arena, planes, dims, Precision::F32)
}

fn apply(activation: Activation, x: f64) -> f64 {
    match activation {
        Activation::None => x,
        Activation::Relu => x.max(0.0),
        Activation::Silu => x / (1.0 + (-x).exp()),
    }
}

/// One convolution with random numbers in and around it.
#[derive(Debug)]
struct Case {
    dims: [usize; 4],
    outputs: usize,
    geometry: [usize; 5],
    normed: Option<Activation>,
    onto: bool,
    activation: Activation,
}

impl Case {
    fn conv(&self) -> (HostConv, Vec<f32>) {
        let ([_, inputs, ..], [kernel, stride, before, after, upsample]) = (self.dims, self.geometry);
        let weights = noise(2, self.outputs * inputs * kernel * kernel);
        let packed = HostConv::pack(&weights, inputs, self.outputs, kernel);
        let bias = noise(3, self.outputs);
        (HostConv { weights: packed, bias, inputs, kernel, stride, before, after, upsample }, weights)
    }

    fn affine(&self) -> Option<Affine> {
        let [n, c, ..] = self.dims;
        let len = n * stored(c);
        self.normed.map(|activation| Affine { scale: noise(4, len), shift: noise(5, len), activation })
    }

    fn run(&self, arena: &Arena) -> Vec<f32> {
        let (conv, _) = self.conv();
        let x = map(arena, &noise(1, self.dims.iter().product()), self.dims);
        let dims = [x.n, self.outputs, conv.extent(x.h), conv.extent(x.w)];
        let onto = self.onto.then(|| map(arena, &noise(6, dims.iter().product()), dims));
        let affine = self.affine();
        let source = Source { affine: affine.as_ref(), ..Source::whole(&x) };
        conv.run(&source, onto, self.activation).to_planes()
    }

    /// The same in f64.
    fn want(&self) -> Vec<f64> {
        let ((conv, weights), affine, [n, c, h, w]) = (self.conv(), self.affine(), self.dims);
        let planes = noise(1, self.dims.iter().product());
        let x = |image: usize, channel: usize, y: usize, column: usize| {
            let value = f64::from(planes[((image * c + channel) * h + y) * w + column]);
            let Some(affine) = &affine else { return value };
            let at = image * stored(c) + channel;
            apply(affine.activation, value * f64::from(affine.scale[at]) + f64::from(affine.shift[at]))
        };
        let (high, wide) = (conv.extent(h), conv.extent(w));
        let onto = noise(6, n * self.outputs * high * wide);
        let mut want = Vec::new();
        for (image, o, y, column) in (0..n * self.outputs * high * wide)
            .map(|i| (i / (self.outputs * high * wide), i / (high * wide) % self.outputs, i / wide % high, i % wide))
        {
            let mut sum = f64::from(conv.bias[o]) + if self.onto { f64::from(onto[want.len()]) } else { 0.0 };
            for (i, tap) in weights[o * c * conv.kernel.pow(2)..][..c * conv.kernel.pow(2)].iter().enumerate() {
                let (channel, tap_at) = (i / conv.kernel.pow(2), i % conv.kernel.pow(2));
                let sy = (y * conv.stride + tap_at / conv.kernel).wrapping_sub(conv.before);
                let sx = (column * conv.stride + tap_at % conv.kernel).wrapping_sub(conv.before);
                if sy < h * conv.upsample && sx < w * conv.upsample {
                    sum += f64::from(*tap) * x(image, channel, sy / conv.upsample, sx / conv.upsample);
                }
            }
            want.push(apply(self.activation, sum));
        }
        want
    }
}

fn distance(got: &[f32], want: &[f64]) -> f64 {
    assert_eq!(got.len(), want.len());
    let apart: f64 = got.iter().zip(want).map(|(&g, w)| (f64::from(g) - w).powi(2)).sum();
    (apart / want.iter().map(|w| w * w).sum::<f64>()).sqrt()
}

/// How far attention is from the same in f64, where scores are spread by `spread`.
fn attention_apart([n, c, h, w]: [usize; 4], spread: f32) -> f64 {
    let (dims, pixels) = ([n, c, h, w], h * w);
    let arena = Arena::default();
    let [q, k, v] = [1, 2, 3].map(|seed| -> Vec<f32> {
        noise(seed, n * c * pixels).iter().map(|x| x * if seed < 3 { spread.sqrt() } else { 1.0 }).collect()
    });
    let got = attend(&map(&arena, &q, dims), &map(&arena, &k, dims), &map(&arena, &v, dims)).to_planes();
    let mut want = vec![0.0; n * c * pixels];
    let at = |image: usize, channel: usize, pixel: usize| (image * c + channel) * pixels + pixel;
    for (image, query) in (0..n * pixels).map(|i| (i / pixels, i % pixels)) {
        let score = |key: usize| -> f64 {
            (0..c).map(|d| f64::from(q[at(image, d, query)]) * f64::from(k[at(image, d, key)])).sum::<f64>()
                / (c as f64).sqrt()
        };
        let scores: Vec<f64> = (0..pixels).map(score).collect();
        let top = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let sum: f64 = scores.iter().map(|s| (s - top).exp()).sum();
        for d in 0..c {
            want[at(image, d, query)] =
                (0..pixels).map(|key| (scores[key] - top).exp() / sum * f64::from(v[at(image, d, key)])).sum();
        }
    }
    distance(&got, &want)
}

fn activations() -> impl Strategy<Value = Activation> {
    prop_oneof![Just(Activation::None), Just(Activation::Relu), Just(Activation::Silu)]
}

prop_compose! {
    fn cases()(
        n in 1..3usize, c in 1..40usize, h in 1..40usize, w in 1..40usize, outputs in 1..40usize,
        geometry in 0..GEOMETRIES.len(), normed in proptest::option::of(activations()), onto: bool,
        activation in activations(),
    ) -> Case {
        // Two rows and columns at least, so that halving leaves one.
        let dims = [n, c, h + 1, w + 1];
        Case { dims, outputs, geometry: GEOMETRIES[geometry], normed, onto, activation }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn convolutions_are_right(case in cases()) {
        let apart = distance(&case.run(&Arena::default()), &case.want());
        prop_assert!(apart < WITHIN, "{apart:.1e}");
    }

    #[test]
    fn planes_come_back_as_they_went_in(n in 1..3usize, c in 1..40usize, h in 1..9usize, w in 1..9usize) {
        let planes = noise(1, n * c * h * w);
        prop_assert_eq!(map(&Arena::default(), &planes, [n, c, h, w]).to_planes(), planes);
    }

    #[test]
    fn attention_is_right(n in 1..3usize, c in 1..40usize, h in 1..12usize, w in 1..12usize, spread in 0.1f32..20.0) {
        let apart = attention_apart([n, c, h, w], spread);
        prop_assert!(apart < 2e-5, "{apart:.1e}");
    }

    #[test]
    fn moments_are_right_far_from_zero(
        (groups, width) in (1..5usize, 1..9usize), h in 1..40usize, w in 1..40usize,
        offsets in vec(-1e3f32..1e3, 40),
    ) {
        let (c, pixels) = (groups * width, h * w);
        let mut planes = noise(1, 2 * c * pixels);
        for (plane, values) in planes.chunks_exact_mut(pixels).enumerate() {
            for x in values {
                *x += offsets[plane % c / width];
            }
        }
        let got = moments::of_groups(&map(&Arena::default(), &planes, [2, c, h, w]), groups);
        for (moments, values) in got.iter().zip(planes.chunks_exact(width * pixels)) {
            let mean = values.iter().map(|&x| f64::from(x)).sum::<f64>() / values.len() as f64;
            let deviations: f64 = values.iter().map(|&x| (f64::from(x) - mean).powi(2)).sum();
            prop_assert_eq!(moments.count as usize, values.len());
            prop_assert!((moments.mean - mean).abs() < 1e-5, "{moments:?} {mean}");
            prop_assert!((moments.deviations - deviations).abs() <= 1e-4 * deviations + 1e-6, "{moments:?} {deviations}");
        }
    }
}

#[test]
fn attention_is_right_for_more_keys_than_fit_at_once() {
    for (h, w) in [(1, 1024), (41, 25), (16, 65), (53, 40)] {
        let apart = attention_apart([1, 24, h, w], 4.0);
        assert!(apart < 2e-5, "{h}x{w}: {apart:.1e}");
    }
}

#[test]
fn narrower_instructions_are_right_too() {
    for name in ["avx2", "portable"] {
        let mut tests = std::process::Command::new(std::env::current_exe().unwrap());
        let names = ["convolutions_are_right", "blocks_and_bands_meet", "attention_is_right", "moments_are_right"];
        tests.args(names).env(INSTRUCTIONS, name);
        let output = tests.output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success() && said.contains("5 passed"), "{name}: {said}");
    }
}

/// A map as large as several blocks and bands, with edges that are no multiple of a tile.
fn large() -> Case {
    let geometry = GEOMETRIES[0];
    Case {
        dims: [1, 32, 71, 357],
        outputs: 20,
        geometry,
        normed: Some(Activation::Silu),
        onto: true,
        activation: Activation::Relu,
    }
}

#[test]
fn a_pointwise_that_narrows_takes_the_place_of_what_it_reads() {
    for (inputs, outputs) in [(64, 32), (48, 48), (80, 40), (33, 17), (16, 64), (24, 8)] {
        let case =
            Case { dims: [3, inputs, 13, 9], outputs, geometry: GEOMETRIES[1], normed: None, onto: false, ..large() };
        let arena = Arena::default();
        let x = map(&arena, &noise(1, case.dims.iter().product()), case.dims);
        let want = case.conv().0.run(&Source::whole(&x), None, Activation::None);
        let before = arena.peak_bytes(0);
        let got = case.conv().0.run_over(x);
        assert!(got.to_planes() == want.to_planes(), "{inputs} to {outputs}");
        assert_eq!(arena.peak_bytes(0) == before, outputs >= 16 && outputs <= inputs, "{inputs} to {outputs}");
    }
}

#[test]
fn a_convolution_and_a_pointwise_are_one_convolution() {
    for (inputs, inner, outputs, geometry) in
        [(24, 40, 20, GEOMETRIES[4]), (5, 7, 33, GEOMETRIES[0]), (48, 64, 32, GEOMETRIES[2])]
    {
        let first = Case { dims: [2, inputs, 20, 18], outputs: inner, geometry, normed: None, onto: false, ..large() };
        let second = Case { dims: [2, inner, 1, 1], outputs, geometry: GEOMETRIES[1], ..first };
        let arena = Arena::default();
        let x = map(&arena, &noise(1, first.dims.iter().product()), first.dims);
        let ((conv, _), (pointwise, _)) = (first.conv(), second.conv());
        let between = conv.run(&Source::whole(&x), None, Activation::None);
        let want = pointwise.run(&Source::whole(&between), None, Activation::None).to_planes();
        let got = conv.then(&pointwise, &arena).run(&Source::whole(&x), None, Activation::None).to_planes();
        let apart = distance(&got, &want.iter().map(|&w| f64::from(w)).collect::<Vec<_>>());
        assert!(apart < WITHIN, "{geometry:?}: {apart:.1e}");
    }
}

#[test]
fn blocks_and_bands_meet() {
    let case = large();
    let apart = distance(&case.run(&Arena::default()), &case.want());
    assert!(apart < WITHIN, "{apart:.1e}");
}

#[test]
fn any_number_of_threads_gives_the_same_bits() {
    let with = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| {
            let arena = Arena::default();
            let dims = [1, 32, 60, 50];
            let x = map(&arena, &noise(9, dims.iter().product()), dims);
            let moments = moments::of_groups(&x, 8);
            (large().run(&arena), attend(&x, &x, &x).to_planes(), moments)
        })
    };
    let one = with(1);
    assert!(one == with(2) && one == with(5));
}

#[test]
fn a_rehearsal_foretells_what_is_taken() {
    for (case, geometry) in GEOMETRIES.iter().map(|&geometry| (large(), geometry)) {
        let case = Case { onto: false, geometry, ..case };
        let peak = |arena: Arena| {
            let x = HostMap::new(&arena, case.dims, Precision::F32);
            let affine = case.affine();
            let source = Source { affine: affine.as_ref(), ..Source::whole(&x) };
            drop(case.conv().0.run(&source, None, Activation::None));
            arena.peak_bytes(2)
        };
        assert_eq!(peak(Arena::rehearsal()), peak(Arena::default()), "{geometry:?}");
    }
}
