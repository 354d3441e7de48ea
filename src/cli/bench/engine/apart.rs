//! How far two results are from each other.

use std::fmt;

use crate::{float, tensor::Tensor};

/// The distance of one f32 tensor from another of its shape.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Apart {
    /// Length of the difference to the length of what is right.
    relative: f64,
    /// Of a single number.
    largest: f64,
}

impl Apart {
    pub(super) fn of(got: &Tensor, want: &Tensor) -> Self {
        let (mut squares, mut length, mut largest) = (0.0, 0.0, 0.0f64);
        for (got, want) in float::values(got.data()).zip(float::values(want.data())) {
            let apart = f64::from(got) - f64::from(want);
            squares += apart * apart;
            length += f64::from(want).powi(2);
            largest = largest.max(apart.abs());
        }
        Self { relative: if squares == 0.0 { 0.0 } else { (squares / length).sqrt() }, largest }
    }
}

impl fmt::Display for Apart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.largest == 0.0 {
            return f.write_str("the same bits as a whole run's");
        }
        write!(f, "{:.1e} from a whole run (relative L2), a single number {:.1e} at most", self.relative, self.largest)
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::tensor::{DType, Shape};

    fn tensor(values: [f32; 2]) -> Tensor {
        let data: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        Tensor::try_new(DType::F32, Shape::try_new(&[2]).unwrap(), Bytes::from(data)).unwrap()
    }

    #[test]
    fn it_is_of_all_numbers_and_of_the_worst() {
        let want = tensor([3.0, -4.0]);
        assert_eq!(Apart::of(&tensor([3.0, -3.5]), &want), Apart { relative: 0.1, largest: 0.5 });
        assert_eq!(Apart::of(&want, &want).to_string(), "the same bits as a whole run's");
        assert!(Apart::of(&want, &tensor([0.0, 0.0])).relative.is_infinite());
    }
}
