//! What the bench says: a table for people, or an object for each size.

use std::time::Duration;

use bytesize::ByteSize;
use serde_json::{Value, json};

use super::{machine::Machine, measure::Measured};
use crate::{
    backend::local::engine::{Device, Facts, Instructions, Precision, Task},
    cli::{answer, models},
};

/// What holds for all sizes.
pub(super) struct Report<'a> {
    /// As it was asked for.
    pub(super) model: &'a str,
    pub(super) task: Task,
    pub(super) device: Device,
    pub(super) facts: &'a Facts,
    /// How long loading took.
    pub(super) loaded: Duration,
    pub(super) machine: Machine,
    pub(super) runs: u16,
}

const COLUMNS: [&str; 9] = ["SIZE", "FIRST", "MEDIAN", "MIN", "CPU", "MPIXEL/S", "MEMORY", "PEAK", "FORETOLD"];

impl Report<'_> {
    pub(super) fn print_table(&self, measured: &[Measured]) -> anyhow::Result<()> {
        let facts = self.facts;
        answer(format_args!(
            "{}: {}, {:.1} million parameters, {} on {}; loaded in {}",
            self.model,
            facts.class_name,
            facts.parameters as f64 / 1e6,
            self.precision(),
            self.device,
            seconds(self.loaded)
        ))?;
        answer(format_args!("{}; {} numbers at a time", self.machine.told(), Instructions::lanes()))?;
        answer(format_args!(
            "{}: first run, then {} more; processor time of all threads (median); memory before, and at its peak{}, and \
             what a run was foretold to take",
            self.task.label(),
            self.runs,
            if measured.iter().all(|it| it.is_peak_own) { "" } else { " since the program began" }
        ))?;
        let rows: Vec<_> = std::iter::once(COLUMNS.map(str::to_owned)).chain(measured.iter().map(row)).collect();
        models::table(&rows).iter().try_for_each(answer)
    }

    pub(super) fn print_json(&self, measured: &Measured) -> anyhow::Result<()> {
        answer(self.as_json(measured))
    }

    fn as_json(&self, measured: &Measured) -> Value {
        let (median, min) = (measured.median(), measured.min());
        json!({
            "model": self.model,
            "class_name": self.facts.class_name,
            "parameters": self.facts.parameters,
            "task": self.task.label(),
            "width": measured.size.width,
            "height": measured.size.height,
            "batch": measured.batch,
            "precision": self.precision(),
            "device": self.device.to_string(),
            "processor": self.machine.processor,
            "cpu_features": self.machine.features,
            "vector_lanes": Instructions::lanes(),
            "processors": self.machine.processors,
            "threads": self.machine.threads,
            "version": env!("CARGO_PKG_VERSION"),
            "load_seconds": self.loaded.as_secs_f64(),
            "runs": self.runs,
            "wall_first_seconds": measured.first.wall.as_secs_f64(),
            "wall_median_seconds": median.wall.as_secs_f64(),
            "wall_min_seconds": min.wall.as_secs_f64(),
            "cpu_first_seconds": measured.first.cpu.as_secs_f64(),
            "cpu_median_seconds": median.cpu.as_secs_f64(),
            "cpu_min_seconds": min.cpu.as_secs_f64(),
            "megapixels_per_second": measured.megapixels_per_second(),
            "memory_before_bytes": measured.before.resident,
            "memory_peak_bytes": measured.after.peak,
            "memory_foretold_bytes": measured.foretold,
            "memory_peak_of": if measured.is_peak_own { "size" } else { "process" },
        })
    }

    fn precision(&self) -> &'static str {
        match self.facts.precision {
            Precision::F32 => "f32",
            Precision::F16 => "f16",
            Precision::BF16 => "bf16",
        }
    }
}

fn row(measured: &Measured) -> [String; 9] {
    let (median, min) = (measured.median(), measured.min());
    [
        measured.size.to_string(),
        seconds(measured.first.wall),
        seconds(median.wall),
        seconds(min.wall),
        seconds(median.cpu),
        format!("{:.2}", measured.megapixels_per_second()),
        bytes(measured.before.resident),
        bytes(measured.after.peak),
        bytes(Some(measured.foretold)),
    ]
}

fn seconds(time: Duration) -> String {
    format!("{:.3} s", time.as_secs_f64())
}

fn bytes(bytes: Option<u64>) -> String {
    bytes.map_or_else(|| "unknown".to_owned(), |bytes| ByteSize(bytes).display().iec().to_string())
}
