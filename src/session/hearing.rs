//! Leave to hear strangers out: for so many at once, and for so many of them from one place, so that nobody takes all of it. Hears nobody.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex};

use crate::proto::limits;
use crate::state::admission::scope;

/// Where a stranger comes from, and whether others carried it here: then that is where a relay is, and many may come from there.
pub(super) type From = (IpAddr, bool);

/// Who is being heard, by where they come from. Clones share it.
#[derive(Clone, Debug, Default)]
pub(super) struct Hearing(Arc<Mutex<HashMap<From, usize>>>);

/// Leave to hear one of them, until it is dropped.
#[derive(Debug)]
pub(super) struct Leave {
    hearing: Hearing,
    from: From,
}

impl Hearing {
    /// Leave to hear one from there; `None`: too many are being heard, or too many from there.
    pub fn enter(&self, (address, relayed): From) -> Option<Leave> {
        let from = (scope(address), relayed);
        let share = if relayed { limits::RELAYED_HEARD } else { limits::HEARD_PER_ADDRESS };
        let mut heard = self.0.lock().expect("nothing panics while it is held");
        if heard.values().sum::<usize>() >= limits::STRANGERS_HEARD || heard.get(&from).is_some_and(|heard| *heard >= share) {
            return None;
        }
        *heard.entry(from).or_default() += 1;
        Some(Leave { hearing: self.clone(), from })
    }
}

impl Drop for Leave {
    fn drop(&mut self) {
        let mut heard = self.hearing.0.lock().expect("nothing panics while it is held");
        if let Some(count) = heard.get_mut(&self.from) {
            *count -= 1;
            if *count == 0 {
                heard.remove(&self.from);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    fn at(last: u8) -> IpAddr {
        Ipv4Addr::new(192, 0, 2, last).into()
    }

    #[test]
    fn neither_one_place_nor_all_of_them_have_more_than_their_share() {
        let hearing = Hearing::default();
        let from_one: Vec<_> = (0..9).map_while(|_| hearing.enter((at(1), false))).collect();
        assert_eq!(from_one.len(), 8);
        let through_one: Vec<_> = (0..64).map_while(|_| hearing.enter((at(1), true))).collect();
        assert_eq!(through_one.len(), 32, "a relay brings many");
        let elsewhere: Vec<_> = (2..100).filter_map(|last| hearing.enter((at(last), false))).collect();
        assert_eq!(elsewhere.len(), 64 - 8 - 32);
        drop(from_one);
        assert!(hearing.enter((at(1), false)).is_some());
        drop((through_one, elsewhere));
        assert!(hearing.0.lock().unwrap().is_empty(), "nothing stays behind");
    }
}
