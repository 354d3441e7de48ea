//! A residual block some rows at a time, so that of its maps only two are ever whole: what goes in and what comes out, or one,
//! where the result takes the place of the input.
//!
//! A norm needs the moments of a whole map. They come from passes of their own: all bands up to that norm are computed, and
//! forgotten again but for the input of the last step, which waits where the result goes. What is computed more than
//! once is the price of the memory. A 1x1 shortcut of an upsampled map is one convolution with the upsampling's.

use std::{borrow::Cow, ops::Range};

use super::super::host::HostMap;
use super::super::host::convolve::HostConv;
use super::super::host::moments::{self, Moments};
use super::super::host::source::{Affine, Source};
use super::super::host::winograd::TILE;
use super::super::map::{Activation, Map};
use super::super::{EngineError, Run};
use super::{Ahead, Residual};

/// Pixels of a band at most: enough for every thread, and a small part of a map that is worth bands.
const PIXELS: usize = 64 * 1024;
/// Rows of a band at least: each band computes two rows or so beyond its own for every convolution that follows.
const ROWS: usize = 32;
/// Bands there are at least; with fewer there is little to save.
const FEWEST: usize = 4;

/// One block with the sizes of what it reads.
pub(super) struct Banded<'a> {
    block: &'a Residual,
    convs: Vec<&'a HostConv>,
    height: usize,
    rows: usize,
}

/// What goes into the block: a map, or a convolution of one.
#[derive(Clone, Copy)]
struct Input<'a> {
    map: &'a HostMap,
    conv: Option<&'a HostConv>,
}

/// Some rows of a map of the block.
struct Window<'a> {
    map: Cow<'a, HostMap>,
    top: usize,
}

// === impl Banded ===

impl<'a> Banded<'a> {
    /// The block for such an input, if it has `least` pixels and is worth bands.
    pub(super) fn of(block: &'a Residual, x: &Ahead<'_>, least: usize) -> Result<Option<Self>, EngineError> {
        let Map::Host(map) = &x.map else { return Ok(None) };
        let (height, width) = match x.conv {
            Some(conv) => (conv.host()?.extent(map.h), conv.host()?.extent(map.w)),
            None => (map.h, map.w),
        };
        let rows = ((PIXELS / width).min(height / FEWEST) / TILE * TILE).max(ROWS);
        if height * width < least || height < FEWEST * rows {
            return Ok(None);
        }
        let convs = block.steps.iter().map(|step| step.conv.host()).collect::<Result<_, _>>()?;
        Ok(Some(Self { block, convs, height, rows }))
    }

    /// The block; each band of each pass is a step.
    pub(super) fn run(&self, x: Ahead<'_>, run: &mut Run<'_>) -> Result<Map, EngineError> {
        let Map::Host(mut map) = x.map else { return Err(EngineError::Place) };
        let conv = x.conv.map(|conv| conv.host()).transpose()?;
        let shortcut = self.block.shortcut.as_ref().map(|conv| conv.host()).transpose()?;
        if conv.is_none() && shortcut.is_none() {
            let affines = self.affines(Input { map: &map, conv }, None, run)?;
            self.replace(&mut map, run, |map, rows| self.band(Input { map, conv }, &affines, rows, None))?;
            return Ok(Map::Host(map));
        }
        let x = Input { map: &map, conv };
        let last = self.convs[self.convs.len() - 1];
        let mut out = map.like(self.height, conv.map_or(map.w, |conv| conv.extent(map.w)), last.outputs());
        let waits = self.block.steps.last().is_some_and(|step| step.norm.is_some()) && last.inputs == last.outputs();
        let affines = self.affines(x, waits.then_some(&mut out), run)?;
        let folded = conv.zip(shortcut).map(|(conv, shortcut)| conv.then(shortcut, map.arena()));
        let onto = |rows: Range<usize>| match (&folded, conv.or(shortcut)) {
            (Some(conv), _) | (None, Some(conv)) => conv.run_rows(&Source::whole(&map), rows, None, Activation::None),
            (None, None) => map.copy_rows(rows),
        };
        let affine = affines.last().and_then(Option::as_ref);
        self.replace(&mut out, run, |out, rows| {
            if waits {
                let waiting = Source { affine, ..Source::whole(out) };
                last.run_rows(&waiting, rows.clone(), Some(onto(rows)), self.block.activation)
            } else {
                let onto = shortcut.is_some().then(|| onto(rows.clone()));
                self.band(x, &affines, rows, onto)
            }
        })?;
        Ok(Map::Host(out))
    }

    fn bands(&self) -> impl Iterator<Item = Range<usize>> + use<> {
        let (rows, height) = (self.rows, self.height);
        (0..height).step_by(rows).map(move |top| top..(top + rows).min(height))
    }

    /// Puts bands made of the map in its place. Each is written when the next one has read what it needs of the rows above
    /// it.
    fn replace(
        &self,
        map: &mut HostMap,
        run: &mut Run<'_>,
        make: impl Fn(&HostMap, Range<usize>) -> HostMap,
    ) -> Result<(), EngineError> {
        let mut made: Option<(usize, HostMap)> = None;
        for rows in self.bands() {
            let next = (rows.start, make(map, rows));
            if let Some((top, made)) = made.replace(next) {
                map.paste(top, &made);
            }
            run.step_done()?;
        }
        if let Some((top, made)) = made {
            map.paste(top, &made);
        }
        Ok(())
    }

    /// The norms of all steps, each from a pass over the steps before it. The input of the last one is left in `waiting`.
    fn affines(
        &self,
        x: Input<'_>,
        mut waiting: Option<&mut HostMap>,
        run: &mut Run<'_>,
    ) -> Result<Vec<Option<Affine>>, EngineError> {
        let mut affines: Vec<Option<Affine>> = Vec::new();
        for (count, step) in self.block.steps.iter().enumerate() {
            let Some(normed) = &step.norm else {
                affines.push(None);
                continue;
            };
            let groups = normed.norm.groups();
            let affine = if count == 0 && x.conv.is_none() {
                normed.norm.affine_of(x.map, normed.activation)
            } else {
                let mut sums = vec![Moments::default(); x.map.n * groups];
                for rows in self.bands() {
                    let window = self.steps(x.read(self.needs(count, &rows)[0].clone()), &affines, count, &rows);
                    for (sum, moments) in sums.iter_mut().zip(moments::of_groups(&window.map, groups)) {
                        *sum = sum.join(moments);
                    }
                    if let Some(waiting) = waiting.as_deref_mut().filter(|_| count + 1 == self.convs.len()) {
                        waiting.paste(rows.start, &window.map);
                    }
                    run.step_done()?;
                }
                normed.norm.affine(&sums, normed.activation)
            };
            affines.push(Some(affine));
        }
        Ok(affines)
    }

    /// The block's rows `rows`, from all its steps, added to `onto` or to what went in.
    fn band(&self, x: Input<'_>, affines: &[Option<Affine>], rows: Range<usize>, onto: Option<HostMap>) -> HostMap {
        let last = self.convs.len() - 1;
        let needs = self.needs(last + 1, &rows);
        let read = x.read(needs[0].clone());
        let onto = onto.unwrap_or_else(|| read.map.copy_rows(rows.start - read.top..rows.end - read.top));
        let h = self.steps(read, affines, last, &needs[last]);
        let source = h.source(self.height, affines[last].as_ref());
        self.convs[last].run_rows(&source, rows, Some(onto), self.block.activation)
    }

    /// Rows that the first `count` steps read, and at last those they make. All begin with a tile of the whole map, so that
    /// its tiles are theirs and its bits too.
    fn needs(&self, count: usize, rows: &Range<usize>) -> Vec<Range<usize>> {
        let mut needs = vec![rows.clone()];
        for conv in self.convs[..count].iter().rev() {
            let reached = conv.reach(&needs[needs.len() - 1], self.height);
            needs.push(reached.start / TILE * TILE..reached.end);
        }
        needs.reverse();
        needs
    }

    /// The first `count` steps, for rows `rows` of their output.
    fn steps<'m>(
        &self,
        mut x: Window<'m>,
        affines: &[Option<Affine>],
        count: usize,
        rows: &Range<usize>,
    ) -> Window<'m> {
        let needs = self.needs(count, rows);
        for (i, rows) in needs.into_iter().enumerate().skip(1) {
            let top = rows.start;
            let source = x.source(self.height, affines[i - 1].as_ref());
            let made = self.convs[i - 1].run_rows(&source, rows, None, self.block.steps[i - 1].activation);
            x = Window { map: Cow::Owned(made), top };
        }
        x
    }
}

// === impl Input ===

impl<'a> Input<'a> {
    /// These rows at least.
    fn read(self, rows: Range<usize>) -> Window<'a> {
        match self.conv {
            None => Window { map: Cow::Borrowed(self.map), top: 0 },
            Some(conv) => {
                let top = rows.start;
                let made = conv.run_rows(&Source::whole(self.map), rows, None, Activation::None);
                Window { map: Cow::Owned(made), top }
            }
        }
    }
}

// === impl Window ===

impl Window<'_> {
    fn source<'s>(&'s self, height: usize, affine: Option<&'s Affine>) -> Source<'s> {
        Source { map: &self.map, top: self.top, height, affine }
    }
}
