//! What the demo says: one row a step, and how near the picture came back.

use std::time::Duration;

use bytesize::ByteSize;

use crate::{
    cli::{
        client::{Answer, source_name},
        models,
    },
    proto::Source,
    tensor::Tensor,
};

/// One row of the table.
pub(super) struct Step {
    name: String,
    sources: Vec<Source>,
    /// In ascending order.
    times: Vec<Duration>,
    bytes: usize,
}

const COLUMNS: [&str; 7] = ["STEP", "FROM", "ANSWERS", "FIRST", "MEDIAN", "LAST", "BYTES"];

// === impl Step ===

impl Step {
    /// A single request.
    pub(super) fn of(name: &str, answer: &Answer) -> Self {
        let (sources, times) = (vec![answer.source], vec![answer.took]);
        Self { name: name.to_owned(), sources, times, bytes: answer.data.len() }
    }

    /// Requests at once, with the time of each since they all began.
    pub(super) fn of_many(name: String, answers: &[(Answer, Duration)]) -> Self {
        let mut times: Vec<_> = answers.iter().map(|&(_, took)| took).collect();
        times.sort_unstable();
        let sources = answers.iter().map(|(answer, _)| answer.source).collect();
        Self { name, sources, times, bytes: answers.iter().map(|(answer, _)| answer.data.len()).sum() }
    }

    /// What was done.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Whether every answer came from there.
    pub(super) fn is_all_from(&self, source: Source) -> bool {
        self.sources.iter().all(|&it| it == source)
    }

    fn row(&self) -> [String; 7] {
        let at = |index: usize| self.times.get(index).map_or_else(String::new, |&time| milliseconds(time));
        let last = self.times.len().saturating_sub(1);
        let (first, median) = if last == 0 { (String::new(), String::new()) } else { (at(0), at(last / 2)) };
        let bytes = ByteSize(self.bytes as u64).display().iec().to_string();
        [self.name.clone(), self.from(), self.sources.len().to_string(), first, median, at(last), bytes]
    }

    /// The sources, counted where there are several.
    fn from(&self) -> String {
        let all = [Source::Computed, Source::Coalesced, Source::Memory, Source::Unspecified];
        let count = |source: Source| self.sources.iter().filter(|&&it| it == source).count();
        let counted = all.map(|source| (count(source), source_name(source)));
        let found = counted.iter().filter(|(count, _)| *count > 0);
        let words = found.map(|(count, name)| match self.sources.len() {
            1 => (*name).to_owned(),
            _ => format!("{count} {name}"),
        });
        words.collect::<Vec<_>>().join(", ")
    }
}

/// The table's lines.
pub(super) fn table<'a>(steps: impl Iterator<Item = &'a Step>) -> Vec<String> {
    let rows: Vec<_> = std::iter::once(COLUMNS.map(str::to_owned)).chain(steps.map(Step::row)).collect();
    models::table(&rows)
}

/// Peak signal-to-noise ratio of two u8 tensors in dB: infinite if they are equal, NaN if their shapes are not.
pub(super) fn psnr(a: &Tensor, b: &Tensor) -> f64 {
    if a.shape() != b.shape() {
        return f64::NAN;
    }
    let squares = a.data().iter().zip(b.data()).map(|(&a, &b)| u64::from(a.abs_diff(b)).pow(2));
    let mean = squares.sum::<u64>() as f64 / a.data().len() as f64;
    10.0 * (255.0f64.powi(2) / mean).log10()
}

fn milliseconds(time: Duration) -> String {
    format!("{:.1} ms", time.as_secs_f64() * 1e3)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::{DType, Shape};

    fn pixels(value: u8, width: usize) -> Tensor {
        let shape = Shape::try_new(&[1, 1, width, 3]).unwrap();
        Tensor::try_new(DType::U8, shape, vec![value; width * 3].into()).unwrap()
    }

    #[test]
    fn psnr_is_that_of_the_books() {
        assert!((psnr(&pixels(100, 4), &pixels(110, 4)) - 28.130_8).abs() < 1e-4);
        assert!(psnr(&pixels(1, 4), &pixels(1, 4)).is_infinite());
        assert!(psnr(&pixels(1, 4), &pixels(1, 5)).is_nan());
    }

    #[test]
    fn a_crowds_row_counts_where_answers_came_from() {
        let step = Step {
            name: "many".to_owned(),
            sources: vec![Source::Coalesced, Source::Computed, Source::Coalesced],
            times: [1, 2, 9].map(Duration::from_millis).to_vec(),
            bytes: 3072,
        };
        let want = ["many", "1 computed, 2 coalesced", "3", "1.0 ms", "2.0 ms", "9.0 ms", "3.0 KiB"];
        assert_eq!(step.row(), want);
    }
}
