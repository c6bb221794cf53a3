//! Tickets that were changed on their way: none is taken for a ticket, whatever it says and wherever it was changed.

#[path = "support/mutations.rs"]
mod mutations;

use data_encoding::{Encoding, Specification};
use voltmesh::id::{InviteSecret, Relay, SecretKey, Ticket};

/// All characters a keyboard has, and some that look alike.
const CHARACTERS: &str =
    " !\"#$%&'()*+,-./0123456789:;<=>?@ABCDEFGHIJKLMNOPQRSTUVWXYZ[\\]^_`abcdefghijklmnopqrstuvwxyz{|}~\n\t\0\u{a0}é\u{200b}ａ";

fn id(seed: u8) -> voltmesh::id::NodeId {
    SecretKey::from_seed(&[seed; 32]).id()
}

/// One of each form: with nothing, and with everything a ticket can name.
fn tickets() -> Vec<Ticket> {
    let addresses = ["192.0.2.1:8658", "[2001:db8::1]:443", "198.51.100.7:1"].map(|address| address.parse().unwrap());
    let relays = [2, 3].map(|seed| Relay { id: id(seed), addresses: addresses[..usize::from(seed) - 1].to_vec() });
    let bare = Ticket::new(id(1));
    let whole = Ticket {
        addresses: addresses.to_vec(),
        relays: relays.to_vec(),
        secret: Some(InviteSecret::from_bytes(std::array::from_fn(|at| at as u8 * 17))),
        ..bare.clone()
    };
    let invitation = Ticket { secret: whole.secret.clone(), ..bare.clone() };
    vec![bare, invitation, whole]
}

#[test]
fn no_ticket_that_was_changed_at_one_place_is_taken_for_one() {
    for ticket in tickets() {
        let text = ticket.to_string();
        assert_eq!(text.parse(), Ok(ticket));
        let mut tried = 0;
        let accepted: Vec<_> = mutations::of_text(&text, CHARACTERS)
            .inspect(|_| tried += 1)
            .filter(|(_, changed)| changed.parse::<Ticket>().is_ok())
            .map(|(what, _)| what)
            .collect();
        println!("{tried} changes of a ticket of {} characters: {} accepted", text.len(), accepted.len());
        assert!(accepted.is_empty(), "{accepted:?}");
    }
}

/// The changes of a ticket's bytes, written as a ticket is: what a copy that was garbled before it was encoded would be.
#[test]
fn no_ticket_whose_bytes_were_changed_at_one_place_is_taken_for_one() {
    let mut specification = Specification::new();
    specification.symbols.push_str("abcdefghijklmnopqrstuvwxyz234567");
    let base32: Encoding = specification.encoding().unwrap();
    for ticket in tickets() {
        let text = ticket.to_string();
        let bytes = base32.decode(text.strip_prefix("volt1").unwrap().as_bytes()).unwrap();
        let (mut tried, mut accepted) = (0, Vec::new());
        for (what, changed) in mutations::of_bytes(&bytes) {
            tried += 1;
            if format!("volt1{}", base32.encode(&changed)).parse::<Ticket>().is_ok() {
                accepted.push(what);
            }
        }
        println!("{tried} changes of a ticket of {} bytes: {} accepted", bytes.len(), accepted.len());
        assert!(accepted.is_empty(), "{accepted:?}");
    }
}
