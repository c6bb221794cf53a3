//! The two honest ends: each opens streams of known content, and answers those of the other with known content. What an end reads is compared,
//! byte for byte, with what the other one says at that place.

use std::sync::{Arc, Mutex};

use bytes::Bytes;
use rand::rngs::StdRng;
use rand::{Rng, RngExt, SeedableRng};
use tokio::sync::watch;
use tokio::task::JoinSet;
use voltmesh::net::{Circuit, Link, PathError, PathRecv, PathSend};

use crate::carrier::Case;

/// Streams that who began opens, and who accepted.
const STREAMS: [usize; 2] = [2, 1];

/// An end of a circuit that came about.
pub struct End {
    pub link: Link,
    heard: Arc<Heard>,
    _tasks: JoinSet<()>,
}

/// What an end has heard.
struct Heard {
    case: Arc<Case>,
    /// 0 began the circuit.
    end: usize,
    /// Of the other's streams, which have come.
    came: Mutex<[bool; 2]>,
    /// Streams that came to their true end, of both sides.
    whole: watch::Sender<usize>,
    failed: Mutex<Option<PathError>>,
    accepted: Mutex<Vec<String>>,
}

impl End {
    pub fn new(circuit: Arc<Circuit>, case: &Arc<Case>, end: usize) -> Self {
        let link = Link::relayed(circuit);
        // As sessions do once policy has said so.
        link.permit();
        let heard = Arc::new(Heard {
            case: case.clone(),
            end,
            came: Mutex::default(),
            whole: watch::Sender::new(0),
            failed: Mutex::default(),
            accepted: Mutex::default(),
        });
        let mut tasks = JoinSet::new();
        for number in 0..STREAMS[end] {
            let (link, heard) = (link.clone(), heard.clone());
            tasks.spawn(async move {
                let asked = heard.ask(&link, number).await;
                heard.done(asked);
            });
        }
        tasks.spawn(heard.clone().answer_all(link.clone()));
        Self { link, heard, _tasks: tasks }
    }

    /// Ends when everything was said and heard. Never, if it is not.
    pub async fn whole(&self) {
        let _ = self.heard.whole.subscribe().wait_for(|whole| *whole == STREAMS[0] + STREAMS[1]).await;
    }

    pub fn is_whole(&self) -> bool {
        *self.heard.whole.borrow() == STREAMS[0] + STREAMS[1]
    }

    /// How a stream has failed, if one has.
    pub fn failed(&self) -> Option<PathError> {
        self.heard.failed.lock().unwrap().clone()
    }

    /// What it has taken for the other's, and was not.
    pub fn accepted(&self) -> Vec<String> {
        self.heard.accepted.lock().unwrap().clone()
    }
}

impl Heard {
    fn done(&self, done: Result<(), PathError>) {
        match done {
            Ok(()) => self.whole.send_modify(|whole| *whole += 1),
            Err(error) => drop(self.failed.lock().unwrap().get_or_insert(error)),
        }
        self.case.moved();
    }

    async fn ask(&self, link: &Link, number: usize) -> Result<(), PathError> {
        let (mut send, mut recv) = link.open().await?;
        self.say(&mut send, &self.body(self.end, number, false)).await?;
        let answer = self.body(self.end, number, true);
        self.hear(&mut recv, vec![(None, answer)]).await.map(drop)
    }

    async fn answer_all(self: Arc<Self>, link: Link) {
        let mut tasks = JoinSet::new();
        while let Ok((send, recv)) = link.accept().await {
            self.case.moved();
            let heard = self.clone();
            tasks.spawn(async move {
                let answered = heard.answer(send, recv).await;
                heard.done(answered);
            });
        }
        // What came before the end may still be read.
        while tasks.join_next().await.is_some() {}
    }

    async fn answer(&self, mut send: PathSend, mut recv: PathRecv) -> Result<(), PathError> {
        let other = 1 - self.end;
        let bodies = (0..STREAMS[other]).map(|number| (Some(number), self.body(other, number, false))).collect();
        match self.hear(&mut recv, bodies).await? {
            Some(number) => self.say(&mut send, &self.body(other, number, true)).await,
            None => Ok(()),
        }
    }

    async fn say(&self, send: &mut PathSend, body: &[u8]) -> Result<(), PathError> {
        let mut random = StdRng::seed_from_u64(self.case.plan.seed ^ body.len() as u64);
        let mut left = body;
        while !left.is_empty() {
            let (piece, rest) = left.split_at(random.random_range(1..=left.len()));
            send.write(Bytes::copy_from_slice(piece)).await?;
            left = rest;
        }
        send.finish()
    }

    /// Reads one of these to its end, and says which.
    async fn hear(&self, recv: &mut PathRecv, mut bodies: Vec<(Option<usize>, Vec<u8>)>) -> Result<Option<usize>, PathError> {
        let (mut at, mut known) = (0, false);
        while let Some(bytes) = recv.read().await? {
            self.case.moved();
            bodies.retain(|(_, body)| body.get(at..at + bytes.len()) == Some(&bytes[..]));
            at += bytes.len();
            match &bodies[..] {
                [] => self.false_word(format!("{} bytes up to {at} that nobody said there", bytes.len())),
                [(Some(number), _)] if !std::mem::replace(&mut known, true) && self.has_come(*number) => {
                    self.false_word(format!("stream {number} came again"));
                }
                _ => {}
            }
        }
        match &bodies[..] {
            [(number, body)] if body.len() == at => Ok(*number),
            _ => {
                self.false_word(format!("an end at {at} that was none"));
                Ok(None)
            }
        }
    }

    /// Whether the other's stream of this number came before.
    fn has_come(&self, number: usize) -> bool {
        std::mem::replace(&mut self.came.lock().unwrap()[number], true)
    }

    fn false_word(&self, what: String) {
        self.accepted.lock().unwrap().push(format!("end {}: {what}", self.end));
    }

    /// What is said on a stream: that of this number of those that this end has opened, back to it or not. At least 16 bytes, by which each is
    /// known.
    fn body(&self, opener: usize, number: usize, back: bool) -> Vec<u8> {
        let which = (self.case.legs[0] << 8) + (opener << 4) as u64 + (number << 1) as u64 + u64::from(back);
        let mut random = StdRng::seed_from_u64(self.case.plan.seed.wrapping_add(which.wrapping_mul(0x9e37_79b9_7f4a_7c15)));
        let mut body = vec![0; self.case.plan.body + 16 + random.random_range(0..8)];
        random.fill_bytes(&mut body);
        body
    }
}
