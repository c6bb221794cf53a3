//! Two sites behind routers that hide them, machines that both can reach, and nodes on all of them.

use crate::net::{Net, Space};
use crate::node::{Home, LONG, Mark, Node, until};
use crate::stage::ticket;

/// Two sites, each behind a router, and machines that both can reach.
pub struct Sites {
    /// Everything goes with it.
    _net: Net,
    pub inside: [Space; 2],
    pub public: Vec<Space>,
}

impl Sites {
    /// With so many machines in the open.
    pub fn new(public: usize) -> Self {
        let mut net = Net::new();
        let middle = net.router("middle");
        let inside = [1, 2].map(|site| {
            let (space, router) = (net.space(&format!("site{site}")), net.router(&format!("router{site}")));
            space.cable("eth", &format!("10.1{site}.0.2/24"), &router, "in", &format!("10.1{site}.0.1/24"));
            space.ip(&format!("route add default via 10.1{site}.0.1"));
            router.cable("wan", &format!("10.2{site}.0.1/24"), &middle, &format!("site{site}"), &format!("10.2{site}.0.2/24"));
            router.ip(&format!("route add default via 10.2{site}.0.2"));
            router.masquerade("wan", true);
            space
        });
        let public = (0..public).map(|number| {
            let space = net.space(&format!("public{number}"));
            space.cable(
                "eth",
                &format!("10.3{number}.0.2/24"),
                &middle,
                &format!("public{number}"),
                &format!("10.3{number}.0.1/24"),
            );
            space.ip(&format!("route add default via 10.3{number}.0.1"));
            space
        });
        let public = public.collect();
        Self { _net: net, inside, public }
    }

    /// Takes the cable of a machine in the open away.
    pub fn unplug(&self, public: usize) {
        self.public[public].ip("link set eth down");
    }

    /// And gives it back, with the route that went with it.
    pub fn plug_in(&self, public: usize) {
        self.public[public].ip(&format!("link set eth up\nroute replace default via 10.3{public}.0.1"));
    }
}

/// What makes a relay that carries for anyone.
pub const RELAY: [&str; 3] = ["--relay", "open", "--open"];

/// For the `volt.toml` of a relay: strangers get as much as the links take.
pub const UNTHROTTLED: &str = "[limits]\nrelay_guest_bytes_per_second = 0\n";

/// A relay that carries for anyone, and its ticket.
pub fn relay(space: &Space) -> (Home, Node, String) {
    relay_with(space, "")
}

/// The same with this `volt.toml`.
pub fn relay_with(space: &Space, toml: &str) -> (Home, Node, String) {
    let home = Home::new(space);
    home.configure(toml);
    let up = home.up(&RELAY);
    let ticket = ticket(&up);
    (home, up, ticket)
}

/// Two nodes in the sites, attached to these relays, one connected with the other by its id alone.
pub struct Pair {
    pub homes: [Home; 2],
    pub up: [Node; 2],
}

impl Pair {
    pub fn new(inside: &[Space; 2], relays: &[&str]) -> Self {
        let homes = [0, 1].map(|site| Home::new(&inside[site]));
        let via: Vec<&str> = relays.iter().flat_map(|relay| ["--via", *relay]).collect();
        homes[0].ok(&["policy", "allow", homes[1].id(), "call", "*"]);
        homes[1].ok(&["policy", "allow", homes[0].id(), "call", "*"]);
        let up = [0, 1].map(|site| homes[site].up(&via));
        for node in &up {
            for _ in relays {
                node.event(Mark::START, "connected", LONG);
            }
        }
        homes[0].ok(&["connect", homes[1].id(), "--as", "other"]);
        until("they are connected", LONG, || path(&homes[0], homes[1].id()));
        Self { homes, up }
    }
}

/// How a node reaches a peer, if it does.
pub fn path(home: &Home, peer: &str) -> Option<String> {
    let sessions = home.ok(&["sessions", "--json"]);
    let mut sessions = sessions.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
    let session = sessions.find(|session| session["peer"] == peer && session["state"] == "connected")?;
    session["path"].as_str().map(str::to_owned)
}
