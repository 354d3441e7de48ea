//! An MP4, as far as it can be judged without decoding it: a walk of its top-level boxes.
//!
//! The format has no checksums. What can be known is that it begins with `ftyp`, that there are a `moov`, without which
//! nothing can be played, and an `mdat`, with what is played, neither empty, and that the boxes end where the file does: a
//! cut file does not.

use super::Gather;

/// Judges an MP4 as it comes.
#[derive(Default)]
pub(super) struct Mp4Check {
    gather: Gather,
    at: At,
    /// Of the box it is in.
    name: [u8; 4],
    has_first: bool,
    has_index: bool,
    has_media: bool,
}

/// What comes next.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum At {
    /// Size and name of a box.
    #[default]
    Box,
    /// The size of a box that is too large for the usual field.
    Size,
    Inside {
        left: u64,
    },
    /// Inside a box that says it goes on to the end of the file.
    Rest,
}

impl Mp4Check {
    pub(super) fn new() -> Self {
        Self::default()
    }

    pub(super) fn feed(&mut self, mut piece: &[u8]) -> Result<(), &'static str> {
        while !piece.is_empty() {
            match self.at {
                At::Box => self.begin(&mut piece)?,
                At::Size => self.size(&mut piece)?,
                At::Inside { left } => {
                    let taken = left.min(piece.len() as u64);
                    piece = &piece[taken as usize..];
                    self.at = if taken == left { At::Box } else { At::Inside { left: left - taken } };
                }
                At::Rest => {
                    self.fill();
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    /// Whether the first box has been found right.
    pub(super) const fn has_header(&self) -> bool {
        self.has_first
    }

    pub(super) fn end(&self) -> Result<(), &'static str> {
        match self.at {
            At::Inside { .. } | At::Size => Err("it is cut short"),
            At::Box if !self.gather.bytes.is_empty() => Err("it is cut short"),
            At::Box | At::Rest if !self.has_index => Err("it has no index"),
            At::Box | At::Rest if !self.has_media => Err("it has no media"),
            At::Box | At::Rest => Ok(()),
        }
    }

    fn begin(&mut self, piece: &mut &[u8]) -> Result<(), &'static str> {
        let Some(bytes) = self.gather.take(piece, 8) else { return Ok(()) };
        let (size, name) = bytes.split_at(4);
        if !self.has_first && name != b"ftyp" {
            return Err("it does not begin like one");
        }
        self.has_first = true;
        self.name.copy_from_slice(name);
        self.at = match big_endian(size) {
            0 => At::Rest,
            1 => At::Size,
            size => self.inside(size.checked_sub(8).ok_or("a box is smaller than its own head")?),
        };
        Ok(())
    }

    fn size(&mut self, piece: &mut &[u8]) -> Result<(), &'static str> {
        let Some(bytes) = self.gather.take(piece, 8) else { return Ok(()) };
        self.at = self.inside(big_endian(&bytes).checked_sub(16).ok_or("a box is smaller than its own head")?);
        Ok(())
    }

    fn inside(&mut self, left: u64) -> At {
        if left == 0 {
            return At::Box;
        }
        self.fill();
        At::Inside { left }
    }

    /// The box is not empty.
    fn fill(&mut self) {
        self.has_index |= &self.name == b"moov";
        self.has_media |= &self.name == b"mdat";
    }
}

fn big_endian(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0, |number, &byte| number << 8 | u64::from(byte))
}
