//! Floats without NaN and infinity, as their bytes come.
//!
//! Both have every bit of the exponent set, whatever the type, so it is enough to look at the last two bytes of each
//! element: also an f32 is judged by its upper half.

use super::WrongReply;
use crate::{float, tensor::DType};

/// Judges floats as they come.
pub(super) struct FiniteCheck {
    /// Exponent bits in the upper two bytes of an element.
    exponent: u16,
    /// Bytes of an element.
    width: usize,
    /// The beginning of an element whose end is in the next piece.
    part: [u8; 4],
    held: usize,
}

impl FiniteCheck {
    /// For elements of a type; none if it has no such values.
    pub(super) const fn new(dtype: DType) -> Option<Self> {
        let Some(exponent) = float::exponent(dtype) else { return None };
        let width = dtype.size();
        Some(Self { exponent, width, part: [0; 4], held: 0 })
    }

    pub(super) fn feed(&mut self, mut piece: &[u8]) -> Result<(), WrongReply> {
        if self.held > 0 {
            let (taken, rest) = piece.split_at((self.width - self.held).min(piece.len()));
            self.part[self.held..][..taken.len()].copy_from_slice(taken);
            (self.held, piece) = (self.held + taken.len(), rest);
            if self.held < self.width {
                return Ok(());
            }
            self.held = 0;
            let part = self.part;
            self.whole(&part[..self.width])?;
        }
        let (whole, rest) = piece.split_at(piece.len() - piece.len() % self.width);
        self.part[..rest.len()].copy_from_slice(rest);
        self.held = rest.len();
        self.whole(whole)
    }

    /// Judges whole elements. A fold without an early exit is vectorised.
    fn whole(&self, bytes: &[u8]) -> Result<(), WrongReply> {
        let exponent = self.exponent;
        let is_bad = |upper: [u8; 2]| u16::from_le_bytes(upper) & exponent == exponent;
        let has_bad = if self.width == 2 {
            bytes.as_chunks::<2>().0.iter().fold(false, |bad, &element| bad | is_bad(element))
        } else {
            bytes.as_chunks::<4>().0.iter().fold(false, |bad, &[_, _, low, high]| bad | is_bad([low, high]))
        };
        if has_bad { Err(WrongReply::NonFinite) } else { Ok(()) }
    }
}
