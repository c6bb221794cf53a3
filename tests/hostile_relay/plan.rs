//! What the carrier will do in one circuit: drawn from a seed, once a circuit.

use std::fmt;

use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, RngExt, SeedableRng};

/// What a carrier can do. Where it says "another stream", that is one of the same circuit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Deed {
    // With the bytes of one direction of one stream, the control stream among them.
    Drop,
    Flip,
    Repeat,
    Reorder,
    Insert,
    Old,
    Delay,
    Swallow,
    Finish,
    Reset,
    Stop,
    // With two directions, each of which goes on as the other.
    Swap,
    Reflect,
    Cross,
    // With whole streams.
    DropStream,
    Renumber,
    Twice,
    ReplaySame,
    ReplayOther,
    ReplayOld,
    TurnBack,
    Noise,
    // With handshakes, and whom they lead to.
    OtherId,
    OwnKey,
    OtherNode,
    OneSide,
    ForItself,
    OwnAcceptor,
    OldHandshake,
    OldAnswers,
    Reopen,
}

const ALL: &[(Deed, &str)] = &[
    (Deed::Drop, "drops bytes"),
    (Deed::Flip, "flips a bit"),
    (Deed::Repeat, "repeats a piece"),
    (Deed::Reorder, "reorders two pieces"),
    (Deed::Insert, "inserts noise"),
    (Deed::Old, "goes on with an older circuit's bytes"),
    (Deed::Delay, "delays a stream until all else is done"),
    (Deed::Swallow, "swallows what is left"),
    (Deed::Finish, "cuts off with FIN"),
    (Deed::Reset, "cuts off with RESET"),
    (Deed::Stop, "says STOP_SENDING"),
    (Deed::Swap, "swaps two streams"),
    (Deed::Reflect, "reflects a stream"),
    (Deed::Cross, "crosses directions of two streams"),
    (Deed::DropStream, "drops a stream"),
    (Deed::Renumber, "gives a stream another number"),
    (Deed::Twice, "carries a stream twice at once"),
    (Deed::ReplaySame, "replays a stream, same number"),
    (Deed::ReplayOther, "replays a stream, another number"),
    (Deed::ReplayOld, "replays an older circuit's stream"),
    (Deed::TurnBack, "opens a stream back to its opener"),
    (Deed::Noise, "opens a stream of noise"),
    (Deed::OtherId, "names the circuit differently to each end"),
    (Deed::OwnKey, "answers with its own key"),
    (Deed::OtherNode, "leads to another node"),
    (Deed::OneSide, "shows its own certificate to one side"),
    (Deed::ForItself, "leads on who wants the carrier"),
    (Deed::OwnAcceptor, "leads back to who began"),
    (Deed::OldHandshake, "replays an older handshake to who accepts"),
    (Deed::OldAnswers, "replays an older handshake to who begins"),
    (Deed::Reopen, "opens an old circuit again"),
];

impl Deed {
    pub fn all() -> impl Iterator<Item = Deed> {
        ALL.iter().map(|(deed, _)| *deed)
    }

    /// Whether it is done with the handshake, not with streams of a circuit between the two.
    pub fn is_of_handshakes(self) -> bool {
        self >= Deed::OwnKey
    }

    /// Whether there is more than one circuit's streams afterwards: that is seen by and by.
    pub fn adds(self) -> bool {
        matches!(self, Deed::Twice | Deed::ReplaySame | Deed::ReplayOther | Deed::ReplayOld | Deed::TurnBack | Deed::Noise)
    }

    /// Whether it can do nothing that an honest way could not do too.
    pub fn is_honest(self) -> bool {
        self == Deed::Delay
    }
}

impl fmt::Display for Deed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(ALL.iter().find(|(deed, _)| deed == self).map_or("?", |(_, name)| name))
    }
}

/// One direction of one stream, as the carrier has it: the how manyeth it saw (the control stream is the first), and whether towards the stream's opener.
pub type Way = (usize, bool);

/// What is done, and where.
#[derive(Clone, Debug)]
pub struct Plan {
    pub seed: u64,
    pub deed: Deed,
    pub way: Way,
    /// Whether whole records are counted below, not bytes. Never of the control stream.
    pub of_records: bool,
    /// How many bytes pass before.
    pub at: usize,
    /// Of how many bytes it is.
    pub length: usize,
    pub next_length: usize,
    /// The other way of what has two, and how many bytes pass there before.
    pub other: (Way, usize),
    /// Takes the place of a stream's number, as an offset or as it is.
    pub number: u64,
    /// About how many bytes each stream has.
    pub body: usize,
}

impl Plan {
    /// `control`: how many bytes a control stream has each way.
    pub fn draw(seed: u64, control: [usize; 2]) -> Self {
        let mut random = StdRng::seed_from_u64(seed);
        let deeds: Vec<Deed> = Deed::all().collect();
        let deed = *deeds.choose(&mut random).expect("there are some");
        let body = match random.random_range(0..20) {
            0 => random.random_range(60_000..140_000),
            1..5 => random.random_range(8..64),
            5..9 => random.random_range(3_000..20_000),
            _ => random.random_range(64..3_000),
        };
        // In records; a few bytes may be past the end.
        let sealed = body + 19 * (2 + body / 60_000) + 30;
        let place = |random: &mut StdRng, first: usize| {
            let way: Way = (random.random_range(first..4), random.random());
            let bytes = if way.0 == 0 { control[usize::from(way.1)] } else { sealed };
            (way, random.random_range(0..bytes.max(1)))
        };
        let (mut way, at) = place(&mut random, usize::from(deed >= Deed::DropStream));
        let (other_way, other_at) = place(&mut random, 0);
        // Mostly two that are both there sooner or later.
        let another = if other_way.0 == way.0 { 1 + way.0 % 3 } else { other_way.0 };
        let other = match deed {
            Deed::Swap => ((another, way.1), other_at),
            // What answers waits for what is answered: that can go astray before its first byte only.
            Deed::Reflect => {
                way.1 = false;
                ((way.0, true), 0)
            }
            _ => ((another, !way.1), 0),
        };
        let of_records = way.0 > 0 && random.random();
        let most = match of_records {
            true => 2,
            false if random.random() => 40,
            false => sealed,
        };
        // Few records: each has as many bytes as were said at once.
        let (at, other) = match of_records {
            // After all that was said.
            _ if deed == Deed::Insert && random.random_range(0..4) == 0 => (usize::MAX, other),
            true => (at * 4 / sealed.max(1) * usize::from(random.random::<bool>()), (other.0, 0)),
            false => (at, other),
        };
        Self {
            seed,
            deed,
            way,
            of_records,
            at,
            length: random.random_range(1..=most),
            next_length: random.random_range(1..=most),
            other,
            number: if random.random_range(0..4) == 0 {
                random.next_u64() >> random.random_range(2..64)
            } else {
                random.random_range(1..9)
            },
            body,
        }
    }

    /// What the carrier makes up.
    pub fn noise(&self) -> Vec<u8> {
        let mut noise = vec![0; self.length.min(2_000)];
        StdRng::seed_from_u64(self.seed ^ 1).fill_bytes(&mut noise);
        // Now and then it looks like a record of this circuit.
        if self.length.is_multiple_of(3) && noise.len() > 3 {
            (noise[0], noise[1]) = (noise[0] & 1, 0);
        }
        noise
    }
}
