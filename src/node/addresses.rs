//! Where a node can be reached, as far as it can know by itself: what it listens at, with wildcards spelt out.

use std::net::{IpAddr, SocketAddr};

use crate::proto::limits;

/// The addresses that a ticket names for a node that listens there: a wildcard stands for each address of this machine that
/// others may reach, or for loopback if there is none. At most [`ADDRESSES`](limits::ADDRESSES).
pub fn reachable(listening: &[SocketAddr]) -> Vec<SocketAddr> {
    let interfaces: Vec<IpAddr> = if_addrs::get_if_addrs().unwrap_or_default().iter().map(|interface| interface.ip()).collect();
    spell_out(listening, &interfaces)
}

fn spell_out(listening: &[SocketAddr], interfaces: &[IpAddr]) -> Vec<SocketAddr> {
    let mut found: Vec<SocketAddr> = Vec::new();
    for at in listening {
        let mut add = |ip: IpAddr| {
            let address = SocketAddr::new(ip, at.port());
            if !found.contains(&address) {
                found.push(address);
            }
        };
        if !at.ip().is_unspecified() {
            add(at.ip());
            continue;
        }
        let served = |ip: &&IpAddr| at.is_ipv6() || ip.is_ipv4();
        let (loopback, others): (Vec<_>, Vec<_>) = interfaces.iter().filter(served).partition(|ip| ip.is_loopback());
        let useful: Vec<_> = others.into_iter().filter(|ip| !is_link_local(ip)).collect();
        // Its own loopback is of use to others on the machine only, and elsewhere leads to somebody else.
        let chosen = if useful.is_empty() { loopback } else { useful };
        chosen.into_iter().for_each(&mut add);
    }
    found.truncate(limits::ADDRESSES);
    found
}

/// Of no use without naming the interface, which differs on each machine.
fn is_link_local(ip: &IpAddr) -> bool {
    match ip {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spelt(listening: &str, interfaces: &[&str]) -> Vec<String> {
        let interfaces: Vec<_> = interfaces.iter().map(|ip| ip.parse().unwrap()).collect();
        spell_out(&[listening.parse().unwrap()], &interfaces).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_wildcard_stands_for_every_address_others_can_use() {
        let interfaces = ["127.0.0.1", "192.0.2.7", "::1", "2001:db8::7", "fe80::1"];
        assert_eq!(spelt("[::]:8658", &interfaces), ["192.0.2.7:8658", "[2001:db8::7]:8658"]);
        assert_eq!(spelt("0.0.0.0:8658", &interfaces), ["192.0.2.7:8658"]);
    }

    #[test]
    fn with_nothing_else_loopback_has_to_do() {
        assert_eq!(spelt("[::]:1", &["127.0.0.1", "::1"]), ["127.0.0.1:1", "[::1]:1"]);
        assert_eq!(spelt("127.0.0.1:1", &["192.0.2.7"]), ["127.0.0.1:1"]);
    }
}
