//! What other programs do over one TCP connection through a tunnel, while the relay that carries it goes and comes back: a session of
//! questions and answers, and a download.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Command, Stdio};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use aws_lc_rs::digest::{Context, Digest, SHA256};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::node::{LONG, at};
use crate::sites::{Pair, RELAY, Sites, UNTHROTTLED, path, relay_with};
use crate::stage::{is_long, seed};
use crate::tunnels::{Tunnel, echo, target};

const PIECE_BYTES: usize = 64 << 10;
/// From the relay's return until a session goes on over it: both ends have attached again, and there is a circuit.
const BACK: Duration = Duration::from_secs(6);

pub fn a_session_and_a_download_outlive_a_restart_of_their_relay() {
    both_outlive(None);
}

pub fn a_session_and_a_download_outlive_an_outage_of_their_relay() {
    both_outlive(Some(Duration::from_secs(if is_long() { 20 } else { 5 })));
}

/// When each is a third of its way the relay is killed and started again, or is off the network for this time.
fn both_outlive(outage: Option<Duration>) {
    let (lines, bytes) = if is_long() { (3_000, 200_000_000) } else { (300, 10_000_000) };
    let sites = Sites::new(1);
    let (relay, up, ticket) = relay_with(&sites.public[0], UNTHROTTLED);
    let pair = Pair::new(&sites.inside, &[&ticket]);
    let shell = Tunnel::new(&pair, &sites.inside, "shell", target(&sites.inside[1], echo));
    let web = target(&sites.inside[1], move |stream| answer(stream, bytes));
    let web = Tunnel::new(&pair, &sites.inside, "web", web);

    let began = Instant::now();
    let (gate, reached) = Gate::two();
    let [for_session, for_download] = gate;
    let (stream, url) = (shell.connect(), format!("http://{}/", web.at));
    let mut curl = sites.inside[0].command("curl");
    curl.args(["--silent", "--show-error", "--fail", "--noproxy", "*", &url]);
    let session = thread::spawn(move || session(stream, lines, &for_session.0));
    let download = thread::spawn(move || download(curl, bytes, &for_download.0));

    for _ in 0..2 {
        reached.recv_timeout(LONG).expect("both come to a third of their way");
    }
    let mut up = Some(up);
    match outage {
        Some(_) => sites.unplug(0),
        None => drop(up.take()),
    }
    let cut = Instant::now();
    [for_session.1, for_download.1].iter().for_each(|gone| gone.send(()).unwrap());
    match outage {
        Some(time) => {
            at(cut + time);
            sites.plug_in(0);
        }
        None => up = Some(relay.up(&RELAY)),
    }
    let back = Instant::now();
    let answered = session.join().unwrap();
    let ((hash, received), arrived) = download.join().unwrap();
    println!(
        "a relay away for {:?}: back, the session's answer came after {:?} and a piece of the download after {:?}; {lines} lines and {bytes} bytes took {:?}",
        back - cut,
        answered.saturating_duration_since(back),
        arrived.saturating_duration_since(back),
        began.elapsed()
    );
    assert!(answered.saturating_duration_since(back) <= BACK, "it took too long to come back");
    assert_eq!(received, bytes);
    assert_eq!(hash.as_ref(), digest(content(bytes)).as_ref(), "the download is not what was served");
    let path = path(&pair.homes[0], pair.homes[1].id());
    assert_eq!(path, Some(format!("relayed by {}", relay.id())));
    drop(up);
}

/// Where something waits, on its way, until what carries it is gone.
struct Gate {
    reached: Sender<()>,
    gone: Receiver<()>,
}

impl Gate {
    /// Two of them, each with what opens it, and what tells of both that they are reached.
    fn two() -> ([(Self, Sender<()>); 2], Receiver<()>) {
        let (reached, both) = channel();
        let gates = [(); 2].map(|()| {
            let (open, gone) = channel();
            (Self { reached: reached.clone(), gone }, open)
        });
        (gates, both)
    }

    fn pass(&self) {
        self.reached.send(()).unwrap();
        self.gone.recv_timeout(LONG).unwrap();
    }
}

/// A question and its answer, and the next one. Says when the longest wait for an answer ended.
fn session(mut stream: TcpStream, lines: u32, gate: &Gate) -> Instant {
    let mut answers = BufReader::new(stream.try_clone().unwrap());
    let mut random = StdRng::seed_from_u64(seed());
    let (mut longest, mut answered) = (Duration::ZERO, Instant::now());
    for number in 0..lines {
        if number == lines / 3 {
            gate.pass();
        }
        let asked = Instant::now();
        let question = format!("line {number}: {:016x}\n", random.next_u64());
        stream.write_all(question.as_bytes()).unwrap();
        let mut answer = String::new();
        answers.read_line(&mut answer).unwrap();
        assert_eq!(answer, question);
        if asked.elapsed() > longest {
            (longest, answered) = (asked.elapsed(), Instant::now());
        }
    }
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    assert_eq!(answers.read(&mut [0]).unwrap(), 0, "there is more than was sent");
    answered
}

/// The hash and the length of what comes, and when its longest pause ended.
fn download(mut curl: Command, bytes: u64, gate: &Gate) -> ((Digest, u64), Instant) {
    let mut curl = curl.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut body = curl.stdout.take().unwrap();
    let (mut hash, mut received) = (Context::new(&SHA256), 0);
    let (mut last, mut longest, mut arrived) = (Instant::now(), Duration::ZERO, Instant::now());
    let mut piece = vec![0; PIECE_BYTES];
    loop {
        let read = body.read(&mut piece).unwrap();
        if read == 0 {
            break;
        }
        let before = received;
        received += read as u64;
        hash.update(&piece[..read]);
        if last.elapsed() > longest {
            (longest, arrived) = (last.elapsed(), Instant::now());
        }
        if before < bytes / 3 && received >= bytes / 3 {
            gate.pass();
        }
        last = Instant::now();
    }
    let done = curl.wait_with_output().unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    ((hash.finish(), received), arrived)
}

/// One answer of HTTP/1.1 with so many bytes.
fn answer(mut stream: TcpStream, bytes: u64) -> io::Result<()> {
    let mut request = BufReader::new(stream.try_clone()?);
    let mut line = String::new();
    while line != "\r\n" {
        line.clear();
        if request.read_line(&mut line)? == 0 {
            return Ok(());
        }
    }
    write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: {bytes}\r\nConnection: close\r\n\r\n")?;
    content(bytes).try_for_each(|piece| stream.write_all(&piece))
}

/// So many bytes that repeat nowhere, the same each time.
fn content(bytes: u64) -> impl Iterator<Item = Vec<u8>> {
    let (mut random, mut left) = (StdRng::seed_from_u64(seed()), bytes);
    std::iter::from_fn(move || {
        let mut piece = vec![0; left.min(PIECE_BYTES as u64) as usize];
        left -= piece.len() as u64;
        random.fill_bytes(&mut piece);
        (!piece.is_empty()).then_some(piece)
    })
}

fn digest(content: impl Iterator<Item = Vec<u8>>) -> Digest {
    let mut hash = Context::new(&SHA256);
    content.for_each(|piece| hash.update(&piece));
    hash.finish()
}
