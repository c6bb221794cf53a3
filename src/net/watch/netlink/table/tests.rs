//! Messages as the kernel writes them, and bytes that are none.

use proptest::prelude::*;

use super::*;

const LO: u32 = 1;
const ETH: u32 = 2;

fn message(kind: u16, head: &[u8], attributes: &[(u16, &[u8])]) -> Vec<u8> {
    let mut body = head.to_vec();
    for (kind, value) in attributes {
        body.extend(((value.len() + 4) as u16).to_ne_bytes());
        body.extend(kind.to_ne_bytes());
        body.extend(*value);
        body.resize(aligned(body.len()), 0);
    }
    let length = (HEADER_BYTES + body.len()) as u32;
    [&length.to_ne_bytes()[..], &kind.to_ne_bytes(), &[0; 10], &body].concat()
}

fn link(kind: u16, index: u32, flags: u32) -> Vec<u8> {
    message(kind, &[&[0; 4][..], &index.to_ne_bytes(), &flags.to_ne_bytes(), &[0; 4]].concat(), &[(3, b"eth0\0")])
}

fn address(kind: u16, index: u32, scope: u8, flags: u32, address: &[u8]) -> Vec<u8> {
    let head = [&[2, 24, flags as u8, scope][..], &index.to_ne_bytes()].concat();
    message(kind, &head, &[(1, &[10, 9, 9, 9]), (2, address), (8, &flags.to_ne_bytes())])
}

/// In the main table, unless the attributes say otherwise.
fn route(kind: u16, family: u8, class: u8, flags: u32, index: u32, attributes: &[(u16, &[u8])]) -> Vec<u8> {
    let head = [&[family, 0, 0, 0, 254, 4, 0, class][..], &flags.to_ne_bytes()].concat();
    message(kind, &head, &[&[(4, &index.to_ne_bytes()[..])], attributes].concat())
}

/// With a loopback interface, and another that is up.
fn table() -> Table {
    let mut table = Table::default();
    table.take(&link(NEW_LINK, LO, UP | LOOPBACK));
    table.take(&link(NEW_LINK, ETH, UP));
    table
}

fn is_news(table: &mut Table, datagram: &[u8]) -> bool {
    table.take(datagram).changed
}

#[test]
fn an_interface_is_news_when_it_comes_up_loses_its_carrier_or_goes() {
    let mut table = table();
    let steps = [
        (link(NEW_LINK, ETH, UP), false),
        (link(NEW_LINK, ETH, UP | 0x1_0000), false),
        (link(NEW_LINK, ETH, 0x1), true),
        (link(NEW_LINK, ETH, UP), true),
        (link(DELETED_LINK, ETH, UP), true),
        (link(NEW_LINK, 3, 0), false),
        (link(DELETED_LINK, 3, 0), false),
    ];
    for (at, (datagram, news)) in steps.iter().enumerate() {
        assert_eq!(is_news(&mut table, datagram), *news, "step {at}");
    }
}

#[test]
fn an_address_is_news_once_it_may_be_used_and_not_when_it_is_renewed() {
    let (mut table, own) = (table(), [10, 0, 0, 7]);
    assert!(!is_news(&mut table, &address(NEW_ADDRESS, ETH, 0, 0x40, &own)), "its uniqueness is being tested");
    assert!(is_news(&mut table, &address(NEW_ADDRESS, ETH, 0, 0x80, &own)));
    assert!(!is_news(&mut table, &address(NEW_ADDRESS, ETH, 0, 0x80, &own)));
    assert!(is_news(&mut table, &address(NEW_ADDRESS, ETH, 0, 0, &[10, 0, 0, 8])));
    assert!(is_news(&mut table, &address(DELETED_ADDRESS, ETH, 0, 0x80, &own)));
    assert!(!is_news(&mut table, &address(DELETED_ADDRESS, ETH, 0, 0x80, &own)));
    assert!(!is_news(&mut table, &address(NEW_ADDRESS, ETH, SCOPE_LINK, 0, &[169, 254, 0, 1])));
}

#[test]
fn loopback_is_never_news() {
    let mut table = table();
    for datagram in [
        link(NEW_LINK, LO, LOOPBACK),
        link(DELETED_LINK, LO, LOOPBACK),
        link(NEW_LINK, LO, UP | LOOPBACK),
        address(NEW_ADDRESS, LO, 0, 0, &[10, 0, 0, 7]),
        route(NEW_ROUTE, 2, 1, 0, LO, &[]),
    ] {
        assert!(!is_news(&mut table, &datagram));
    }
}

#[test]
fn a_route_is_news_unless_it_comes_with_an_address_is_cached_or_reaches_one_cable() {
    let mut table = table();
    for kind in [NEW_ROUTE, DELETED_ROUTE] {
        assert!(is_news(&mut table, &route(kind, 2, 1, 0, ETH, &[])), "the default route");
        assert!(is_news(&mut table, &route(kind, 10, 1, 0, ETH, &[(1, &[0x20, 1, 0xd, 0xb8])])));
        assert!(is_news(&mut table, &route(kind, 2, 1, 0, ETH, &[(15, &51_820u32.to_ne_bytes())])), "of a tunnel's table");
        assert!(!is_news(&mut table, &route(kind, 2, 1, CACHED, ETH, &[])));
        assert!(!is_news(&mut table, &route(kind, 2, 2, 0, ETH, &[])));
        assert!(!is_news(&mut table, &route(kind, 2, 1, 0, ETH, &[(15, &TABLE_LOCAL.to_ne_bytes())])));
        assert!(!is_news(&mut table, &route(kind, 10, 1, 0, ETH, &[(1, &[0xfe, 0x80, 0, 0])])));
        assert!(!is_news(&mut table, &route(kind, 10, 1, 0, ETH, &[(1, &[0xff, 0, 0, 0])])));
        assert!(!is_news(&mut table, &route(kind, 129, 1, 0, ETH, &[])), "of another family");
    }
}

#[test]
fn all_messages_of_a_datagram_are_read() {
    let datagram = [link(NEW_LINK, 7, 0), link(NEW_LINK, 8, UP), message(DONE, &[0; 4], &[])].concat();
    assert_eq!(Table::default().take(&datagram), Heard { changed: true, done: true });
}

proptest! {
    #[test]
    fn bytes_that_are_no_messages_do_no_harm(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        table().take(&bytes);
    }

    #[test]
    fn messages_that_were_damaged_do_no_harm(at in 0usize..60, byte: u8, cut in 0usize..60, kind in 16u16..34) {
        let head = [2, 24, 0, 0, 2, 0, 0, 0, 1, 0, 0, 0];
        let mut datagram = message(kind, &head, &[(1, &[10, 9, 9, 9]), (2, &[1; 16]), (8, &[0; 4])]);
        if let Some(damaged) = datagram.get_mut(at) {
            *damaged = byte;
        }
        datagram.truncate(datagram.len().saturating_sub(cut));
        table().take(&datagram);
    }
}
