//! Every message of the directory, byte by byte, and what becomes of it when it is cut short or a bit of it flips.

use super::*;
use crate::proto::codec::{self, Reason, encode};
use crate::proto::status::Code;
use crate::proto::tests::{V4, holds, read, v4};

const WHO: NodeId = NodeId::from_bytes([0xaa; 32]);
const AT: NodeId = NodeId::from_bytes([0xbb; 32]);

fn listing() -> Listing {
    Listing {
        name: "cam".into(),
        mode: Mode::Private(vec![WHO]),
        metadata: vec![("k".into(), vec![1, 2]), ("k".into(), vec![])],
        description: b"{}".to_vec(),
    }
}

fn query() -> Query {
    Query { pattern: "c*".into(), offline: true, scope: Scope::Mirror }
}

fn found() -> Found {
    let Listing { name, metadata, description, .. } = listing();
    let (mode, addresses) = (Some(Mode::Trusted), vec![v4()]);
    Found { name, provider: WHO, at: Some(AT), online: true, epoch: 300, mode, addresses, metadata, description }
}

#[rustfmt::skip]
fn listing_bytes() -> Vec<u8> {
    [
        &[3, b'c', b'a', b'm'][..],         // name
        &[2, 1], WHO.as_bytes(),            // mode: private, one peer
        &[2, 1, b'k', 2, 1, 2, 1, b'k', 0], // metadata
        &[2, b'{', b'}'],                   // description
    ].concat()
}

#[test]
fn each_ask_has_its_bytes_and_no_others() {
    let trusted = Listing { mode: Mode::Trusted, metadata: vec![], description: vec![], ..listing() };
    let public = Listing { mode: Mode::Public, ..trusted.clone() };
    let bare = Query { offline: false, scope: Scope::All, ..query() };
    let cases = vec![
        (Ask::Register(listing()), [&[0][..], &listing_bytes()].concat()),
        (Ask::Register(public), vec![0, 3, b'c', b'a', b'm', 0, 0, 0]),
        (Ask::Register(trusted), vec![0, 3, b'c', b'a', b'm', 1, 0, 0]),
        (Ask::Discover(query()), vec![1, 2, b'c', b'*', 1, 1]),
        (Ask::Watch(bare), vec![2, 2, b'c', b'*', 0, 0]),
    ];
    holds(cases, read::<Ask>);
    holds(vec![(listing(), listing_bytes())], read::<Listing>);
}

#[test]
fn each_answer_has_its_bytes_and_no_others() {
    let refused = Answer::Refused(Status::new(Code::PermissionDenied, "no"));
    holds(vec![(Answer::Done, vec![0]), (refused, vec![1, 7, 2, b'n', b'o', 0])], read::<Answer>);
}

#[test]
#[rustfmt::skip]
fn each_piece_of_news_has_its_bytes_and_no_others() {
    let entry: &[&[u8]] = &[
        &[0],                               // an entry
        &[3, b'c', b'a', b'm'],             // name
        WHO.as_bytes(),                     // provider
        &[1], AT.as_bytes(),                // at
        &[1],                               // online
        &[251, 44, 1],                      // epoch
        &[1, 1],                            // mode: trusted
        &[1], V4,                           // addresses
        &[2, 1, b'k', 2, 1, 2, 1, b'k', 0], // metadata
        &[2, b'{', b'}'],                   // description
    ];
    let (name, provider) = ("cam".to_owned(), WHO);
    let changed = Told::Changed { name: name.clone(), provider, at: None, online: false, epoch: 7 };
    let cam: &[u8] = &[3, b'c', b'a', b'm'];
    let cases = vec![
        (Told::Entry(found()), entry.concat()),
        (changed, [&[1], cam, WHO.as_bytes(), &[0, 0, 7]].concat()),
        (Told::Withdrawn { name, provider, at: Some(AT) }, [&[2], cam, WHO.as_bytes(), &[1], AT.as_bytes()].concat()),
        (Told::Current, vec![3]),
        (Told::Again, vec![4]),
        (Told::Refused(Status::new(Code::NotFound, "")), vec![5, 5, 0, 0]),
    ];
    holds(cases, read::<Told>);
}

fn refusal(listing: Listing) -> Reason {
    let whole = codec::decode::<Listing>(&encode(&listing)).unwrap_err().reason;
    let asked = codec::decode::<Ask>(&encode(&Ask::Register(listing))).unwrap_err().reason;
    assert!(asked == whole || matches!((asked, whole), (Reason::TooLong { .. }, Reason::TooLong { .. })));
    whole
}

#[test]
fn a_listing_out_of_bounds_is_refused() {
    for name in ["", "a/b", "a*", "ä", "a b", &"n".repeat(limits::NAME_BYTES + 1)] {
        let name = name.to_owned();
        assert_eq!(refusal(Listing { name, ..listing() }), Reason::Invalid("the name cannot be that of a service"));
    }
    let mode = Mode::Private(vec![WHO; limits::PRIVATE_PEERS + 1]);
    assert_eq!(refusal(Listing { mode, ..listing() }), Reason::Invalid("too many peers are named"));
    let metadata = vec![(String::new(), vec![]); limits::METADATA_ENTRIES + 1];
    assert_eq!(refusal(Listing { metadata, ..listing() }), Reason::Invalid("too many metadata entries"));
    let metadata = vec![("k".into(), vec![0; limits::METADATA_ENTRY_BYTES])];
    assert_eq!(refusal(Listing { metadata, ..listing() }), Reason::Invalid("a metadata entry is too large"));
    let description = vec![0; limits::DESCRIPTION_BYTES + 1];
    assert_eq!(refusal(Listing { description, ..listing() }), Reason::Invalid("the description is too long"));
    let description = vec![0; limits::LISTING_BYTES];
    assert!(matches!(refusal(Listing { description, ..listing() }), Reason::TooLong { .. }));
}

#[test]
fn a_query_or_news_out_of_bounds_is_refused() {
    let refused = |told: Told| codec::decode::<Told>(&encode(&told)).unwrap_err().reason;
    let pattern = "p".repeat(2 * limits::NAME_BYTES + 2);
    let ask = Ask::Watch(Query { pattern, ..query() });
    assert_eq!(codec::decode::<Ask>(&encode(&ask)).unwrap_err().reason, Reason::Invalid("the pattern is too long"));
    let nameless = Told::Withdrawn { name: String::new(), provider: WHO, at: None };
    assert_eq!(refused(nameless), Reason::Invalid("the name cannot be that of a service"));
    let addresses = vec![v4(); limits::ADDRESSES + 1];
    assert_eq!(refused(Told::Entry(Found { addresses, ..found() })), Reason::Invalid("too many addresses"));
}

#[test]
fn the_largest_listing_and_the_largest_entry_fit_their_limit() {
    let metadata = vec![("k".into(), vec![0; limits::METADATA_ENTRY_BYTES - 1]); limits::METADATA_ENTRIES];
    let mode = Mode::Private(vec![WHO; limits::PRIVATE_PEERS]);
    let (name, description) = ("n".repeat(limits::NAME_BYTES), vec![0; limits::DESCRIPTION_BYTES]);
    let listing = Listing { name, mode, metadata, description };
    let Listing { name, mode, metadata, description } = listing.clone();
    let found = Found { name, mode: Some(mode), addresses: vec![v4(); limits::ADDRESSES], metadata, description, ..found() };
    let (ask, told) = (Ask::Register(listing.clone()), Told::Entry(found.clone()));
    assert!(listing.weight() >= encode(&listing).len() && found.weight() >= encode(&told).len());
    assert!(codec::decode::<Ask>(&encode(&ask)) == Ok(ask));
    assert!(codec::decode::<Told>(&encode(&told)) == Ok(told));
}
