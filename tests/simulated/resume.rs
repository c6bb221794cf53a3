//! What was in flight when the path was lost: it goes on where it stopped, or ends with an outcome that is true.

mod bulk;
mod events;
mod flow;
mod moves;
mod restarts;
mod shapes;
mod unary;
mod window;

use std::time::Duration;

use rand::RngExt;
use rand::rngs::StdRng;
use tokio::time::{Instant, sleep};
use voltmesh::net::sim::{LinkProfile, SimNetwork};
use voltmesh::node::{Builder, config::Config, config::Limits};
use voltmesh::{Node, Session};

use self::flow::Book;
use crate::support::*;

/// In the long form each scenario runs with so many seeds.
const SEEDS: u64 = 200;
/// Longer than a path can be dead before both ends know, however idle.
const NOTICED: Duration = Duration::from_millis(8_600);
/// From the return of the network to a session that is up, within the resume window.
const BACK: Duration = Duration::from_secs(3);

/// Two nodes that keep books, `a` having dialled `b`; hosts 1 and 2.
struct Duo {
    nodes: [Node; 2],
    /// Each one's session with the other.
    to: [Session; 2],
    /// What the other keeps of each one's calls.
    books: [Book; 2],
    told: [Told; 2],
    keys: [u64; 2],
}

impl Duo {
    async fn new(network: &SimNetwork, seed: u64, link: LinkProfile) -> Self {
        Self::within(network, seed, link, [Limits::default(), Limits::default()]).await
    }

    /// With limits of each.
    async fn within(network: &SimNetwork, seed: u64, link: LinkProfile, [limits_a, limits_b]: [Limits; 2]) -> Self {
        network.default_link(link);
        let keys = [seed, seed + 1];
        let (a, book_a) = keeper(network, ip(1), keys[0], limits_a).await;
        let (b, book_b) = keeper(network, ip(2), keys[1], limits_b).await;
        let told = [Told::by(&a, b.id()), Told::by(&b, a.id())];
        let to_b = a.hold(b.id(), &[(ip(2), PORT).into()]);
        until(Duration::from_secs(60), || joined(&a, &b)).await;
        let to_a = b.session(a.id()).expect("it is connected");
        let session = to_a.id().expect("it is connected");
        for told in &told {
            told.begin(session).await;
        }
        Self { nodes: [a, b], books: [book_b, book_a], to: [to_b, to_a], told, keys }
    }

    /// For calls by this node: its session, and the book that the other keeps of them.
    fn by(&self, node: usize) -> (Session, Book) {
        (self.to[node].clone(), self.books[node].clone())
    }

    /// Both know that the path is lost; when each was told.
    async fn both_lost(&self, from: Instant) -> [Instant; 2] {
        until(NOTICED, || self.told.iter().all(|told| told.lost_after(from).is_some())).await;
        [0, 1].map(|node| self.told[node].lost_after(from).unwrap().0)
    }

    async fn joined_within(&self, within: Duration) -> Duration {
        until(within, || joined(&self.nodes[0], &self.nodes[1])).await
    }

    /// It is the session of the beginning, up, and good in both directions.
    async fn assert_survived(&self) {
        self.joined_within(Duration::from_secs(30)).await;
        tokio::join!(biased; echo(&self.to[0]), echo(&self.to[1]));
        self.told.iter().for_each(Told::assert_one_session);
    }
}

/// A node that keeps a book, and serves `work` for [`echo`].
async fn keeper(network: &SimNetwork, host: [u8; 4], number: u64, limits: Limits) -> (Node, Book) {
    let book = Book::default();
    let config = Config { open: true, limits, ..Config::default() };
    let builder: Builder = Node::builder().config(config).service(Served::default().service()).service(book.service());
    (bind(network, host, &key(number), builder).await, book)
}

/// A link with nothing wrong but its length.
fn clean(random: &mut StdRng) -> LinkProfile {
    LinkProfile::perfect(ms(random, 1, 60))
}

/// A link that loses up to 30 %, doubles, reorders and trembles.
fn rough(random: &mut StdRng) -> LinkProfile {
    LinkProfile {
        loss: random.random_range(0.0..0.3),
        duplicate: random.random_range(0.0..0.05),
        reorder: random.random_range(0.0..0.05),
        jitter: ms(random, 0, 20),
        ..clean(random)
    }
}

/// Cuts the network between the two hosts for so long; one time in three in one direction only.
async fn cut(network: &SimNetwork, random: &mut StdRng, length: Duration) {
    match random.random_range(0..6) {
        0 => network.partition_one_way(ip(1), ip(2)),
        1 => network.partition_one_way(ip(2), ip(1)),
        _ => network.partition(ip(1), ip(2)),
    }
    sleep(length).await;
    network.heal_all();
}
