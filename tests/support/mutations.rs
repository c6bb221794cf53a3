//! Every small change of a text or of bytes, for things of which none but the right ones may be taken: tickets, invitations, key files.

/// A change, in words, and what it makes.
pub type Mutation<T> = (String, T);

/// Every change of a text at one place: each of these characters put in, or put in place of another; each character flipped in each of its
/// bits, left out, doubled, exchanged with the next or with its capital; cut off there, from either side; and its halves exchanged.
/// What is the text itself again is left out.
pub fn of_text<'a>(text: &'a str, characters: &'a str) -> impl Iterator<Item = Mutation<String>> + 'a {
    assert!(text.is_ascii(), "its characters are its bytes");
    let each = (0..=text.len()).flat_map(move |at| at_place(text, characters, at));
    let whole = [
        ("in capitals", text.to_uppercase()),
        ("backwards", text.chars().rev().collect()),
        ("twice", text.repeat(2)),
        ("with a line break after it", format!("{text}\n")),
        ("with a space before it", format!(" {text}")),
    ];
    let whole = whole.map(|(what, made)| (what.to_owned(), made));
    each.chain(whole).filter(move |(_, made)| made != text)
}

fn at_place(text: &str, characters: &str, at: usize) -> Vec<Mutation<String>> {
    let (before, after) = text.split_at(at);
    let mut made: Vec<_> = characters.chars().map(|c| (format!("{c:?} put in at {at}"), format!("{before}{c}{after}"))).collect();
    made.push((format!("cut off after {at}"), before.to_owned()));
    made.push((format!("cut off before {at}"), after.to_owned()));
    made.push((format!("its halves exchanged at {at}"), format!("{after}{before}")));
    let mut rest = after.chars();
    let Some(first) = rest.next() else { return made };
    let rest = rest.as_str();
    made.extend(characters.chars().map(|c| (format!("{c:?} in place of {at}"), format!("{before}{c}{rest}"))));
    made.extend(
        (0..7).map(|bit| (format!("bit {bit} of {at} flipped"), format!("{before}{}{rest}", char::from(first as u8 ^ 1 << bit)))),
    );
    made.push((format!("{at} left out"), format!("{before}{rest}")));
    made.push((format!("{at} doubled"), format!("{before}{first}{after}")));
    made.push((format!("{at} as a capital"), format!("{before}{}{rest}", first.to_ascii_uppercase())));
    if let Some(second) = rest.chars().next() {
        made.push((format!("{at} and the next exchanged"), format!("{before}{second}{first}{}", &rest[1..])));
        made.push((format!("{at} and the next left out"), format!("{before}{}", &rest[1..])));
    }
    made
}

/// Every change of bytes at one place: each value in place of each byte; each byte left out, doubled, exchanged with the next; a zero put in;
/// cut off there, from either side. What are the same bytes again is left out.
pub fn of_bytes(bytes: &[u8]) -> impl Iterator<Item = Mutation<Vec<u8>>> + '_ {
    let with = move |at: usize, taken: usize, put: &[u8]| [&bytes[..at], put, &bytes[at + taken..]].concat();
    let values =
        (0..bytes.len()).flat_map(move |at| (0..=255).map(move |to: u8| (format!("{to} in place of {at}"), with(at, 1, &[to]))));
    let places = (0..bytes.len()).flat_map(move |at| {
        let mut made = vec![
            (format!("{at} left out"), with(at, 1, &[])),
            (format!("{at} doubled"), with(at, 0, &bytes[at..=at])),
            (format!("a zero put in at {at}"), with(at, 0, &[0])),
            (format!("cut off after {at}"), bytes[..at].to_vec()),
            (format!("cut off before {}", at + 1), bytes[at + 1..].to_vec()),
        ];
        if let Some(next) = bytes.get(at + 1) {
            made.push((format!("{at} and the next exchanged"), with(at, 2, &[*next, bytes[at]])));
        }
        made
    });
    values
        .chain(places)
        .chain([("a zero after its end".to_owned(), with(bytes.len(), 0, &[0]))])
        .filter(move |(_, made)| made != bytes)
}
