//! Which of several providers of one service is tried first, and which after it. It knows who is there only from being told, and
//! measures nothing itself.

use std::time::{Duration, Instant};

use aws_lc_rs::digest::{Context, SHA256};

use crate::id::NodeId;

/// A provider that failed a call is tried after the others for this long.
pub const SET_BACK: Duration = Duration::from_secs(5);

/// How one of several providers is chosen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Pick {
    /// One after the other.
    #[default]
    RoundRobin,
    /// The one with the shortest round trip, as its session's path measures it now.
    LeastLatency,
    /// The same one for the same key, as long as it is there; when one comes or goes only the keys that were its own, or become
    /// its own, move (rendezvous hashing, Thaler and Ravishankar 1998). Calls without a key go round.
    Sticky,
}

/// A provider that may be tried now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// Its key.
    pub id: NodeId,
    /// The round trip of its path, if it is known.
    pub rtt: Option<Duration>,
}

/// Remembers whose turn it is, and who failed lately.
#[derive(Debug, Default)]
pub struct Picker {
    how: Pick,
    turn: usize,
    set_back: Vec<(NodeId, Instant)>,
}

impl Picker {
    /// Chooses like this.
    pub fn new(how: Pick) -> Self {
        Self { how, ..Self::default() }
    }

    /// A call did not get through to this one.
    pub fn failed(&mut self, id: NodeId, now: Instant) {
        self.set_back.retain(|(other, until)| *other != id && *until > now);
        self.set_back.push((id, now + SET_BACK));
    }

    /// A call got through to this one.
    pub fn answered(&mut self, id: NodeId) {
        self.set_back.retain(|(other, _)| *other != id);
    }

    /// The candidates in the order in which one call tries them. Each call asks once.
    pub fn order(&mut self, mut candidates: Vec<Candidate>, key: Option<&[u8]>, now: Instant) -> Vec<NodeId> {
        candidates.sort_by_key(|candidate| candidate.id);
        match (self.how, key) {
            (Pick::Sticky, Some(key)) => candidates.sort_by_cached_key(|candidate| std::cmp::Reverse(weight(key, &candidate.id))),
            // Whose round trip is not known comes last: it is not known to be there.
            (Pick::LeastLatency, _) => candidates.sort_by_key(|candidate| candidate.rtt.unwrap_or(Duration::MAX)),
            _ if candidates.is_empty() => {}
            _ => {
                let first = self.turn % candidates.len();
                candidates.rotate_left(first);
                self.turn = self.turn.wrapping_add(1);
            }
        }
        self.set_back.retain(|(_, until)| *until > now);
        candidates.sort_by_key(|candidate| self.set_back.iter().any(|(id, _)| *id == candidate.id));
        candidates.into_iter().map(|candidate| candidate.id).collect()
    }
}

/// How much this key is this provider's: the same at every node and in every process.
fn weight(key: &[u8], id: &NodeId) -> [u8; 32] {
    let mut context = Context::new(&SHA256);
    context.update(id.as_bytes());
    context.update(key);
    std::array::from_fn({
        let digest = context.finish();
        move |at| digest.as_ref()[at]
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn candidates(ids: impl IntoIterator<Item = u8>) -> Vec<Candidate> {
        ids.into_iter().map(|id| Candidate { id: NodeId::from_bytes([id; 32]), rtt: None }).collect()
    }

    fn first(picker: &mut Picker, ids: impl IntoIterator<Item = u8>, key: Option<&[u8]>) -> NodeId {
        picker.order(candidates(ids), key, Instant::now())[0]
    }

    #[test]
    fn turns_go_round_evenly_and_everyone_is_in_each_order() {
        let mut picker = Picker::new(Pick::RoundRobin);
        let mut times: BTreeMap<NodeId, u32> = BTreeMap::new();
        for _ in 0..300 {
            let order = picker.order(candidates([1, 2, 3]), None, Instant::now());
            assert_eq!(order.len(), 3);
            *times.entry(order[0]).or_default() += 1;
        }
        assert!(times.values().all(|times| *times == 100), "{times:?}");
        assert!(picker.order(Vec::new(), None, Instant::now()).is_empty());
    }

    #[test]
    fn the_nearest_goes_first_and_the_unknown_last() {
        let mut picker = Picker::new(Pick::LeastLatency);
        let mut all = candidates([1, 2, 3]);
        all[0].rtt = Some(Duration::from_millis(30));
        all[2].rtt = Some(Duration::from_millis(3));
        let order = picker.order(all.clone(), None, Instant::now());
        assert_eq!(order, [all[2].id, all[0].id, all[1].id]);
    }

    #[test]
    fn a_key_stays_with_its_provider_when_others_come_and_go() {
        let mut picker = Picker::new(Pick::Sticky);
        let mut moved = 0;
        for key in 0u32..1_000 {
            let key = key.to_be_bytes();
            let before = first(&mut picker, 1..=5, Some(&key));
            assert_eq!(before, first(&mut Picker::new(Pick::Sticky), 1..=5, Some(&key)), "not the same everywhere");
            // The fifth goes: only its own keys move.
            let after = first(&mut picker, 1..=4, Some(&key));
            if before == NodeId::from_bytes([5; 32]) {
                moved += 1;
            } else {
                assert_eq!(before, after);
            }
        }
        assert!((140..260).contains(&moved), "{moved} of 1,000 keys were with one of five");
    }

    #[test]
    fn who_failed_goes_last_for_a_while_or_until_it_answers() {
        let mut picker = Picker::new(Pick::LeastLatency);
        let mut all = candidates([1, 2]);
        all[0].rtt = Some(Duration::from_millis(1));
        all[1].rtt = Some(Duration::from_millis(2));
        let (one, two, now) = (all[0].id, all[1].id, Instant::now());
        picker.failed(one, now);
        assert_eq!(picker.order(all.clone(), None, now), [two, one]);
        assert_eq!(picker.order(all.clone(), None, now + SET_BACK), [one, two]);
        picker.failed(one, now);
        picker.answered(one);
        assert_eq!(picker.order(all, None, now), [one, two]);
    }
}
