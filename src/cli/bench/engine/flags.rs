//! Values of the flags that are one of a few.

use clap::ValueEnum;

use crate::{
    backend::local::engine::{Instructions, Precision, Task},
    tensor::DType,
};

/// `--task`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(super) enum TaskFlag {
    /// Latents to pixels.
    #[default]
    Decode,
    /// Pixels to latents.
    Encode,
}

/// `--answer`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(super) enum AnswerFlag {
    /// IEEE 754 single.
    #[default]
    F32,
    /// IEEE 754 half.
    F16,
    /// Three bytes a pixel; on a GPU alone.
    Uint8,
}

/// `--precision`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum PrecisionFlag {
    /// IEEE 754 single.
    F32,
    /// Upper half of a single.
    Bf16,
    /// IEEE 754 half.
    F16,
}

/// `--instructions`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(super) enum InstructionsFlag {
    /// The widest it has.
    #[default]
    Widest,
    /// AVX2 and FMA at most.
    Avx2,
    /// What every processor of its kind has.
    Portable,
}

impl From<TaskFlag> for Task {
    fn from(flag: TaskFlag) -> Self {
        match flag {
            TaskFlag::Decode => Self::Decode,
            TaskFlag::Encode => Self::Encode,
        }
    }
}

impl From<AnswerFlag> for DType {
    fn from(flag: AnswerFlag) -> Self {
        match flag {
            AnswerFlag::F32 => Self::F32,
            AnswerFlag::F16 => Self::F16,
            AnswerFlag::Uint8 => Self::U8,
        }
    }
}

impl From<InstructionsFlag> for Instructions {
    fn from(flag: InstructionsFlag) -> Self {
        match flag {
            InstructionsFlag::Widest => Self::Widest,
            InstructionsFlag::Avx2 => Self::Avx2,
            InstructionsFlag::Portable => Self::Portable,
        }
    }
}

impl From<PrecisionFlag> for Precision {
    fn from(flag: PrecisionFlag) -> Self {
        match flag {
            PrecisionFlag::F32 => Self::F32,
            PrecisionFlag::Bf16 => Self::BF16,
            PrecisionFlag::F16 => Self::F16,
        }
    }
}
