//! Which of cuDNN's algorithms are tried for a convolution, in which order, and what is made of a refusal. Knows no driver, so
//! that it is tested without one.

use super::convolve::Tail;

/// cuDNN's number of `CUDNN_CONVOLUTION_FWD_ALGO_IMPLICIT_PRECOMP_GEMM`, by which its channels-last kernels for tensor cores are
/// reached. Without an activation the fused call takes no other (NVIDIA's API reference, `cudnnConvolutionBiasActivationForward`,
/// on `CUDNN_ACTIVATION_IDENTITY`).
pub(super) const IMPLICIT_PRECOMP_GEMM: u32 = 1;
/// Needs no workspace and knows all layouts.
pub(super) const IMPLICIT_GEMM: u32 = 0;

/// One line of what cuDNN's heuristics answer.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ranked {
    pub(super) algorithm: u32,
    pub(super) is_offered: bool,
    pub(super) workspace: usize,
}

/// Why an algorithm did not run.
#[derive(Debug)]
pub(super) enum Refusal<E> {
    /// It is none for this convolution: another may be.
    NotSupported(u32),
    /// It failed, and so would others.
    Failed(E),
}

/// The algorithms to try, best first: what the heuristics offer within `workspace` bytes, then the two that are always worth it.
pub(super) fn algorithms(ranked: &[Ranked], tail: Tail, workspace: usize) -> Vec<u32> {
    if tail == (Tail::Fused { relu: false }) {
        return vec![IMPLICIT_PRECOMP_GEMM];
    }
    let offered = ranked.iter().filter(|it| it.is_offered && it.workspace <= workspace).map(|it| it.algorithm);
    let mut order: Vec<u32> = Vec::new();
    for algorithm in offered.chain([IMPLICIT_PRECOMP_GEMM, IMPLICIT_GEMM]) {
        if !order.contains(&algorithm) {
            order.push(algorithm);
        }
    }
    order
}

/// Whether a status of cuDNN 9 means "not this way", and not "broken". 3000 to 3999 are `CUDNN_STATUS_NOT_SUPPORTED` and its
/// kinds (`cudnn_graph.h`, `CUDNN_STATUS_CATEGORY`). The fused call also says `CUDNN_STATUS_BAD_PARAM`, 2000 to 2999, of combinations
/// that it does not have; the plain convolution of the same tensors then tells whether they were at fault.
pub(super) fn is_unsupported(status: u32, tail: Tail) -> bool {
    match status / 1000 {
        3 => true,
        2 => tail != Tail::Plain,
        _ => false,
    }
}

/// The first algorithm that runs, or none if all are refused.
pub(super) fn first_that_runs<E>(
    algorithms: &[u32],
    mut attempt: impl FnMut(u32) -> Result<(), Refusal<E>>,
) -> Result<Option<u32>, E> {
    for &algorithm in algorithms {
        match attempt(algorithm) {
            Ok(()) => return Ok(Some(algorithm)),
            Err(Refusal::NotSupported(status)) => tracing::debug!(algorithm, status, "cuDNN refuses an algorithm"),
            Err(Refusal::Failed(error)) => return Err(error),
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    const FUSED: Tail = Tail::Fused { relu: true };

    fn ranked(algorithm: u32, is_offered: bool, workspace: usize) -> Ranked {
        Ranked { algorithm, is_offered, workspace }
    }

    #[test]
    fn heuristics_come_first_and_what_is_too_large_or_refused_is_left_out() {
        let heuristics = [ranked(7, true, 100), ranked(6, true, 99), ranked(4, false, 0), ranked(1, true, 0)];
        assert_eq!(algorithms(&heuristics, FUSED, 99), [6, 1, 0]);
        assert_eq!(algorithms(&heuristics, Tail::Plain, 100), [7, 6, 1, 0]);
        assert_eq!(algorithms(&[], Tail::Plain, 0), [1, 0]);
        assert_eq!(algorithms(&heuristics, Tail::Fused { relu: false }, 100), [1]);
    }

    #[test]
    fn only_what_says_not_supported_leads_on() {
        for (status, plain, fused) in
            [(3000, true, true), (3004, true, true), (2000, false, true), (4000, false, false), (5000, false, false)]
        {
            assert_eq!(is_unsupported(status, Tail::Plain), plain, "{status}");
            assert_eq!(is_unsupported(status, FUSED), fused, "{status}");
        }
    }

    #[test]
    fn the_first_that_runs_is_taken_and_failures_end_the_search() {
        let mut tried = Vec::new();
        let mut answer = |algorithm| {
            tried.push(algorithm);
            match algorithm {
                6 | 7 => Err(Refusal::NotSupported(3000)),
                5 => Err(Refusal::Failed("broken")),
                _ => Ok(()),
            }
        };
        assert_eq!(first_that_runs(&[7, 6, 1, 0], &mut answer), Ok(Some(1)));
        assert_eq!(first_that_runs(&[6, 7], &mut answer), Ok(None));
        assert_eq!(first_that_runs(&[6, 5, 1], &mut answer), Err("broken"));
        assert_eq!(tried, [7, 6, 1, 6, 7, 6, 5]);
    }
}
