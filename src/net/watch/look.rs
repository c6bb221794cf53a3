//! Watching where the kernel is not asked to tell: the addresses are looked at every few seconds, and the clock on the wall against
//! the one that stands still in sleep. A route that changes alone is not seen. Not on phones, where each look would wake the device.

use std::collections::BTreeSet;
use std::io;
use std::net::IpAddr;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use tokio::time::{Interval, MissedTickBehavior, interval};

use super::Change;
use super::sleep::Sleep;

const EVERY: Duration = Duration::from_secs(5);

/// What was seen last.
#[derive(Debug)]
pub(super) struct Source {
    interval: Interval,
    addresses: BTreeSet<IpAddr>,
    start: Instant,
    sleep: Sleep,
}

impl Source {
    /// Looks for the first time.
    pub fn open() -> io::Result<Self> {
        if cfg!(any(target_os = "android", target_os = "ios")) {
            return Err(io::Error::new(io::ErrorKind::Unsupported, "on phones the application is to tell the node"));
        }
        let mut interval = interval(EVERY);
        interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let sleep = Sleep::new(wall(), Duration::ZERO);
        Ok(Self { interval, addresses: addresses()?, start: Instant::now(), sleep })
    }

    /// The next change. Cancel-safe.
    pub async fn see(&mut self) -> io::Result<Change> {
        loop {
            self.interval.tick().await;
            // The wall clock may be set forward as well: then this is a false alarm, which costs a ping a path.
            if self.sleep.slept(wall(), self.start.elapsed()) {
                return Ok(Change::Slept);
            }
            let addresses = addresses()?;
            if std::mem::replace(&mut self.addresses, addresses) != self.addresses {
                return Ok(Change::Network);
            }
        }
    }
}

fn wall() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

fn addresses() -> io::Result<BTreeSet<IpAddr>> {
    let interfaces = if_addrs::get_if_addrs()?.into_iter();
    Ok(interfaces.filter(|interface| !interface.is_loopback() && !interface.is_link_local()).map(|one| one.ip()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn an_address_that_was_not_there_before_is_a_change_and_nothing_else_is() {
        let mut source = Source::open().expect("addresses can be read");
        let quiet = tokio::time::timeout(Duration::from_secs(60), source.see()).await;
        assert!(quiet.is_err(), "nothing changed");
        source.addresses.insert([203, 0, 113, 7].into());
        assert_eq!(source.see().await.expect("addresses can be read"), Change::Network);
    }
}
