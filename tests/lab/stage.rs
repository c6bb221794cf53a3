//! What scenarios begin with: two nodes that know each other, on one of a few networks; and figures from what they measured.

use std::time::Duration;

use crate::emulator::Emulator;
use crate::net::{Net, Space};
use crate::node::{Home, LONG, Mark, Node};

/// Whether the long form was asked for.
pub fn is_long() -> bool {
    std::env::var_os("VOLT_LONG").is_some()
}

/// The seed of everything that is left to chance.
pub fn seed() -> u64 {
    use std::sync::OnceLock;
    static SEED: OnceLock<u64> = OnceLock::new();
    *SEED.get_or_init(|| match std::env::var("VOLT_SEED") {
        Ok(seed) => seed.parse().expect("VOLT_SEED is a number"),
        Err(_) => rand::random::<u32>().into(),
    })
}

/// Two machines with an emulated link between them: `one` dials, `other` accepts.
pub fn linked(net: &mut Net) -> (Space, Space, Emulator) {
    let (one, other) = (net.space("one"), net.space("other"));
    let link = Emulator::between((&one, "link"), (&other, "link"), seed());
    one.ip("addr add 10.7.0.1/24 dev link");
    other.ip("addr add 10.7.0.2/24 dev link");
    (one, other, link)
}

/// `dialler` dials `accepter`; each lets the other call anything. Both are told of it when this returns.
pub fn connect(dialler: (&Home, &Node), accepter: (&Home, &Node), ticket: &str) {
    accepter.0.ok(&["policy", "allow", dialler.0.id(), "call", "*"]);
    dialler.0.ok(&["policy", "allow", accepter.0.id(), "call", "*"]);
    dialler.0.ok(&["connect", ticket, "--as", "other"]);
    dialler.1.event(Mark::START, "connected", LONG);
    accepter.1.event(Mark::START, "connected", LONG);
}

/// The ticket a node tells when it is up.
pub fn ticket(node: &Node) -> String {
    node.event(Mark::START, "ready", LONG).1["ticket"].as_str().unwrap().to_owned()
}

/// How long things took.
pub struct Times(Vec<Duration>);

impl Times {
    pub fn of(times: impl IntoIterator<Item = Duration>) -> Self {
        let mut times: Vec<_> = times.into_iter().collect();
        times.sort();
        Self(times)
    }

    /// The smallest that this share of them does not exceed.
    pub fn share(&self, share: f64) -> Duration {
        let at = (self.0.len() as f64 * share).ceil() as usize;
        self.0[at.clamp(1, self.0.len()) - 1]
    }
}

impl std::fmt::Display for Times {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let ms = |share| self.share(share).as_secs_f64() * 1e3;
        write!(f, "p50 {:.0} ms, p99 {:.0} ms, most {:.0} ms, of {}", ms(0.5), ms(0.99), ms(1.0), self.0.len())
    }
}
