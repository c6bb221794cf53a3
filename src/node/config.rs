//! How a node behaves: a plain [`Config`], from code or from `volt.toml`. It opens no socket and no store; the environment and
//! the command line are read elsewhere, and win over the file.

mod file;
mod peer_ref;

use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;

pub use file::ConfigError;
pub use peer_ref::{PeerRef, PeerRefError};

pub use crate::policy::{Groups, RelayMode};
use crate::policy::{Rule, Subject};
pub use crate::proto::control::Profile;
pub use crate::proto::duration::{DurationError, parse_duration};
pub use crate::proto::limits::Limits;
use crate::proto::limits::{NAME_BYTES, RATES, RELAYS, TARGETS};
pub use crate::service::{Rate, RateRule};
pub use crate::state::prefix::{Prefix, PrefixError};
use crate::tunnel::{check_name, check_target};

/// Where a node listens unless told otherwise: every address, IPv6 and IPv4. Where there is no IPv6 it is `0.0.0.0`, and if
/// the port is taken a free one is chosen once and kept in the home.
pub const DEFAULT_LISTEN: SocketAddr = SocketAddr::new(IpAddr::V6(Ipv6Addr::UNSPECIFIED), 8658);

/// Most addresses one node listens at.
pub const LISTEN: usize = 16;
/// Most peers that `connect`, `mirror` and `homes` name, each.
pub const CONNECT: usize = 1_024;
/// Most ranges `exempt` names.
pub const EXEMPT: usize = 1_024;

/// A commented `volt.toml`, for people to start from.
pub const EXAMPLE: &str = include_str!("config/example.toml");

/// How a node behaves. [`Config::default`] is a node that listens, dials nobody, and denies everything.
///
/// In `volt.toml`:
///
/// ```toml
#[doc = include_str!("config/example.toml")]
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// The home directory. `None`: [`default_home`](super::home::default_home). Not in `volt.toml`, which is in the home.
    pub home: Option<PathBuf>,
    /// Where to listen, at most [`LISTEN`] addresses. Empty: [`DEFAULT_LISTEN`], with what to do if that is taken.
    pub listen: Vec<SocketAddr>,
    /// What this node calls itself, for display at its peers: 1 to 255 bytes without control characters.
    pub name: Option<String>,
    /// How eagerly idle paths are watched. Default [`Profile::Active`].
    pub profile: Profile,
    /// Peers to hold a session with, besides those the store remembers; at most [`CONNECT`].
    pub connect: Vec<PeerRef>,
    /// Peers whose directories are mirrored in this node's: what is registered there for all is found here too. Sessions with them are held.
    /// At most [`CONNECT`].
    pub mirror: Vec<PeerRef>,
    /// Peers in whose directories a service is looked up that this node's own does not have, by its name alone. Sessions with them are
    /// held. At most [`CONNECT`].
    pub homes: Vec<PeerRef>,
    /// Relays to keep sessions with: this node is reached through them where it cannot be dialled, and reaches others through them. The
    /// preferred one first; at most [`RELAYS`].
    pub relays: Vec<PeerRef>,
    /// For whom this node carries circuits. `None`, the default: for those only whom rules about `relay` permit it.
    pub relay: Option<RelayMode>,
    /// What peers may reach by name, as far as the rules permit them to; at most [`TARGETS`].
    pub expose: Vec<Expose>,
    /// What peers expose, and where it is brought to. Sessions with them are held. At most [`CONNECT`].
    pub forward: Vec<Forward>,
    /// The rules of the configuration, each of [`Source::Config`](crate::policy::Source::Config).
    pub rules: Vec<Rule>,
    /// The groups that rules may name.
    pub groups: Groups,
    /// Anyone may connect and call everything this node serves, unless a rule denies it. Default `false`.
    pub open: bool,
    /// What becomes of those who want to connect and of whom no rule says anything. Default [`Strangers::Ask`].
    pub strangers: Strangers,
    /// Addresses whose handshakes are not rated, at most [`EXEMPT`] besides [`Prefix::LOOPBACK`], which is the default.
    pub exempt: Vec<Prefix>,
    /// How often callers may call, at most [`RATES`].
    pub rates: Vec<RateRule>,
    /// The bounds an operator may change.
    pub limits: Limits,
}

/// What becomes of those who want to connect and of whom no rule says anything.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Strangers {
    /// The owner is asked, while somebody [listens](crate::Node::listen); else they are refused.
    #[default]
    Ask,
    /// They are refused.
    Refuse,
}

/// A TCP target that peers may reach by name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Expose {
    /// Under which name.
    pub name: String,
    /// `HOST:PORT`, as seen from this node.
    pub target: String,
}

/// Something that a peer exposes, brought to a local address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Forward {
    /// Where to listen.
    pub listen: SocketAddr,
    /// Who exposes it.
    pub peer: PeerRef,
    /// Under which name.
    pub name: String,
}

impl Expose {
    /// What is wrong with it, if anything.
    fn check(&self) -> Result<(), &'static str> {
        check_name(&self.name)?;
        check_target(&self.target)
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            home: None,
            listen: Vec::new(),
            name: None,
            profile: Profile::Active,
            connect: Vec::new(),
            mirror: Vec::new(),
            homes: Vec::new(),
            relays: Vec::new(),
            relay: None,
            expose: Vec::new(),
            forward: Vec::new(),
            rules: Vec::new(),
            groups: Groups::new(),
            open: false,
            strangers: Strangers::default(),
            exempt: Prefix::LOOPBACK.to_vec(),
            rates: Vec::new(),
            limits: Limits::default(),
        }
    }
}

impl Config {
    /// Whether handshakes from this address are not rated.
    pub fn is_exempt(&self, address: IpAddr) -> bool {
        self.exempt.iter().any(|prefix| prefix.contains(address))
    }

    /// Checks what types alone do not: lengths, counts, and the ranges of the limits. [`Config::read`] has done it already.
    pub fn check(&self) -> Result<(), ConfigError> {
        let wrong = |field: &'static str, message: String| Err(ConfigError::Value { field, message });
        if let Some(name) = &self.name
            && (name.is_empty() || name.len() > NAME_BYTES || name.chars().any(char::is_control))
        {
            return wrong("name", format!("name has 1 to {NAME_BYTES} bytes and no control characters"));
        }
        let counts = [
            ("listen", self.listen.len(), LISTEN),
            ("connect", self.connect.len(), CONNECT),
            ("mirror", self.mirror.len(), CONNECT),
            ("homes", self.homes.len(), CONNECT),
            ("relays", self.relays.len(), RELAYS),
            ("exempt", self.exempt.len(), EXEMPT + 2),
            ("expose", self.expose.len(), TARGETS),
            ("forward", self.forward.len(), CONNECT),
            ("rate", self.rates.len(), RATES),
        ];
        if let Some((field, got, most)) = counts.into_iter().find(|(_, got, most)| got > most) {
            return wrong(field, format!("{field} names {got}, and may name at most {most}"));
        }
        if self.listen.iter().zip(1..).any(|(address, after)| self.listen[after..].contains(address)) {
            return wrong("listen", "listen names an address twice".to_owned());
        }
        let exposed =
            self.expose.iter().zip(1..).find(|(one, after)| self.expose[*after..].iter().any(|two| two.name == one.name));
        if let Some((twice, _)) = exposed {
            return wrong("expose", format!("two are exposed as {:?}: give one of them another name", twice.name));
        }
        let wrong_one = self.expose.iter().map(|exposed| ("expose", exposed.check()));
        let names = self.forward.iter().map(|forward| ("forward", check_name(&forward.name)));
        if let Some((field, Err(message))) = wrong_one.chain(names).find(|(_, checked)| checked.is_err()) {
            return wrong(field, message.to_owned());
        }
        if let Some(Err(message)) = self.rates.iter().map(|rate| rate.rate.check()).find(Result::is_err) {
            return wrong("rate", message);
        }
        let unknown = self.rates.iter().find_map(|rate| match &rate.who {
            Subject::Group(name) if !self.groups.contains_key(name) => Some(name),
            _ => None,
        });
        if let Some(name) = unknown {
            return wrong(
                "rate",
                format!("there is no group `{}`: add it under [groups], with its members, or correct the rate", name.as_str()),
            );
        }
        match self.limits.out_of_range() {
            Some((field, message)) => wrong(field, message),
            None => Ok(()),
        }
    }
}
