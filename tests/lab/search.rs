//! Canaries: random bytes that are sent, and then looked for in files where they must not be, as they are and in the forms in which
//! programs write bytes.

use std::collections::{BTreeSet, HashMap};
use std::fs::File;
use std::io::Read;
use std::path::Path;

use data_encoding::{BASE64, BASE64URL, HEXLOWER, HEXUPPER};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

pub const CANARY_BYTES: usize = 16;
pub type Canary = [u8; CANARY_BYTES];

/// As much of a form is looked up at once; all forms are longer.
const START_BYTES: usize = 3;
const STARTS: usize = 1 << (8 * START_BYTES);
/// A file is read in pieces of this size.
const PIECE_BYTES: usize = 64 << 10;

/// So many canaries, the same for the same seed.
pub fn canaries(count: usize, seed: u64) -> Vec<Canary> {
    let mut random = StdRng::seed_from_u64(seed);
    let next = || {
        let mut canary = [0; CANARY_BYTES];
        random.fill_bytes(&mut canary);
        canary
    };
    std::iter::repeat_with(next).take(count).collect()
}

/// How a canary may have been written: as it is; in hex; in base64, wherever in a text it begins; as Rust prints slices and strings.
pub fn forms(canary: &Canary) -> Vec<Vec<u8>> {
    let mut forms = vec![canary.to_vec(), HEXLOWER.encode(canary).into(), HEXUPPER.encode(canary).into()];
    for before in 0..3 {
        let bytes = [&[0; 2][..before], canary].concat();
        // Only the characters of which every bit is the canary's.
        let whole = (before * 8).div_ceil(6)..bytes.len() * 8 / 6;
        forms.extend([BASE64, BASE64URL].map(|base64| base64.encode(&bytes)[whole.clone()].into()));
    }
    forms.push(format!("{canary:?}").trim_matches(['[', ']']).into());
    forms.push(canary.escape_ascii().to_string().into());
    forms
}

/// Finds canaries in files.
pub struct Search {
    forms: Vec<(usize, Vec<u8>)>,
    /// Forms by how they start.
    by_start: HashMap<usize, Vec<usize>>,
    /// A bit for each start, set where there is a form: most bytes of a file end here.
    starts: Vec<u64>,
}

impl Search {
    pub fn new(canaries: &[Canary]) -> Self {
        let numbered = canaries.iter().enumerate();
        let forms: Vec<_> =
            numbered.flat_map(|(number, canary)| forms(canary).into_iter().map(move |form| (number, form))).collect();
        let (mut by_start, mut starts) = (HashMap::<_, Vec<usize>>::new(), vec![0u64; STARTS / 64]);
        for (at, (_, form)) in forms.iter().enumerate() {
            let start = form[..START_BYTES].iter().fold(0, |start, byte| start << 8 | usize::from(*byte));
            by_start.entry(start).or_default().push(at);
            starts[start >> 6] |= 1 << (start & 63);
        }
        Self { forms, by_start, starts }
    }

    /// The numbers of those that are in a file, and how large it is.
    pub fn file(&self, path: &Path) -> (BTreeSet<usize>, u64) {
        let longest = self.forms.iter().map(|(_, form)| form.len()).max().unwrap_or(0);
        let (mut file, mut found, mut size) = (File::open(path).unwrap(), BTreeSet::new(), 0);
        let mut piece = Vec::with_capacity(PIECE_BYTES + longest);
        loop {
            let read = (&mut file).take(PIECE_BYTES as u64).read_to_end(&mut piece).unwrap();
            if read == 0 {
                return (found, size);
            }
            size += read as u64;
            // Most of a dump was never written to.
            if piece.iter().any(|byte| *byte != 0) {
                self.piece(&piece, &mut found);
            }
            // What begins here may go on in the next one.
            piece.drain(..piece.len().saturating_sub(longest));
        }
    }

    fn piece(&self, bytes: &[u8], found: &mut BTreeSet<usize>) {
        let mut start = 0;
        for (at, byte) in bytes.iter().enumerate() {
            start = (start << 8 | usize::from(*byte)) & (STARTS - 1);
            if self.starts[start >> 6] & (1 << (start & 63)) != 0 && at + 1 >= START_BYTES {
                let here = &bytes[at + 1 - START_BYTES..];
                let forms = self.by_start[&start].iter().map(|at| &self.forms[*at]);
                found.extend(forms.filter(|(_, form)| here.starts_with(form)).map(|(canary, _)| canary));
            }
        }
    }
}
