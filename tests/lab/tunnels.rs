//! TCP at both ends of tunnels: targets that run on one machine of the lab, and the ports they are brought to on another.

use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::Duration;

use serde_json::Value;

use crate::net::Space;
use crate::node::{LONG, Mark, Process};
use crate::sites::Pair;

/// Longer than an outage, and what comes after it.
const PATIENCE: Duration = Duration::from_secs(90);

/// Does this with each connection to a port of its own on a machine, for as long as the test runs. Whoever breaks off is not the
/// target's to worry about.
pub fn target(space: &Space, serve: impl Fn(TcpStream) -> io::Result<()> + Copy + Send + 'static) -> SocketAddr {
    let listener = space.within(|| TcpListener::bind("127.0.0.1:0")).unwrap();
    let at = listener.local_addr().unwrap();
    thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            thread::spawn(move || serve(stream));
        }
    });
    at
}

/// Gives back what it gets.
pub fn echo(mut stream: TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    io::copy(&mut stream.try_clone()?, &mut stream).map(drop)
}

/// A target of the second node of a pair, on a port of the first one's machine. Ends when dropped.
pub struct Tunnel {
    pub at: SocketAddr,
    space: Space,
    _ends: [Process; 2],
}

impl Tunnel {
    pub fn new(pair: &Pair, inside: &[Space; 2], name: &str, target: SocketAddr) -> Self {
        pair.homes[1].ok(&["policy", "allow", pair.homes[0].id(), "forward", name]);
        let exposing = Process::start(pair.homes[1].volt(&["expose", name, &target.to_string(), "--json"]));
        said(&exposing, "expose");
        let forwarding = Process::start(pair.homes[0].volt(&["forward", "0", "other", name, "--json"]));
        let at = said(&forwarding, "forward")["listen"].as_str().unwrap().parse().unwrap();
        Self { at, space: inside[0].clone(), _ends: [exposing, forwarding] }
    }

    /// A connection that goes through it.
    pub fn connect(&self) -> TcpStream {
        let stream = self.space.within(|| TcpStream::connect(self.at)).unwrap();
        stream.set_nodelay(true).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream
    }
}

/// What a command told first, of this.
fn said(process: &Process, of: &str) -> Value {
    let read = |line: &str| serde_json::from_str::<Value>(line).ok().filter(|value| value[of].is_string());
    process.line(Mark::START, LONG, read).1
}
