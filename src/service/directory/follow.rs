//! Makes what a directory tells into what happened: one after the other, on one session or over several.

use std::collections::BTreeMap;

use super::found::{Found, Presence};
use crate::proto::directory::Told;
use crate::proto::limits;
use crate::state::directory::Key;

/// What is known of what is watched.
pub(super) struct Follower {
    known: BTreeMap<Key, Found>,
    /// What is being told anew; then the old is compared with it.
    anew: Option<BTreeMap<Key, Found>>,
    weight: usize,
    offline: bool,
}

/// What comes of something told.
#[derive(Debug, PartialEq)]
pub(super) enum News {
    Presence(Box<Presence>),
    /// What there was at first has been said.
    Current,
}

impl Follower {
    /// `offline`: services that are offline are told of too.
    pub fn new(offline: bool) -> Self {
        Self { known: BTreeMap::new(), anew: None, weight: 0, offline }
    }

    /// What is there, as far as it was told.
    pub fn known(&self) -> impl Iterator<Item = &Found> {
        self.known.values()
    }

    /// Everything will be told anew.
    pub fn begin(&mut self) {
        self.weight = self.known.values().map(Found::weight).sum();
        self.anew = Some(BTreeMap::new());
    }

    /// A directory told this.
    ///
    /// # Errors
    /// It makes no sense, or is too much.
    pub fn hear(&mut self, told: Told) -> Result<Vec<News>, &'static str> {
        let mut news = Vec::new();
        match told {
            Told::Entry(found) => self.entry(found, &mut news)?,
            Told::Changed { name, provider, at, online, epoch } => {
                let key = Key { name, provider, at };
                let known = self.anew.as_ref().unwrap_or(&self.known).get(&key);
                let found = known.cloned().ok_or("it told of what it had not told of before")?;
                self.entry(Found { online, epoch, ..found }, &mut news)?;
            }
            Told::Withdrawn { name, provider, at } => {
                let key = Key { name, provider, at };
                match &mut self.anew {
                    Some(anew) => drop(anew.remove(&key)),
                    None => self.known.remove(&key).into_iter().for_each(|found| withdrawn(found, &mut news)),
                }
            }
            Told::Current => {
                let anew = self.anew.take().ok_or("it told that all is told, and had told that before")?;
                self.compare(anew, &mut news);
                news.push(News::Current);
            }
            Told::Again => {
                self.begin();
                news.push(Presence::Missed.into());
            }
            Told::Refused(_) => return Err("it refused what it had begun"),
        }
        Ok(news)
    }

    fn entry(&mut self, found: Found, news: &mut Vec<News>) -> Result<(), &'static str> {
        let key = Key { name: found.name.clone(), provider: found.provider, at: found.at };
        self.weight += found.weight();
        if self.weight > 2 * limits::DIRECTORY_BYTES {
            return Err("it told of more than is taken");
        }
        let before = match &mut self.anew {
            Some(anew) => anew.insert(key, found),
            None => {
                let before = self.known.insert(key, found.clone());
                step(before.as_ref(), found, self.offline, news);
                before
            }
        };
        self.weight -= before.map_or(0, |before| before.weight());
        Ok(())
    }

    /// All is told anew: what happened in between?
    fn compare(&mut self, anew: BTreeMap<Key, Found>, news: &mut Vec<News>) {
        let mut before = std::mem::take(&mut self.known);
        for (key, found) in &anew {
            step(before.remove(key).as_ref(), found.clone(), self.offline, news);
        }
        for gone in before.into_values() {
            // Those that are offline were not told of if nobody asked for them.
            match (self.offline, gone.online) {
                (true, _) => withdrawn(gone, news),
                (false, true) => news.push(Presence::Offline(gone.offline()).into()),
                (false, false) => {}
            }
        }
        self.known = anew;
        self.weight = self.known.values().map(Found::weight).sum();
    }
}

/// From what it was to what it is.
fn step(before: Option<&Found>, now: Found, offline: bool, news: &mut Vec<News>) {
    match (before, now.online) {
        (None, true) => news.push(Presence::Online(now).into()),
        (None, false) if offline => news.push(Presence::Offline(now).into()),
        (None, false) => {}
        (Some(before), true) if before.online && before.epoch == now.epoch => {
            if *before != now {
                news.push(Presence::Changed(now).into());
            }
        }
        (Some(before), true) => {
            if before.online {
                news.push(Presence::Offline(before.clone().offline()).into());
            }
            news.push(Presence::Online(now).into());
        }
        (Some(before), false) if before.online => news.push(Presence::Offline(now).into()),
        (Some(before), false) => {
            let same = Found { epoch: now.epoch, ..before.clone() } == now;
            if !same {
                news.push(Presence::Changed(now).into());
            }
        }
    }
}

fn withdrawn(found: Found, news: &mut Vec<News>) {
    let gone = found.clone().offline();
    if found.online {
        news.push(Presence::Offline(gone.clone()).into());
    }
    news.push(Presence::Withdrawn(gone).into());
}

impl From<Presence> for News {
    fn from(presence: Presence) -> Self {
        News::Presence(Box::new(presence))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::NodeId;

    const WHO: NodeId = NodeId::from_bytes([7; 32]);

    fn found(name: &str, online: bool, epoch: u64) -> Found {
        let (mode, addresses, metadata, description) = Default::default();
        Found { name: name.into(), provider: WHO, at: None, online, epoch, mode, addresses, metadata, description }
    }

    fn changed(name: &str, online: bool, epoch: u64) -> Told {
        Told::Changed { name: name.into(), provider: WHO, at: None, online, epoch }
    }

    /// What is heard, in short: `+` online, `-` offline, `~` changed, `x` withdrawn, `?` missed, `.` current.
    fn hear(follower: &mut Follower, told: impl IntoIterator<Item = Told>) -> String {
        let mut text = String::new();
        for news in told.into_iter().flat_map(|told| follower.hear(told).unwrap()) {
            let (sign, name) = match news {
                News::Current => (".", String::new()),
                News::Presence(presence) => match *presence {
                    Presence::Online(found) => ("+", found.name),
                    Presence::Offline(found) => ("-", found.name),
                    Presence::Changed(found) => ("~", found.name),
                    Presence::Withdrawn(found) => ("x", found.name),
                    Presence::Missed => ("?", String::new()),
                },
            };
            text += &format!("{sign}{name}");
        }
        text
    }

    fn begun(offline: bool, entries: &[Found]) -> Follower {
        let mut follower = Follower::new(offline);
        follower.begin();
        hear(&mut follower, entries.iter().cloned().map(Told::Entry).chain([Told::Current]));
        follower
    }

    #[test]
    fn what_is_told_first_is_online_and_then_changes_are_told_once() {
        let mut follower = Follower::new(false);
        follower.begin();
        assert_eq!(hear(&mut follower, [Told::Entry(found("a", true, 1)), Told::Current]), "+a.");
        let withdrawn = Told::Withdrawn { name: "a".into(), provider: WHO, at: None };
        let told = [changed("a", false, 1), changed("a", true, 2), changed("a", true, 2), withdrawn];
        assert_eq!(hear(&mut follower, told), "-a+a-axa");
    }

    #[test]
    fn another_epoch_after_a_change_of_session_was_offline_in_between() {
        let mut follower = begun(false, &[found("a", true, 1), found("b", true, 2), found("c", true, 3)]);
        follower.begin();
        let metadata = vec![("k".into(), vec![])];
        let told = [found("a", true, 1), found("b", true, 9), Found { metadata, ..found("d", true, 4) }];
        assert_eq!(hear(&mut follower, told.into_iter().map(Told::Entry).chain([Told::Current])), "-b+b+d-c.");
    }

    #[test]
    fn who_was_too_slow_is_told_so_and_what_is_right_now() {
        let mut follower = begun(true, &[found("a", true, 1), found("b", false, 0)]);
        assert_eq!(hear(&mut follower, [Told::Again, Told::Entry(found("a", false, 1)), Told::Current]), "?-axb.");
    }

    #[test]
    fn another_listing_is_a_change_and_the_same_one_is_none() {
        let mut follower = begun(false, &[found("a", true, 1)]);
        let metadata = vec![("k".into(), vec![1])];
        let other = Found { metadata, ..found("a", true, 1) };
        assert_eq!(hear(&mut follower, [Told::Entry(other.clone()), Told::Entry(other)]), "~a");
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        assert!(begun(false, &[]).hear(changed("a", true, 1)).is_err());
        assert!(begun(false, &[]).hear(Told::Current).is_err());
    }
}
