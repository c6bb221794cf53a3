//! The text of a key file: PEM around PKCS#8, or around a key sealed with a passphrase. Both directions are here.
//!
//! Without a passphrase the label is `PRIVATE KEY` (RFC 7468, 10), which other programs read. With one it is
//! `VOLT ENCRYPTED KEY`, around 105 bytes: version `1`; argon2id's memory in KiB, passes and lanes (`u32` each, big-endian);
//! salt (16 bytes); nonce (12); the 48 bytes of PKCS#8 under AES-256-GCM with their tag (16). The label and all that stands
//! before the ciphertext are authenticated with it.

use argon2::{Algorithm, Argon2, Block, Params, Version};
use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use aws_lc_rs::rand;
use data_encoding::BASE64;
use zeroize::Zeroizing;

use super::SecretKey;
use super::keyfile::KeyFileProblem::{
    self as Problem, EmptyPassphrase, NeedsPassphrase, Newer, NotAKey, TooCostly, Truncated, WrongPassphrase,
};

const PLAIN: &str = "PRIVATE KEY";
const SEALED: &str = "VOLT ENCRYPTED KEY";
const VERSION: u8 = 1;
const SALT_BYTES: usize = 16;
const NONCE_BYTES: usize = 12;
const HEAD_BYTES: usize = 1 + 3 * 4 + SALT_BYTES + NONCE_BYTES;
const LINE_CHARS: usize = 64;

/// What it costs to try one passphrase.
#[derive(Clone, Copy)]
struct Cost {
    memory_kib: u32,
    passes: u32,
    lanes: u32,
}

/// RFC 9106, section 4, second recommended option: 64 MiB.
const COST: Cost = Cost { memory_kib: 64 * 1024, passes: 3, lanes: 4 };
/// What a file may ask of us at most: a hostile one costs seconds and 256 MiB, not the machine.
const COST_MAX: Cost = Cost { memory_kib: 256 * 1024, passes: 16, lanes: 16 };

/// The text for `key`, sealed when there is a passphrase.
pub(super) fn write(key: &SecretKey, passphrase: Option<&str>) -> Result<Zeroizing<String>, Problem> {
    let der = key.to_pkcs8_der();
    match passphrase {
        None => Ok(write_pem(PLAIN, &der)),
        Some("") => Err(EmptyPassphrase),
        Some(passphrase) => Ok(write_pem(SEALED, &seal(&der, passphrase))),
    }
}

/// The key in a text that [`write`] made. A passphrase that is not needed is not used.
pub(super) fn read(text: &[u8], passphrase: Option<&str>) -> Result<SecretKey, Problem> {
    let text = std::str::from_utf8(text).map_err(|_| NotAKey)?.trim();
    let (label, body) = read_pem(text)?;
    let der = match (label, passphrase) {
        (PLAIN, _) => body,
        (SEALED, None) => return Err(NeedsPassphrase),
        (SEALED, Some(passphrase)) => open(&body, passphrase)?,
        _ => return Err(NotAKey),
    };
    SecretKey::from_pkcs8_der(&der).map_err(|_| NotAKey)
}

fn seal(der: &[u8], passphrase: &str) -> Vec<u8> {
    let mut random = [0; SALT_BYTES + NONCE_BYTES];
    rand::fill(&mut random).expect("the operating system gives random bytes");
    let mut head = vec![VERSION];
    for number in [COST.memory_kib, COST.passes, COST.lanes] {
        head.extend_from_slice(&number.to_be_bytes());
    }
    head.extend_from_slice(&random);
    let (salt, nonce) = random.split_at(SALT_BYTES);
    let key = stretch(passphrase, salt, COST).expect("our own cost is one that argon2 takes");
    let mut sealed = Zeroizing::new(Vec::with_capacity(der.len() + AES_256_GCM.tag_len()));
    sealed.extend_from_slice(der);
    key.seal_in_place_append_tag(self::nonce(nonce), aad(&head), &mut *sealed).expect("a few bytes can be sealed");
    head.extend_from_slice(&sealed);
    head
}

fn open(body: &[u8], passphrase: &str) -> Result<Zeroizing<Vec<u8>>, Problem> {
    match body.first() {
        Some(&VERSION) => {}
        Some(&version) => return Err(Newer { version }),
        None => return Err(NotAKey),
    }
    let (head, sealed) = body.split_at_checked(HEAD_BYTES).ok_or(NotAKey)?;
    let (numbers, random) = head[1..].split_at(3 * 4);
    let mut numbers = numbers.chunks_exact(4).map(|n| u32::from_be_bytes([n[0], n[1], n[2], n[3]]));
    let mut number = || numbers.next().expect("12 bytes are three numbers");
    let cost = Cost { memory_kib: number(), passes: number(), lanes: number() };
    if cost.memory_kib > COST_MAX.memory_kib || cost.passes > COST_MAX.passes || cost.lanes > COST_MAX.lanes {
        return Err(TooCostly { memory_kib: cost.memory_kib, passes: cost.passes, lanes: cost.lanes });
    }
    let (salt, nonce) = random.split_at(SALT_BYTES);
    let key = stretch(passphrase, salt, cost).ok_or(NotAKey)?;
    let mut sealed = Zeroizing::new(sealed.to_vec());
    let length = key.open_in_place(self::nonce(nonce), aad(head), &mut sealed).map_err(|_| WrongPassphrase)?.len();
    sealed.truncate(length);
    Ok(sealed)
}

/// The key a passphrase stands for. `None`: argon2 does not know this cost (no passes, no lanes, too little memory).
fn stretch(passphrase: &str, salt: &[u8], cost: Cost) -> Option<LessSafeKey> {
    let params = Params::new(cost.memory_kib, cost.passes, cost.lanes, Some(32)).ok()?;
    let mut memory = Zeroizing::new(vec![Block::default(); params.block_count()]);
    let mut key = Zeroizing::new([0; 32]);
    let argon2 = Argon2::new(Algorithm::Argon2id, Version::V0x13, params);
    argon2.hash_password_into_with_memory(passphrase.as_bytes(), salt, key.as_mut(), &mut memory[..]).ok()?;
    Some(LessSafeKey::new(UnboundKey::new(&AES_256_GCM, key.as_slice()).expect("AES-256 takes 32 bytes")))
}

fn nonce(bytes: &[u8]) -> Nonce {
    Nonce::try_assume_unique_for_key(bytes).expect("it has 12 bytes")
}

fn aad(head: &[u8]) -> Aad<Vec<u8>> {
    Aad::from([SEALED.as_bytes(), head].concat())
}

fn write_pem(label: &str, body: &[u8]) -> Zeroizing<String> {
    let digits = Zeroizing::new(BASE64.encode(body));
    // Room for all of it at once: growing would leave pieces of the key behind.
    let mut text = Zeroizing::new(String::with_capacity(2 * digits.len() + 128));
    text.push_str(&format!("-----BEGIN {label}-----\n"));
    for start in (0..digits.len()).step_by(LINE_CHARS) {
        text.push_str(&digits[start..digits.len().min(start + LINE_CHARS)]);
        text.push('\n');
    }
    text.push_str(&format!("-----END {label}-----\n"));
    text
}

/// Label and content of the one PEM block that `text` is. Strict (RFC 7468, figure 3) but for where lines break.
fn read_pem(text: &str) -> Result<(&str, Zeroizing<Vec<u8>>), Problem> {
    const BEGIN: &str = "-----BEGIN ";
    let Some(rest) = text.strip_prefix(BEGIN) else {
        return Err(if BEGIN.starts_with(text) { Truncated } else { NotAKey });
    };
    let (label, rest) = rest.split_once("-----").ok_or(Truncated)?;
    let (lines, end) = rest.split_once("-----END ").ok_or(Truncated)?;
    let Some(after) = end.strip_prefix(label).and_then(|end| end.strip_prefix("-----")) else {
        return Err(if format!("{label}-----").starts_with(end) { Truncated } else { NotAKey });
    };
    let mut digits = Zeroizing::new(Vec::with_capacity(lines.len()));
    digits.extend(lines.bytes().filter(|b| !b.is_ascii_whitespace()));
    let body = Zeroizing::new(BASE64.decode(&digits).map_err(|_| NotAKey)?);
    if after.is_empty() { Ok((label, body)) } else { Err(NotAKey) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key() -> SecretKey {
        SecretKey::from_seed(&[7; 32])
    }

    #[test]
    fn a_plain_key_is_the_pem_that_openssl_writes() {
        // The example of RFC 8410, section 10.3.
        let text = "-----BEGIN PRIVATE KEY-----\nMC4CAQAwBQYDK2VwBCIEINTuctv5E1hK1bbY8fdp+K06/nwoy/HU++CXqI9EdVhC\n-----END PRIVATE KEY-----\n";
        let key = read(text.as_bytes(), None).unwrap();
        assert_eq!(write(&key, None).unwrap().as_str(), text);
        assert_eq!(read(text.replace('\n', "\r\n").as_bytes(), None).unwrap().id(), key.id(), "line ends of other systems");
    }

    #[test]
    fn a_key_cut_short_anywhere_is_refused() {
        for passphrase in [None, Some("correct horse")] {
            let text = write(&key(), passphrase).unwrap();
            for end in 0..text.len() - 1 {
                assert!(matches!(read(&text.as_bytes()[..end], passphrase), Err(Truncated)), "cut at {end}");
            }
        }
    }

    #[test]
    fn other_keys_and_other_files_are_refused() {
        let plain = write(&key(), None).unwrap();
        let cases = [
            plain.replace("PRIVATE KEY", "OPENSSH PRIVATE KEY"),
            plain.replacen("PRIVATE KEY", "EC PRIVATE KEY", 1),
            plain.replace("MC4CAQAw", "MC4CAQEw"),
            format!("{}{}", plain.as_str(), plain.as_str()),
            format!("some words first\n{}", plain.as_str()),
            "[node]\nname = \"a\"\n".to_owned(),
            "-----BEGIN VOLT ENCRYPTED KEY-----\n-----END VOLT ENCRYPTED KEY-----\n".to_owned(),
        ];
        for text in cases {
            assert!(matches!(read(text.as_bytes(), Some("x")), Err(NotAKey)), "{text}");
        }
        assert!(matches!(read(&[0xff, 0xfe], None), Err(NotAKey)));
    }

    #[test]
    fn every_part_of_a_sealed_key_is_authenticated() {
        let body = seal(&key().to_pkcs8_der(), "correct horse");
        assert_eq!(body.len(), 105);
        assert_eq!(SecretKey::from_pkcs8_der(&open(&body, "correct horse").unwrap()).unwrap().id(), key().id());
        // Salt, nonce, ciphertext, tag: one bit each.
        for at in [1 + 12, 1 + 12 + SALT_BYTES, HEAD_BYTES, body.len() - 1] {
            let mut changed = body.clone();
            changed[at] ^= 1;
            assert!(matches!(open(&changed, "correct horse"), Err(WrongPassphrase)), "byte {at}");
        }
        assert!(matches!(open(&body[..HEAD_BYTES], "correct horse"), Err(WrongPassphrase)));
    }

    #[test]
    fn a_hostile_file_cannot_ask_for_much_memory_or_time() {
        let mut body = seal(&key().to_pkcs8_der(), "x");
        let mut with = |at: usize, number: u32| {
            let old: [u8; 4] = body[at..at + 4].try_into().unwrap();
            body[at..at + 4].copy_from_slice(&number.to_be_bytes());
            let problem = open(&body, "x").unwrap_err();
            body[at..at + 4].copy_from_slice(&old);
            problem
        };
        assert!(matches!(with(1, 1 << 30), TooCostly { memory_kib: 0x4000_0000, .. }));
        assert!(matches!(with(1, COST_MAX.memory_kib + 1), TooCostly { .. }));
        assert!(matches!(with(5, u32::MAX), TooCostly { .. }));
        assert!(matches!(with(9, 17), TooCostly { .. }));
        // What argon2 itself refuses: too little memory, no passes, no lanes.
        assert!([with(1, 0), with(5, 0), with(9, 0)].iter().all(|problem| matches!(problem, NotAKey)));
        body[0] = 2;
        assert!(matches!(open(&body, "x"), Err(Newer { version: 2 })));
    }

    #[test]
    fn sealing_twice_gives_different_files() {
        assert_ne!(write(&key(), Some("x")).unwrap(), write(&key(), Some("x")).unwrap());
    }
}
