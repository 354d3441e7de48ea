//! One job on its way through the engine, and what it may share a run with.

use std::time::Duration;

use tokio::{sync::oneshot, time::Instant};
use tracing::Span;

use crate::{
    backend::Compute,
    error::Error,
    job::{Job, Work},
    model::{ModelId, Task},
    tensor::{DType, Tensor},
};

/// One job for the engine.
pub(super) struct Order {
    pub(super) compute: Compute,
    pub(super) span: Span,
    pub(super) queued_at: Instant,
    pub(super) size: Size,
    pub(super) made: oneshot::Sender<Result<Made, Error>>,
}

/// What the engine made of a job.
pub(super) struct Made {
    pub(super) tensor: Tensor,
    pub(super) queued: Duration,
    pub(super) computed: Duration,
}

/// So many pictures of a height and width in pixels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Size {
    pub(super) n: usize,
    pub(super) height: usize,
    pub(super) width: usize,
}

// === impl Order ===

impl Order {
    /// The job that begins to wait now, and where its answer will be.
    pub(super) fn new(compute: Compute) -> Result<(Self, oneshot::Receiver<Result<Made, Error>>), Error> {
        let (made, answer) = oneshot::channel();
        let size = Size::of(&compute.job)?;
        Ok((Self { compute, span: Span::current(), queued_at: Instant::now(), size, made }, answer))
    }

    pub(super) fn model(&self) -> &ModelId {
        &self.compute.job.model.id
    }

    pub(super) fn task(&self) -> Task {
        self.compute.job.task()
    }

    /// Whether nobody waits for it any more.
    pub(super) fn is_forsaken(&self) -> bool {
        self.compute.cancel.is_cancelled() || self.made.is_closed()
    }

    /// Whether one run can answer both. Scaling, dtypes and a sample's seed are applied to each before and after.
    pub(super) fn is_like(&self, other: &Self) -> bool {
        let side = |order: &Self| (order.size.height, order.size.width);
        self.model() == other.model() && self.task() == other.task() && side(self) == side(other)
    }
}

// === impl Size ===

impl Size {
    fn of(job: &Job) -> Result<Self, Error> {
        let scale = job.model.spatial_scale;
        let (n, height, width) = match (&job.work, job.input().dtype(), job.input().shape().dims()) {
            (Work::Decode { .. }, _, &[n, _, h, w]) => (n, h * scale, w * scale),
            (Work::Encode { .. }, DType::U8, &[n, h, w, _]) | (Work::Encode { .. }, _, &[n, _, h, w]) => (n, h, w),
            _ => return Err(Error::internal("canonical input has an unknown layout")),
        };
        Ok(Self { n, height, width })
    }

    /// Of one picture.
    pub(super) fn pixels(self) -> usize {
        self.height * self.width
    }
}
