use proptest::prelude::*;

use super::super::SecretKey;
use super::*;

fn sample() -> Ticket {
    let id = |seed| SecretKey::from_seed(&[seed; 32]).id();
    Ticket {
        id: id(1),
        addresses: vec!["192.0.2.1:8658".parse().unwrap(), "[2001:db8::1]:8658".parse().unwrap()],
        relays: vec![Relay { id: id(2), addresses: vec!["198.51.100.7:443".parse().unwrap()] }],
        secret: Some(InviteSecret::from_bytes([0x5a; SECRET_BYTES])),
    }
}

fn text_of(body: &[u8]) -> String {
    format!("{PREFIX}{}", BASE32.encode(&[body, &checksum(body)].concat()))
}

fn body_of(ticket: &Ticket) -> Vec<u8> {
    let bytes = ticket.encode();
    bytes[..bytes.len() - CRC_BYTES].to_vec()
}

#[test]
fn the_form_of_a_ticket_stays_as_it_is() {
    let bare = Ticket::new(SecretKey::from_seed(&[1; 32]).id());
    assert_eq!(bare.to_string(), "volt1agfiry65oqe7dfp5klns2pf2lvzmuzyjx4ozieq36n2iqanub5xvyaaaad2gingt");
    assert_eq!(
        sample().to_string(),
        "volt1agfiry65oqe7dfp5klns2pf2lvzmuzyjx4ozieq36n2iqanub5xvyaqeyaaaeajb2idcaainxaaaaaaaaaaaaaaaaaaaciosagats5yovb6rox2wunkgnq2mp3gmxdmksg2o4n5clx3a6w4pzgzziaieyyzwibybxmavuws2ljnfuws2ljnfuws2ljnfvta2qoha"
    );
}

#[test]
fn every_change_of_one_character_is_refused() {
    let text = sample().to_string();
    let characters: Vec<char> = (' '..='~').chain(['\n', '\t', '\u{a0}', 'é', '\u{200b}', 'ａ']).collect();
    for at in 0..=text.len() {
        let (before, after) = text.split_at(at);
        for character in &characters {
            let inserted = format!("{before}{character}{after}");
            assert!(inserted.parse::<Ticket>().is_err(), "{character:?} inserted at {at}");
            let Some(rest) = after.get(1..) else { continue };
            let replaced = format!("{before}{character}{rest}");
            assert!(replaced == text || replaced.parse::<Ticket>().is_err(), "{character:?} at {at}");
        }
        if let Some(rest) = after.get(1..) {
            assert!(format!("{before}{rest}").parse::<Ticket>().is_err(), "deleted at {at}");
        }
        if let (Some(pair), Some(rest)) = (after.get(..2), after.get(2..)) {
            let swapped = format!("{before}{}{}{rest}", &pair[1..], &pair[..1]);
            assert!(swapped == text || swapped.parse::<Ticket>().is_err(), "swapped at {at}");
        }
    }
    assert!(text.to_uppercase().parse::<Ticket>().is_err());
}

#[test]
fn wrong_texts_are_refused_each_with_its_own_error() {
    use TicketError::*;
    let text = sample().to_string();
    let cases = [
        (String::new(), Prefix),
        ("VOLT1ABC".to_owned(), Prefix),
        (PREFIX.to_owned(), Checksum),
        (format!("{text}\n"), Character { character: '\n' }),
        (text.replace('a', "A"), Character { character: 'A' }),
        (text[..text.len() - 8].to_owned(), Checksum),
        (format!("{PREFIX}{}", "a".repeat(MAX_CHARS)), TooLong { chars: MAX_CHARS + PREFIX.len() }),
    ];
    for (text, error) in cases {
        assert_eq!(text.parse::<Ticket>().unwrap_err(), error, "{text}");
    }
}

#[test]
fn a_ticket_made_wrong_is_refused_though_its_checksum_fits() {
    let body = body_of(&Ticket::new(SecretKey::from_seed(&[1; 32]).id()));
    let with = |at: usize, bytes: &[u8]| text_of(&[&body[..at], bytes].concat()).parse::<Ticket>().unwrap_err();
    assert_eq!(with(0, &[2]), TicketError::Version { version: 2 });
    assert_eq!(with(0, &[]), content("it ends too early"));
    assert_eq!(with(33, &[17]), content("too many addresses"));
    assert_eq!(with(33, &[16]), content("it ends too early"));
    assert_eq!(with(33, &[1, 5, 1, 2, 3, 4, 0, 1, 0, 0]), content("an unknown kind of address"));
    assert_eq!(with(34, &[9, 0]), content("too many relays"));
    assert_eq!(with(35, &[2]), content("an unknown kind of secret"));
    assert_eq!(with(35, &[1]), content("it ends too early"));
    assert_eq!(with(35, &[0, 0]), content("more after its end"));
    let weak = text_of(&[&[VERSION][..], &[0; 32], &[0, 0, 0]].concat());
    assert_eq!(weak.parse::<Ticket>().unwrap_err(), content("an id anybody can sign for"));
}

#[test]
fn the_largest_ticket_is_read_and_what_does_not_fit_is_left_out() {
    let mut ticket = sample();
    ticket.addresses = vec!["[2001:db8::1]:1".parse().unwrap(); MAX_ADDRESSES];
    ticket.relays = vec![Relay { id: ticket.id, addresses: ticket.addresses.clone() }; MAX_RELAYS];
    let text = ticket.to_string();
    assert_eq!((text.len(), text.parse()), (MAX_CHARS, Ok(ticket.clone())));
    ticket.addresses.push("192.0.2.1:1".parse().unwrap());
    ticket.relays.push(ticket.relays[0].clone());
    assert_eq!(ticket.to_string(), text);
}

#[test]
fn debug_never_shows_the_secret() {
    let shown = format!("{:?}", sample());
    assert!(shown.contains("InviteSecret(redacted)") && !shown.contains("90") && !shown.contains("5a"), "{shown}");
    assert_ne!(InviteSecret::generate(), InviteSecret::generate());
}

prop_compose! {
    fn place()(id in 2u8.., addresses in prop::collection::vec(any::<(IpAddr, u16)>(), 0..=MAX_ADDRESSES)) -> Relay {
        let addresses = addresses.into_iter().map(SocketAddr::from).collect();
        Relay { id: NodeId::from_bytes([id; 32]), addresses }
    }
}

prop_compose! {
    fn ticket()(
        place in place(),
        relays in prop::collection::vec(place(), 0..=MAX_RELAYS),
        secret in any::<Option<[u8; SECRET_BYTES]>>(),
    ) -> Ticket {
        Ticket { id: place.id, addresses: place.addresses, relays, secret: secret.map(InviteSecret::from_bytes) }
    }
}

proptest! {
    #[test]
    fn every_ticket_survives_its_text(ticket in ticket()) {
        let text = ticket.to_string();
        prop_assert!(text.len() <= MAX_CHARS);
        prop_assert_eq!(text.parse(), Ok(ticket));
    }

    #[test]
    fn any_body_that_is_read_is_the_one_form_of_its_ticket(
        ticket in ticket(), at: prop::sample::Index, byte: u8, tail in prop::collection::vec(any::<u8>(), 0..3),
    ) {
        let mut body = body_of(&ticket);
        let at = at.index(body.len());
        body[at] = byte;
        body.extend(tail);
        let text = text_of(&body);
        if let Ok(ticket) = text.parse::<Ticket>() {
            prop_assert_eq!(ticket.to_string(), text);
        }
    }

    #[test]
    fn no_text_makes_the_reader_panic(text in "(volt1)?[a-z2-7]{0,200}", odd in ".*") {
        let _ = (text.parse::<Ticket>(), odd.parse::<Ticket>());
    }
}
