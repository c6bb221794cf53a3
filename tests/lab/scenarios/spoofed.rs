//! First packets of handshakes that nobody means, each from another address that does not exist: a node answers them with less than three
//! times what it got, and lets in who is honest.

use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{Rng, RngExt, SeedableRng};
use rustls::crypto::aws_lc_rs::{cipher_suite::TLS13_AES_128_GCM_SHA256, default_provider, kx_group};
use rustls::quic::{ClientConnection, Keys, Version};
use rustls::{ClientConfig, RootCertStore, Side};
use tun_rs::{DeviceBuilder, SyncDevice};
use voltmesh::Node as LibraryNode;
use voltmesh::id::Ticket;

use crate::net::{Net, Space};
use crate::node::{Home, LONG};
use crate::stage::{Times, is_long, seed};

/// The node, and who means it.
const NODE: Ipv4Addr = Ipv4Addr::new(10, 7, 0, 2);
const PORT: u16 = 8650;
const HONEST: &str = "10.7.0.1";
/// Where all the others seem to be: half of a million addresses.
const NOWHERE: u32 = u32::from_be_bytes([10, 128, 0, 0]);
const NOWHERE_BITS: u32 = 19;

/// How many of them there should be.
const PER_SECOND: u64 = 20_000;
/// What a first packet has at least, and what these have: a little more would let a server begin one datagram more.
const DATAGRAM_BYTES: [usize; 3] = [1_200, 1_201, 1_300];
const HEADERS_BYTES: usize = 20 + 8;
/// A node may send so many times as much as it got to an address that has not shown that it is there (RFC 9000, section 8.1).
const AMPLIFIED_MAX: u64 = 3;
/// An honest dial takes no longer than this, nearly always.
const DIAL: Duration = Duration::from_secs(1);

pub fn honest_dials_get_through_twenty_thousand_spoofed_ones_a_second() {
    let mut net = Net::new();
    let (node, honest) = (net.space("node"), net.space("honest"));
    honest.cable("eth", &format!("{HONEST}/24"), &node, "eth", &format!("{NODE}/24"));
    let home = Home::new(&node);
    let up = home.up(&["--open", "--listen", &format!("{NODE}:{PORT}")]);
    let ticket = Ticket::new(home.id().parse().unwrap()).with_address((NODE, PORT).into());

    let dials = if is_long() { 100 } else { 20 };
    let quiet = honest.within(|| dial(&ticket, dials / 2));
    let flood = Flood::start(&node);
    thread::sleep(Duration::from_millis(500));
    let meanwhile = honest.within(|| dial(&ticket, dials));
    let done = flood.end();
    let after = honest.within(|| dial(&ticket, dials / 2));

    let per_second = done.sent as f64 / done.took.as_secs_f64();
    println!("{} first packets, {per_second:.0} a second, of {} addresses", done.sent, done.of_each.len());
    println!("the node's socket got {}, and had no room for {}", done.got, done.lost);
    let [there, back] = [0, 1].map(|at| done.of_each.values().map(|bytes| bytes[at]).sum::<u64>());
    let most = done.of_each.values().map(|bytes| bytes[1] as f64 / bytes[0] as f64).fold(0.0, f64::max);
    println!(
        "{there} bytes there and {back} back: {:.3} times as many, {most:.3} times at most for one address",
        back as f64 / there as f64
    );
    println!("honest dials before: {quiet}");
    println!("honest dials meanwhile: {meanwhile}");
    println!("honest dials after: {after}");
    let status: serde_json::Value = serde_json::from_str(&home.ok(&["status", "--json"])).unwrap();
    println!("the node's memory: {}; turned away: {}", resident(up.pid()), status["refused_handshakes"]);

    assert!(done.strangers == 0, "{} bytes went to addresses that sent nothing", done.strangers);
    assert!(done.of_each.values().all(|[there, back]| *back <= AMPLIFIED_MAX * there), "{most} times as much");
    assert!(back > 0, "the node has answered none of them");
    if is_long() {
        assert!(meanwhile.share(0.99) < DIAL, "{meanwhile}");
    }
}

fn resident(pid: u32) -> String {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    status.lines().find(|line| line.starts_with("VmRSS")).unwrap().to_owned()
}

/// So many dials, each by a node of its own, ten a second.
fn dial(ticket: &Ticket, dials: u32) -> Times {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
        let mut clock = tokio::time::interval(Duration::from_millis(100));
        let mut times = Vec::new();
        for _ in 0..dials {
            clock.tick().await;
            let node = LibraryNode::builder().listen(format!("{HONEST}:0").parse().unwrap()).bind().await.unwrap();
            let began = Instant::now();
            tokio::time::timeout(LONG, node.connect(ticket.clone())).await.expect("a dial never ends").unwrap();
            times.push(began.elapsed());
            node.shutdown().await;
        }
        Times::of(times)
    })
}

/// Packets from nowhere, which come to a machine by a device of its own, and its answers, which leave by it.
struct Flood {
    ending: Arc<AtomicBool>,
    counted: Arc<Counted>,
    sender: thread::JoinHandle<Duration>,
    /// What the machine's UDP sockets had got and lost before.
    before: [u64; 2],
    space: Space,
}

#[derive(Default)]
struct Counted {
    sent: AtomicU64,
    /// Payloads of UDP there and back, by address and port.
    of_each: Mutex<HashMap<(u32, u16), [u64; 2]>>,
    /// Back, to addresses that nothing came from.
    strangers: AtomicU64,
}

struct Done {
    took: Duration,
    sent: u64,
    got: u64,
    lost: u64,
    of_each: HashMap<(u32, u16), [u64; 2]>,
    strangers: u64,
}

impl Flood {
    fn start(space: &Space) -> Self {
        let device = space.within(|| DeviceBuilder::new().name("nowhere").enable(false).build_sync().unwrap());
        let range = Ipv4Addr::from(NOWHERE);
        space.ip(&format!(
            "link set dev nowhere txqueuelen 10000 up\naddr add 10.127.0.1/32 dev nowhere\nroute add {range}/{} dev nowhere",
            32 - NOWHERE_BITS
        ));
        let (device, counted, ending) = (Arc::new(device), Arc::<Counted>::default(), Arc::<AtomicBool>::default());
        let before = sockets(space);
        let (reading, back) = (device.clone(), counted.clone());
        // Ends with the device, and that with its namespace.
        thread::spawn(move || back.listen(&reading));
        let (there, until) = (counted.clone(), ending.clone());
        let sender = thread::spawn(move || there.send(&device, &until));
        Self { ending, counted, sender, before, space: space.clone() }
    }

    fn end(self) -> Done {
        self.ending.store(true, Relaxed);
        let took = self.sender.join().unwrap();
        // What is under way arrives.
        thread::sleep(Duration::from_secs(1));
        let [got, lost] = sockets(&self.space);
        Done {
            took,
            sent: self.counted.sent.load(Relaxed),
            got: got - self.before[0],
            lost: lost - self.before[1],
            of_each: self.counted.of_each.lock().unwrap().clone(),
            strangers: self.counted.strangers.load(Relaxed),
        }
    }
}

/// Datagrams that UDP sockets of a machine have got, and those they had no room for.
fn sockets(space: &Space) -> [u64; 2] {
    let text = String::from_utf8(space.command("cat").arg("/proc/net/snmp").output().unwrap().stdout).unwrap();
    let mut lines = text.lines().filter(|line| line.starts_with("Udp:"));
    let (names, numbers) = (lines.next().unwrap(), lines.next().unwrap());
    ["InDatagrams", "RcvbufErrors"].map(|wanted| {
        let at = names.split(' ').position(|name| name == wanted).unwrap();
        numbers.split(' ').nth(at).unwrap().parse().unwrap()
    })
}

impl Counted {
    /// As many a second as there should be, or as this machine makes.
    fn send(&self, device: &SyncDevice, ending: &AtomicBool) -> Duration {
        let (mut random, began) = (StdRng::seed_from_u64(seed()), Instant::now());
        let forger = Forger::new();
        while !ending.load(Relaxed) {
            let due = began.elapsed().as_micros() as u64 * PER_SECOND / 1_000_000;
            let sent = self.sent.load(Relaxed);
            if sent >= due {
                thread::park_timeout(Duration::from_millis(1));
                continue;
            }
            for _ in 0..(due - sent).min(64) {
                let from = (NOWHERE + random.random_range(1..(1 << NOWHERE_BITS) - 1), random.random_range(1024..65535));
                let bytes = DATAGRAM_BYTES[random.random_range(0..DATAGRAM_BYTES.len())];
                self.of_each.lock().unwrap().entry(from).or_default()[0] += bytes as u64;
                let packet = forger.packet(from, bytes, &mut random);
                while device.send(&packet).is_err() {
                    thread::yield_now();
                }
                self.sent.fetch_add(1, Relaxed);
            }
        }
        began.elapsed()
    }

    fn listen(&self, device: &SyncDevice) {
        let mut packet = vec![0; 65_536];
        while let Ok(bytes) = device.recv(&mut packet) {
            let packet = &packet[..bytes];
            // IPv4 without options, and UDP: whatever else the kernel says here is its own.
            if bytes < HEADERS_BYTES || packet[0] != 0x45 || packet[9] != 17 {
                continue;
            }
            let address = u32::from_be_bytes(packet[16..20].try_into().unwrap());
            let port = u16::from_be_bytes(packet[22..24].try_into().unwrap());
            let payload = (bytes - HEADERS_BYTES) as u64;
            match self.of_each.lock().unwrap().get_mut(&(address, port)) {
                Some(counted) => counted[1] += payload,
                None => drop(self.strangers.fetch_add(payload, Relaxed)),
            }
        }
    }
}

/// Makes first packets (RFC 9000, 17.2.2) that any server takes for the beginning of a handshake.
struct Forger {
    hello: Vec<u8>,
    source: [u8; 8],
}

impl Forger {
    fn new() -> Self {
        let provider = rustls::crypto::CryptoProvider { kx_groups: vec![kx_group::X25519], ..default_provider() };
        let mut config = ClientConfig::builder_with_provider(Arc::new(provider))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_root_certificates(RootCertStore::empty())
            .with_no_client_auth();
        config.alpn_protocols = vec![b"volt/1".to_vec()];
        let source = [7; 8];
        // The one parameter that a server must find: initial_source_connection_id.
        let parameters = [&[0x0f, 8][..], &source].concat();
        let name = "volt".try_into().unwrap();
        let mut tls = ClientConnection::new(Arc::new(config), Version::V1, name, parameters).unwrap();
        let mut hello = Vec::new();
        tls.write_hs(&mut hello);
        Self { hello, source }
    }

    /// One with its IP and UDP headers, from this address to the node.
    fn packet(&self, (address, port): (u32, u16), bytes: usize, random: &mut StdRng) -> Vec<u8> {
        let total = (HEADERS_BYTES + bytes) as u16;
        let mut packet = vec![0x45, 0];
        packet.extend(total.to_be_bytes());
        packet.extend([0, 0, 0x40, 0, 64, 17, 0, 0]);
        packet.extend(address.to_be_bytes());
        packet.extend(NODE.octets());
        let sum = checksum(&packet);
        packet[10..12].copy_from_slice(&sum.to_be_bytes());
        packet.extend(port.to_be_bytes());
        packet.extend(PORT.to_be_bytes());
        packet.extend((total - 20).to_be_bytes());
        // No checksum, which IPv4 lets one leave out.
        packet.extend([0, 0]);
        packet.extend(self.initial(bytes, random));
        packet
    }

    fn initial(&self, bytes: usize, random: &mut StdRng) -> Vec<u8> {
        let mut destination = [0; 8];
        random.fill_bytes(&mut destination);
        let suite = TLS13_AES_128_GCM_SHA256.tls13().unwrap();
        let keys = Keys::initial(Version::V1, suite, suite.quic.unwrap(), &destination, Side::Client).local;

        // Long header, Initial, a packet number of four bytes; version 1; both connection ids; no token.
        let mut header = vec![0xc3, 0, 0, 0, 1, 8];
        header.extend(destination);
        header.push(8);
        header.extend(self.source);
        header.push(0);
        let number_at = header.len() + 2;
        header.extend((0x4000 | (bytes - number_at) as u16).to_be_bytes());
        header.extend([0; 4]);

        // CRYPTO at offset 0; zeros are PADDING.
        let mut payload = vec![6, 0];
        payload.extend((0x4000 | self.hello.len() as u16).to_be_bytes());
        payload.extend(&self.hello);
        payload.resize(bytes - header.len() - keys.packet.tag_len(), 0);
        let tag = keys.packet.encrypt_in_place(0, &header, &mut payload).unwrap();
        payload.extend(tag.as_ref());

        let (first, rest) = header.split_first_mut().unwrap();
        keys.header.encrypt_in_place(&payload[..keys.header.sample_len()], first, &mut rest[number_at - 1..]).unwrap();
        header.extend(payload);
        header
    }
}

/// The internet's checksum (RFC 1071).
fn checksum(bytes: &[u8]) -> u16 {
    let words = bytes.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]])));
    let sum: u32 = words.sum();
    !((sum & 0xffff) + (sum >> 16)) as u16
}
