//! The residual block that every network is made of: some convolutions one after the other, each perhaps after a norm, added
//! to what went in.

mod bands;

use super::conv::{Conv, Normed};
use super::map::{Activation, Map};
use super::{EngineError, Run};

/// `activation(shortcut(x) + steps(x))`.
pub(super) struct Residual {
    pub(super) steps: Vec<Step>,
    /// A 1x1 where the width changes.
    pub(super) shortcut: Option<Conv>,
    pub(super) activation: Activation,
}

/// `activation(conv(norm(x)))`. The last step's activation is the block's.
pub(super) struct Step {
    pub(super) norm: Option<Normed>,
    pub(super) conv: Conv,
    pub(super) activation: Activation,
}

/// A map that goes into a block, or the convolution of one: the output of an upsampling convolution is the largest map of its
/// stage, and a block that works in bands has it made a few rows at a time.
pub(super) struct Ahead<'a> {
    pub(super) map: Map,
    pub(super) conv: Option<&'a Conv>,
}

// === impl Residual ===

impl Residual {
    /// The block, in bands where the run asks for them and the maps are worth it.
    pub(super) fn run(&self, x: Ahead<'_>, run: &mut Run<'_>) -> Result<Map, EngineError> {
        if let Some(least) = run.in_bands
            && let Some(banded) = bands::Banded::of(self, &x, least)?
        {
            return banded.run(x, run);
        }
        let mut x = x.whole()?;
        let (last, steps) = self.steps.split_last().ok_or_else(|| EngineError::Config("an empty block".into()))?;
        let mut h = None;
        for step in steps {
            // Assigned, not shadowed: each map is freed as soon as the next one stands.
            h = Some(step.conv.run_onto(h.as_ref().unwrap_or(&x), step.norm.as_ref(), None, step.activation)?);
        }
        if let Some(shortcut) = &self.shortcut {
            x = shortcut.run_over(x)?;
        }
        let h = h.ok_or_else(|| EngineError::Config("a block of one convolution".into()))?;
        let y = last.conv.run_onto(&h, last.norm.as_ref(), Some(x), self.activation)?;
        drop(h);
        // What the shortcut left over would go along through the rest of the network.
        Ok(if run.in_bands.is_some() { y.trimmed() } else { y })
    }
}

// === impl Ahead ===

impl Ahead<'_> {
    /// All of it.
    pub(super) fn whole(self) -> Result<Map, EngineError> {
        match self.conv {
            Some(conv) => conv.run(&self.map, Activation::None),
            None => Ok(self.map),
        }
    }
}

impl From<Map> for Ahead<'_> {
    fn from(map: Map) -> Self {
        Self { map, conv: None }
    }
}
