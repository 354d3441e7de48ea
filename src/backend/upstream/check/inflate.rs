//! The compressed pixels of a PNG, inflated as they come.
//!
//! What is inflated is looked at and thrown away: it must be as many rows as the header says, each beginning with a
//! filter that there is, and end with the stream, whose own checksum covers it. Such pixels can be decoded by anybody; what
//! comes behind the stream's end is not theirs, and decoders pass it over.

use fdeflate::Decompressor;

/// How far deflate refers back.
const BACK: usize = 32 << 10;

/// What is inflated at a time.
const ROOM: usize = 32 << 10;

/// The last of the filters 0 to 4.
const LAST_FILTER: u8 = 4;

/// Why they are none.
const BROKEN: &str = "its pixels cannot be inflated";

/// Inflates pixels.
pub(super) struct Inflate {
    inflater: Box<Decompressor>,
    /// What deflate may refer back to, and room.
    window: Box<[u8]>,
    /// Where in the window the room begins.
    at: usize,
    /// Bytes of a row.
    row: u64,
    /// Bytes of all rows.
    want: u64,
    /// Bytes so far.
    seen: u64,
}

impl Inflate {
    /// Of 8-bit RGB pixels.
    pub(super) fn new(width: u32, height: u32) -> Self {
        let row = 1 + 3 * u64::from(width);
        let window = vec![0; BACK + ROOM].into();
        Self { inflater: Box::default(), window, at: 0, row, want: row * u64::from(height), seen: 0 }
    }

    pub(super) fn feed(&mut self, mut piece: &[u8]) -> Result<(), &'static str> {
        loop {
            if self.inflater.is_done() {
                return Ok(());
            }
            if self.at == self.window.len() {
                self.window.copy_within(self.at - BACK.., 0);
                self.at = BACK;
            }
            let read = self.inflater.read(piece, &mut self.window, self.at, false);
            let (taken, made) = read.map_err(|_| BROKEN)?;
            self.look(made)?;
            piece = &piece[taken..];
            let is_full = self.at == self.window.len();
            if piece.is_empty() && !is_full {
                return Ok(());
            }
            if (taken, made) == (0, 0) && !is_full && !self.inflater.is_done() {
                return Err(BROKEN);
            }
        }
    }

    pub(super) fn end(&self) -> Result<(), &'static str> {
        if self.inflater.is_done() && self.seen == self.want {
            Ok(())
        } else {
            Err("it has fewer pixels than its header says")
        }
    }

    /// Looks at so many bytes behind those seen.
    fn look(&mut self, made: usize) -> Result<(), &'static str> {
        let fresh = &self.window[self.at..][..made];
        let to_row = (self.row - self.seen % self.row) % self.row;
        (self.at, self.seen) = (self.at + made, self.seen + made as u64);
        if self.seen > self.want {
            return Err("it has more pixels than its header says");
        }
        let mut filters = fresh.iter().skip(to_row as usize).step_by(self.row as usize);
        if filters.all(|&filter| filter <= LAST_FILTER) { Ok(()) } else { Err("a row has a filter that there is not") }
    }
}
