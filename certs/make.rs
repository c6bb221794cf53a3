//! Makes the test certificates in this directory, good and bad: `cargo run --example make-certs`.
//!
//! They are put together by hand where possible, not by the code they test. The Ed25519 keys are fixed, so those files come out
//! the same each time; those of other kinds are new each time and thrown away. No key here is worth anything.

use std::path::Path;
use std::{fs, io};

use data_encoding::BASE64;
use voltmesh::id::SecretKey;

const ED25519: &[u8] = &[0x2b, 0x65, 0x70]; // 1.3.101.112
const ED448: &[u8] = &[0x2b, 0x65, 0x71]; // 1.3.101.113
const UNKNOWN: &[u8] = &[0x2b, 0x65, 0x7f]; // 1.3.101.127: nothing
/// No point of the curve has this as its coordinate (RFC 8032, 5.1.3).
const NO_POINT: [u8; 32] = [2; 32];
/// The order of the base point, little-endian (RFC 8032, 5.1).
const ORDER: [u8; 32] = [
    0xed, 0xd3, 0xf5, 0x5c, 0x1a, 0x63, 0x12, 0x58, 0xd6, 0x9c, 0xf7, 0xa2, 0xde, 0xf9, 0xde, 0x14, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
    0, 0, 0, 0, 0, 0x10,
];
const COMMON_NAME: &[u8] = &[0x55, 4, 3]; // 2.5.4.3

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let [good, other, authority] = [1, 2, 3].map(|seed| SecretKey::from_seed(&[seed; 32]));
    let own = ed25519(&good);

    let sound = certificate(&Parts::of(&own), &good);
    write("good.der", &sound)?;
    write("good.key.pem", pem("PRIVATE KEY", &good.to_pkcs8_der()).as_bytes())?;
    write("expired.der", &certificate(&Parts { years: ["98", "99"], ..Parts::of(&own) }, &good))?;
    write("other.der", &certificate(&Parts::of(&ed25519(&other)), &other))?;

    let issuer = "worthless authority";
    let root = certificate(&Parts { issuer, subject: issuer, ..Parts::of(&ed25519(&authority)) }, &authority);
    let leaf = certificate(&Parts { issuer, ..Parts::of(&own) }, &authority);
    write("ca-signed.der", &leaf)?;
    write("chain-of-two.pem", [pem("CERTIFICATE", &leaf), pem("CERTIFICATE", &root)].concat().as_bytes())?;

    write("rsa.der", &by_rcgen(&rcgen::PKCS_RSA_SHA256)?)?;
    write("p256.der", &by_rcgen(&rcgen::PKCS_ECDSA_P256_SHA256)?)?;
    write("p384.der", &by_rcgen(&rcgen::PKCS_ECDSA_P384_SHA384)?)?;
    write("ed448.der", &certificate(&Parts::of(&public_key(ED448, &[7; 57])), &good))?;
    write("unknown-key.der", &certificate(&Parts::of(&public_key(UNKNOWN, good.id().as_bytes())), &good))?;
    write("malformed-key.der", &certificate(&Parts::of(&public_key(ED25519, &good.id().as_bytes()[..31])), &good))?;
    let parameters = der(0x30, &[&der(0x30, &[&der(6, &[ED25519]), &[5, 0]]), &der(3, &[&[0], good.id().as_bytes()])]);
    write("key-with-parameters.der", &certificate(&Parts::of(&parameters), &good))?;
    write("no-point.der", &certificate(&Parts::of(&public_key(ED25519, &NO_POINT)), &good))?;
    write("weak-key.der", &weak(std::array::from_fn(|at| u8::from(at == 0))))?;
    // The same point, its coordinate written as itself and the field's prime: not the one form, and no less weak.
    write(
        "weak-key-otherwise.der",
        &weak(std::array::from_fn(|at| [0xff, 0xee, 0x7f][usize::from(at == 0) + 2 * usize::from(at == 31)])),
    )?;

    let mut flipped = sound.clone();
    *flipped.last_mut().expect("it is not empty") ^= 1;
    write("bad-self-signature.der", &flipped)?;
    write("signed-by-another-key.der", &certificate(&Parts::of(&own), &other))?;

    write("issued-by-another-name.der", &certificate(&Parts { issuer, ..Parts::of(&own) }, &good))?;
    // Signed by itself, but saying that it was done in another way: inside, outside, or in both places.
    let signed = to_be_signed(&Parts::of(&own));
    write("other-algorithm-outside.der", &der(0x30, &[&signed, &algorithm(ED448), &signature(&good.sign(&signed))]))?;
    let signed = to_be_signed_with(ED448, &Parts::of(&own));
    write("other-algorithm-inside.der", &seal(&signed, &good.sign(&signed)))?;
    write("other-algorithm.der", &der(0x30, &[&signed, &algorithm(ED448), &signature(&good.sign(&signed))]))?;

    let signed = to_be_signed(&Parts::of(&own));
    write("malleable-signature.der", &seal(&signed, &plus_order(good.sign(&signed))))?;
    write("short-signature.der", &seal(&signed, &good.sign(&signed)[..63]))?;
    write("long-signature.der", &seal(&signed, &[good.sign(&signed).as_slice(), &[0]].concat()))?;
    write("empty-signature.der", &seal(&signed, &[]))?;
    // The outermost length in two bytes where one would do, and without an end of its own: BER, but not DER.
    write("wasteful-length.der", &[&[0x30, 0x82, 0], &sound[2..]].concat())?;
    write("without-length.der", &[&[0x30, 0x80], &sound[3..], &[0, 0]].concat())?;
    write("empty.der", &[])?;
    write("raw-key.der", &own)?;

    write("trailing.der", &[sound.as_slice(), &[5, 0]].concat())?;
    // The same two bytes inside the outermost sequence, whose head has three: the signature does not cover them either.
    write("trailing-inside.der", &der(0x30, &[&sound[3..], &[5, 0]]))?;
    let long = "worthless ".repeat(100);
    write("too-large.der", &certificate(&Parts { issuer: &long, subject: &long, ..Parts::of(&own) }, &good))?;
    write("not-x509.der", b"This is not a certificate.\n")?;
    Ok(())
}

/// What goes into a certificate.
struct Parts<'a> {
    issuer: &'a str,
    subject: &'a str,
    /// First and last year, as UTCTime writes them.
    years: [&'a str; 2],
    public_key: &'a [u8],
}

impl<'a> Parts<'a> {
    fn of(public_key: &'a [u8]) -> Self {
        let name = "worthless test certificate";
        Self { issuer: name, subject: name, years: ["25", "49"], public_key }
    }
}

/// An X.509 certificate (RFC 5280, 4.1) signed with Ed25519.
fn certificate(parts: &Parts<'_>, signer: &SecretKey) -> Vec<u8> {
    let signed = to_be_signed(parts);
    seal(&signed, &signer.sign(&signed))
}

fn to_be_signed(parts: &Parts<'_>) -> Vec<u8> {
    to_be_signed_with(ED25519, parts)
}

/// The same, naming this kind of signature.
fn to_be_signed_with(kind: &[u8], parts: &Parts<'_>) -> Vec<u8> {
    let version = der(0xa0, &[&der(2, &[&[2]])]);
    let serial = der(2, &[&[1]]);
    let [issuer, subject] = [parts.issuer, parts.subject].map(name);
    let [first, last] = parts.years.map(|year| der(0x17, &[format!("{year}0101000000Z").as_bytes()]));
    let validity = der(0x30, &[&first, &last]);
    der(0x30, &[&version, &serial, &algorithm(kind), &issuer, &validity, &subject, parts.public_key])
}

fn seal(signed: &[u8], signature: &[u8]) -> Vec<u8> {
    der(0x30, &[signed, &algorithm(ED25519), &self::signature(signature)])
}

fn signature(bytes: &[u8]) -> Vec<u8> {
    der(3, &[&[0], bytes])
}

/// The same signature, for whoever does not see that its second half is too large: the order of the base point more (RFC 8032, 5.1.7).
fn plus_order(mut signature: [u8; 64]) -> [u8; 64] {
    let mut carry = 0;
    for (byte, more) in signature[32..].iter_mut().zip(ORDER) {
        let sum = u16::from(*byte) + u16::from(more) + carry;
        [*byte, _] = sum.to_le_bytes();
        carry = sum >> 8;
    }
    signature
}

/// A key that is the neutral point, written in one way or another: anybody can sign for it, with the neutral point and zero.
fn weak(key: [u8; 32]) -> Vec<u8> {
    let neutral: [u8; 32] = std::array::from_fn(|at| u8::from(at == 0));
    let signed = to_be_signed(&Parts::of(&public_key(ED25519, &key)));
    seal(&signed, &[neutral, [0; 32]].concat())
}

fn ed25519(key: &SecretKey) -> Vec<u8> {
    public_key(ED25519, key.id().as_bytes())
}

fn public_key(kind: &[u8], bytes: &[u8]) -> Vec<u8> {
    der(0x30, &[&algorithm(kind), &der(3, &[&[0], bytes])])
}

fn algorithm(kind: &[u8]) -> Vec<u8> {
    der(0x30, &[&der(6, &[kind])])
}

fn name(text: &str) -> Vec<u8> {
    let attribute = der(0x30, &[&der(6, &[COMMON_NAME]), &der(0x0c, &[text.as_bytes()])]);
    der(0x30, &[&der(0x31, &[&attribute])])
}

/// One value in DER (X.690): tag, length, content.
fn der(tag: u8, content: &[&[u8]]) -> Vec<u8> {
    let content = content.concat();
    let [high, low] = u16::try_from(content.len()).expect("nothing here is that long").to_be_bytes();
    let head = match content.len() {
        0..0x80 => vec![tag, low],
        0x80..0x100 => vec![tag, 0x81, low],
        _ => vec![tag, 0x82, high, low],
    };
    [head, content].concat()
}

fn by_rcgen(kind: &'static rcgen::SignatureAlgorithm) -> Result<Vec<u8>, rcgen::Error> {
    let key = rcgen::KeyPair::generate_for(kind)?;
    Ok(rcgen::CertificateParams::default().self_signed(&key)?.der().to_vec())
}

fn pem(label: &str, content: &[u8]) -> String {
    let digits = BASE64.encode(content);
    let lines: Vec<&str> = (0..digits.len()).step_by(64).map(|at| &digits[at..digits.len().min(at + 64)]).collect();
    format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", lines.join("\n"))
}

fn write(name: &str, content: &[u8]) -> io::Result<()> {
    fs::write(Path::new(env!("CARGO_MANIFEST_DIR")).join("certs").join(name), content)
}
