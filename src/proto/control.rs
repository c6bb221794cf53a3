//! What goes over a path's control stream: hello, attach, ping, pong, addresses, goodbye. Each message is one frame:
//! a varint length, then the message in bincode. The dialler opens the stream and speaks first.

use std::fmt;
use std::net::SocketAddr;

use bincode::{Decode, Encode};

use super::codec::{self, Message};
use super::limits;
use crate::id::{NodeId, Relay, Vouch};

/// The version of the protocol this crate speaks.
pub const VERSION: u16 = 1;

/// One process of a node: 16 random bytes made at start. A peer that comes back with another one has lost its state.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Encode, Decode)]
pub struct BootId(pub [u8; 16]);

/// The name of a session: 16 random bytes chosen by the side that accepted its first path.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Encode, Decode)]
pub struct SessionId(pub [u8; 16]);

/// What a peer is to us.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Encode, Decode)]
pub enum Role {
    /// A running node: one per identity.
    Node,
    /// A short-lived command that shares a node's key: registers nothing, supersedes nobody, is nobody's presence.
    Visitor,
}

/// How eagerly a node watches its idle paths.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Encode, Decode)]
pub enum Profile {
    /// Pings an idle path every 5 s.
    #[default]
    Active,
    /// Pings an idle path every 30 s.
    Battery,
}

/// A message of the control stream.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub enum Control {
    /// The first message each way.
    Hello(Hello),
    /// The second message each way: which session this path carries, and from where.
    Attach(Attach),
    /// Asks for a pong of the same number.
    Ping {
        /// Counts up from 0 on each path.
        seq: u64,
    },
    /// Answers a ping.
    Pong {
        /// The ping's number.
        seq: u64,
    },
    /// Replaces the addresses of the hello.
    Addresses(
        /// Where the sender can be dialled now.
        Vec<SocketAddr>,
    ),
    /// The sender closes the session; nothing follows.
    Goodbye(Goodbye),
    /// What the sender has of the session's streams: lets the receiver forget what it kept in case the path is lost.
    Progress(Progress),
}

/// Who speaks, and what it proposes.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Hello {
    /// The lowest and the highest protocol version the sender speaks.
    pub versions: (u16, u16),
    /// The sender's process.
    pub boot: BootId,
    /// What the sender is.
    pub role: Role,
    /// The session it wants to go on with (dialler), or the one this path will carry (accepter).
    pub session: Option<SessionId>,
    /// The attach number proposed (dialler), or agreed (accepter): one more than any the two processes have used.
    pub attach: u64,
    /// What the sender calls itself: for display, escaped; never for looking anything up.
    pub name: String,
    /// How eagerly the sender watches idle paths.
    pub profile: Profile,
    /// How long the sender keeps a session without a path, in milliseconds. The smaller of the two holds; with 0 sessions are
    /// not resumed, and nothing is kept or acknowledged for that.
    pub resume_window_ms: u32,
    /// Where the sender can be dialled.
    pub addresses: Vec<SocketAddr>,
    /// The address the sender sees the receiver at.
    pub observed: SocketAddr,
    /// Room for what later versions add: number and bytes. Unknown numbers are ignored.
    pub extensions: Vec<(u16, Vec<u8>)>,
}

/// The extension of a hello that names the relays its sender keeps sessions with.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Relays {
    /// Each, and where it can be dialled; the best first.
    pub relays: Vec<(NodeId, Vec<SocketAddr>)>,
}

impl Relays {
    /// The number of the extension.
    pub const NUMBER: u16 = 1;

    /// The extension for these relays; none without any.
    pub fn extension(relays: &[Relay]) -> Option<(u16, Vec<u8>)> {
        let first = |addresses: &[SocketAddr]| addresses.iter().take(limits::ADDRESSES).copied().collect();
        let relays: Vec<_> = relays.iter().take(limits::RELAYS).map(|relay| (relay.id, first(&relay.addresses))).collect();
        (!relays.is_empty()).then(|| (Self::NUMBER, codec::encode(&Self { relays })))
    }
}

impl Message for Relays {
    const NAME: &'static str = "relays";
    const LIMIT: usize = 4 * 1024;

    fn check(&self) -> Result<(), &'static str> {
        if self.relays.len() > limits::RELAYS {
            return Err("too many relays");
        }
        self.relays.iter().try_for_each(|(_, addresses)| check_addresses(addresses))
    }
}

/// The extension of a hello that proves an invitation to the node it is sent to.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Invited {
    /// The public half of the invitation's key.
    pub key: [u8; 32],
    /// Its signature: see [`Vouch`].
    pub signature: [u8; 64],
}

impl Invited {
    /// The number of the extension.
    pub const NUMBER: u16 = 2;

    /// The extension for this vouch.
    pub fn extension(vouch: &Vouch) -> (u16, Vec<u8>) {
        (Self::NUMBER, codec::encode(&Self { key: vouch.key, signature: vouch.signature }))
    }
}

impl Message for Invited {
    const NAME: &'static str = "invited";
    const LIMIT: usize = 256;

    fn check(&self) -> Result<(), &'static str> {
        Ok(())
    }
}

/// A session is put on this path. Several follow each other when there is much to list.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Attach {
    /// The session.
    pub session: SessionId,
    /// The number of this attachment: only the newest sends.
    pub attach: u64,
    /// The lowest stream id the sender has not opened yet.
    pub next_id: u64,
    /// The sender's live streams, by rising id. One below `next_id` that its opener does not list is over at both ends.
    pub live: Vec<LiveStream>,
    /// Whether another attach with more of them follows.
    pub more: bool,
}

/// Where one stream stands at the sender of this.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct LiveStream {
    /// The stream.
    pub stream: u64,
    /// Bytes handed to this side's reader.
    pub received: u64,
    /// Whether this side's reader has seen the end after them, a reset too.
    pub ended: bool,
    /// The code with which this side gave up sending, if it did.
    pub reset: Option<u8>,
    /// The code with which this side stopped reading, if it did.
    pub stop: Option<u8>,
}

/// What is done with, and what has come.
#[derive(Clone, Debug, Default, PartialEq, Eq, Encode, Decode)]
pub struct Progress {
    /// Streams the sender opened and is done with: over at both ends. Rising and apart.
    pub over: Vec<Run>,
    /// Streams of which more has come since this was last said.
    pub live: Vec<LiveStream>,
}

/// Streams that one side opened one after the other: `first`, `first + 2`, …
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Run {
    /// The lowest.
    pub first: u64,
    /// How many, at least one.
    pub count: u64,
}

/// The session is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub enum Goodbye {
    /// The owner of the sending node wants this session no longer.
    Disconnect,
    /// The sending node goes down.
    Down,
    /// The sending node's policy no longer allows the peer.
    Refused,
}

impl Message for Control {
    const NAME: &str = "control";
    const LIMIT: usize = limits::CONTROL_MESSAGE_BYTES;

    fn check(&self) -> Result<(), &'static str> {
        match self {
            Control::Hello(hello) => hello.check(),
            Control::Attach(attach) => attach.check(),
            Control::Addresses(addresses) => check_addresses(addresses),
            Control::Progress(progress) => progress.check(),
            Control::Ping { .. } | Control::Pong { .. } | Control::Goodbye(_) => Ok(()),
        }
    }
}

impl Hello {
    /// The relays that the sender keeps sessions with.
    ///
    /// # Errors
    /// What it says is no list of relays.
    pub fn relays(&self) -> Result<Vec<Relay>, codec::DecodeError> {
        let Some((_, bytes)) = self.extensions.iter().find(|(number, _)| *number == Relays::NUMBER) else {
            return Ok(Vec::new());
        };
        let Relays { relays } = codec::decode(bytes)?;
        Ok(relays.into_iter().map(|(id, addresses)| Relay { id, addresses }).collect())
    }

    /// The invitation that the sender proves to have.
    ///
    /// # Errors
    /// What it says is no such proof.
    pub fn invited(&self) -> Result<Option<Vouch>, codec::DecodeError> {
        let Some((_, bytes)) = self.extensions.iter().find(|(number, _)| *number == Invited::NUMBER) else {
            return Ok(None);
        };
        let Invited { key, signature } = codec::decode(bytes)?;
        Ok(Some(Vouch { key, signature }))
    }

    fn check(&self) -> Result<(), &'static str> {
        if self.versions.0 > self.versions.1 {
            return Err("versions are the wrong way round");
        }
        if self.name.len() > limits::NAME_BYTES {
            return Err("the name is too long");
        }
        if self.attach == 0 {
            return Err("attach numbers start at 1");
        }
        check_addresses(&self.addresses)
    }
}

impl Attach {
    fn check(&self) -> Result<(), &'static str> {
        check_live(&self.live)
    }
}

impl Progress {
    fn check(&self) -> Result<(), &'static str> {
        if self.over.len() > limits::PROGRESS_ENTRIES {
            return Err("too many runs of streams that are over");
        }
        let mut next = 0;
        for run in &self.over {
            let end = run.count.checked_mul(2).and_then(|ids| run.first.checked_add(ids));
            match end {
                Some(end) if run.count > 0 && run.first >= next => next = end,
                _ => return Err("runs of streams are not rising"),
            }
        }
        check_live(&self.live)
    }
}

fn check_live(live: &[LiveStream]) -> Result<(), &'static str> {
    if live.len() > limits::PROGRESS_ENTRIES {
        return Err("too many live streams");
    }
    if live.windows(2).any(|pair| pair[0].stream >= pair[1].stream) {
        return Err("live streams are not in rising order");
    }
    Ok(())
}

pub(super) fn check_addresses(addresses: &[SocketAddr]) -> Result<(), &'static str> {
    if addresses.len() > limits::ADDRESSES {
        return Err("too many addresses");
    }
    if addresses.iter().any(|address| address.port() == 0) {
        return Err("an address has no port");
    }
    Ok(())
}

/// Sixteen random bytes, for a boot or a session.
fn sixteen() -> [u8; 16] {
    let mut bytes = [0; 16];
    rand::Rng::fill_bytes(&mut rand::rng(), &mut bytes);
    bytes
}

macro_rules! sixteen_byte_ids {
    ($($name:ident)*) => {$(
        impl $name {
            /// A fresh one.
            pub fn random() -> Self {
                Self(sixteen())
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({self})", stringify!($name))
            }
        }
    )*};
}

sixteen_byte_ids!(BootId SessionId);
