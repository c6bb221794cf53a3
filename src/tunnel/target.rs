//! What is exposed under a name, and how it is reached. It knows nothing of peers and streams.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use tokio::io::DuplexStream;
use tokio::net::TcpStream;
use tokio::sync::{broadcast, mpsc, watch};

use super::events::Served;
use super::splice::{Connection, Local};
use crate::proto::limits;
use crate::proto::status::{Code, Status};

/// Something that is exposed.
#[derive(Debug)]
pub(super) struct Target {
    pub to: To,
    pub events: broadcast::Sender<Served>,
    /// Closed when it is exposed no longer.
    on: watch::Receiver<()>,
}

/// Where its connections go.
#[derive(Debug)]
pub(super) enum To {
    Tcp(String),
    Memory(mpsc::Sender<DuplexStream>),
}

/// Why there is no connection: what the peer is told, and what the owner is.
pub(super) struct Unconnected {
    pub status: Status,
    pub why: Option<String>,
}

impl Target {
    /// It is exposed as long as what comes with it is kept.
    pub fn new(to: To) -> (Arc<Self>, watch::Sender<()>) {
        let (keep, on) = watch::channel(());
        let events = broadcast::Sender::new(limits::TUNNEL_EVENTS);
        (Arc::new(Self { to, events, on }), keep)
    }

    /// Waits until it is exposed no longer. Cancel-safe.
    pub async fn withdrawn(&self) {
        let mut on = self.on.clone();
        while on.changed().await.is_ok() {}
    }

    /// A new connection to it, in time or not at all.
    pub async fn connect(&self) -> Result<Local, Unconnected> {
        let connecting = async {
            match &self.to {
                To::Tcp(address) => TcpStream::connect(address).await.map(|stream| Local::Tcp(Connection::new(stream))),
                To::Memory(taken) => {
                    let (near, far) = tokio::io::duplex(64 * 1024);
                    let gone = |_| io::ErrorKind::ConnectionRefused;
                    taken.send(far).await.map_err(gone)?;
                    Ok(Local::Memory(near))
                }
            }
        };
        match tokio::time::timeout(limits::TUNNEL_CONNECT, connecting).await {
            Ok(connected) => connected.map_err(|error| unconnected(&error)),
            Err(_) => {
                let text = format!("what is exposed did not take a connection within {} s", limits::TUNNEL_CONNECT.as_secs());
                Err(Unconnected { status: Status::new(Code::Unavailable, text), why: None })
            }
        }
    }
}

/// Peers learn what is the matter, and nothing of where the target is.
fn unconnected(error: &io::Error) -> Unconnected {
    let unavailable = |text| Status::new(Code::Unavailable, text);
    let status = match error.kind() {
        io::ErrorKind::ConnectionRefused => unavailable("what is exposed refuses connections: it may not be running"),
        _ if out_of_files(error) => Status::new(Code::ResourceExhausted, "the node has no room for more connections"),
        _ => unavailable("what is exposed cannot be reached from its node"),
    };
    Unconnected { status, why: Some(error.to_string()) }
}

fn out_of_files(error: &io::Error) -> bool {
    let full = [rustix::io::Errno::MFILE, rustix::io::Errno::NFILE].map(rustix::io::Errno::raw_os_error);
    error.raw_os_error().is_some_and(|code| full.contains(&code))
}

/// Whether this is where a connection can be made to: `HOST:PORT`, with a name or an address; IPv6 in brackets.
///
/// # Errors
/// What is wrong.
pub fn check_target(text: &str) -> Result<(), &'static str> {
    const WRONG: &str = "a target is HOST:PORT, like \"127.0.0.1:22\", \"[::1]:5432\" or \"printer.lan:631\"";
    if let Ok(address) = text.parse::<SocketAddr>() {
        return if address.port() == 0 { Err("port 0 is no target") } else { Ok(()) };
    }
    let (host, port) = text.rsplit_once(':').ok_or(WRONG)?;
    let fine = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_');
    if host.is_empty() || host.len() > 253 || !host.bytes().all(fine) || !port.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(WRONG);
    }
    match port.parse::<u16>() {
        Ok(0) => Err("port 0 is no target"),
        Ok(_) => Ok(()),
        Err(_) => Err(WRONG),
    }
}

/// Reads where a forward is to listen: `PORT`, of this machine only, or `HOST:PORT` with an address, or `localhost`. Port 0 is any that
/// is free.
///
/// # Errors
/// What is wrong.
pub fn parse_listen(text: &str) -> Result<SocketAddr, &'static str> {
    const WRONG: &str =
        "where to listen is PORT (of this machine only) or IP:PORT, like \"8080\", \"0.0.0.0:8080\" or \"[::1]:0\"";
    let port = text.strip_prefix("localhost:").unwrap_or(text);
    if !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit()) {
        return port.parse().map(|port| (Ipv4Addr::LOCALHOST, port).into()).map_err(|_| WRONG);
    }
    text.parse().map_err(|_| WRONG)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_is_a_host_and_a_port() {
        for good in ["127.0.0.1:22", "[::1]:5432", "localhost:80", "printer.lan:631", "a_b-c:65535"] {
            assert_eq!(check_target(good), Ok(()), "{good}");
        }
        for bad in [
            "",
            "22",
            ":22",
            "localhost",
            "localhost:",
            "localhost:0",
            "127.0.0.1:0",
            "::1:22",
            "a b:1",
            "a:65536",
            "a:+1",
            "a/b:1",
        ] {
            assert!(check_target(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_port_alone_is_this_machines_only() {
        for (text, address) in
            [("8080", "127.0.0.1:8080"), ("localhost:0", "127.0.0.1:0"), ("0.0.0.0:1", "0.0.0.0:1"), ("[::1]:0", "[::1]:0")]
        {
            assert_eq!(parse_listen(text), Ok(address.parse().unwrap()), "{text}");
        }
        for bad in ["", "65536", "-1", "host:1", ":1", "localhost:", "localhost", "1.2.3.4"] {
            assert!(parse_listen(bad).is_err(), "{bad}");
        }
    }

    #[tokio::test]
    async fn a_peer_is_not_told_where_a_target_is() {
        let there = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = there.local_addr().unwrap().to_string();
        drop(there);
        let (target, _on) = Target::new(To::Tcp(address.clone()));
        let Err(failed) = target.connect().await else { panic!("nobody listens there") };
        assert_eq!(failed.status.code, Code::Unavailable);
        assert!(!failed.status.message.contains("127.0.0.1"), "{}", failed.status);
        let (target, on) = Target::new(To::Tcp("nowhere.invalid:1".into()));
        let Err(failed) = target.connect().await else { panic!("nobody has that name") };
        assert!(!failed.status.message.contains("nowhere"), "{}", failed.status);
        drop(on);
        target.withdrawn().await;
    }
}
