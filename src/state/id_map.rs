//! A map of what is known of streams by their numbers, looked up several times for each small call. Numbers are handed out in order, and few
//! are live at once: a peer chooses only which of them stay, so a search is short whatever it does, and a keyed hash would be paid for nothing.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

/// By numbers that are handed out in order.
pub type IdMap<V> = HashMap<u64, V, BuildHasherDefault<IdHasher>>;

/// Spreads numbers in order by an odd factor (Knuth, The Art of Computer Programming, volume 3, section 6.4).
#[derive(Debug, Default)]
pub struct IdHasher(u64);

impl Hasher for IdHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, _bytes: &[u8]) {
        unreachable!("the keys are integers");
    }

    fn write_u64(&mut self, id: u64) {
        self.0 = id.wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(26);
    }
}
