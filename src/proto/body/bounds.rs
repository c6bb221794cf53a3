//! What one body may cost to read, whatever it says: levels of nesting, and memory beyond that of its own bytes.
//!
//! Memory is counted where few bytes of a body can become much of it: the items of lists and maps, and values behind a box. A
//! box cannot be seen, but a value as large as the one around it cannot lie within it, so it must have memory of its own. A
//! smaller boxed value goes uncounted; how many of those one counted value can hold is up to its type.

/// Memory that items of lists and maps, and what is boxed, may take for each byte of the body. They are counted as they lie
/// in memory; a list or map that grows may hold four times that for a moment.
pub const MEMORY_PER_BYTE: usize = 16;
/// Memory they may take besides, whatever the length of the body.
pub const MEMORY_BASE: usize = 256 * 1024;

pub(super) struct Bounds {
    /// Levels that are left.
    levels: usize,
    /// Memory that is left, in bytes.
    memory: usize,
    /// The size of the value we are inside of; one more than that of an item about to be read, which lies in its list.
    around: usize,
}

/// Why a body is refused although it is one of its type.
#[derive(Debug)]
pub(super) enum Exceeded {
    Levels,
    Memory,
}

impl Exceeded {
    pub(super) fn text(&self) -> &'static str {
        match self {
            Exceeded::Levels => "its values nest too deep",
            Exceeded::Memory => {
                "it would take too much memory: many large items that are next to nothing in the body; send fewer at once"
            }
        }
    }
}

/// What [`Bounds::leave`] has to restore.
pub(super) struct Around(usize);

impl Bounds {
    /// For a body of so many bytes, nested at most `levels` deep.
    pub(super) fn new(bytes: usize, levels: usize) -> Self {
        Self { levels, memory: MEMORY_BASE + MEMORY_PER_BYTE * bytes, around: 0 }
    }

    /// Goes one level down, to read a `T`.
    #[inline]
    pub(super) fn enter<T>(&mut self) -> Result<Around, Exceeded> {
        self.levels = self.levels.checked_sub(1).ok_or(Exceeded::Levels)?;
        if size_of::<T>() >= self.around {
            self.claim(size_of::<T>())?;
        }
        Ok(Around(std::mem::replace(&mut self.around, size_of::<T>())))
    }

    /// Comes back up.
    #[inline]
    pub(super) fn leave(&mut self, around: Around) {
        self.levels += 1;
        self.around = around.0;
    }

    /// Makes room for a `T` that is an item of a list and is read next.
    #[inline]
    pub(super) fn item<T>(&mut self) -> Result<(), Exceeded> {
        self.around = size_of::<T>() + 1;
        self.claim(size_of::<T>())
    }

    #[inline]
    fn claim(&mut self, size: usize) -> Result<(), Exceeded> {
        self.memory = self.memory.checked_sub(size).ok_or(Exceeded::Memory)?;
        Ok(())
    }
}
