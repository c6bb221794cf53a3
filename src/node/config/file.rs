//! `volt.toml`, read with an eye on whoever wrote it: every error has its line, and says what would be right.

use std::fmt::{self, Display};
use std::fs::File;
use std::io::{self, Read};
use std::marker::PhantomData;
use std::net::SocketAddr;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde::{Deserialize, Deserializer, de};
use toml::Spanned;
use toml::de::DeTable;

use super::{Config, Expose, Forward, Groups, Limits, PeerRef, Prefix, Profile, Rate, RateRule, RelayMode, Strangers};
use crate::node::home::{Home, files};
use crate::policy::{Action, Effect, Pattern, Rule, Source, Subject};
use crate::tunnel::{check_name, check_target, parse_listen};

/// Largest `volt.toml`, in bytes.
const FILE_BYTES: u64 = 4 << 20;

/// Why a configuration cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// The file could not be read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The file has a mistake.
    #[error("{}:{line}:{column}: {message}", path.display())]
    Text {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// The character in that line, from 1.
        column: usize,
        /// What is wrong, and what would be right.
        message: String,
    },
    /// A value that was set by code or on the command line.
    #[error("{message}")]
    Value {
        /// Which field.
        field: &'static str,
        /// What is wrong, and what would be right.
        message: String,
    },
}

impl Config {
    /// Reads the `volt.toml` of a home; without one, it is [`Config::default`] with that home.
    pub fn read(home: &Home) -> Result<Self, ConfigError> {
        Self::from_bytes(home, &Self::bytes(home)?)
    }

    /// What the `volt.toml` of a home holds, whatever that is; nothing, if there is none.
    pub(in crate::node) fn bytes(home: &Home) -> Result<Vec<u8>, ConfigError> {
        let path = home.file(files::CONFIG);
        let mut bytes = Vec::new();
        match File::open(&path).and_then(|file| file.take(FILE_BYTES + 1).read_to_end(&mut bytes)) {
            Err(source) if source.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
            Err(source) => Err(ConfigError::Read { path, source }),
            Ok(read) if read as u64 > FILE_BYTES => {
                let source = io::Error::new(io::ErrorKind::FileTooLarge, format!("it has more than {FILE_BYTES} bytes"));
                Err(ConfigError::Read { path, source })
            }
            Ok(_) => Ok(bytes),
        }
    }

    /// Reads what the `volt.toml` of that home held.
    pub(in crate::node) fn from_bytes(home: &Home, bytes: &[u8]) -> Result<Self, ConfigError> {
        let path = home.file(files::CONFIG);
        let text = std::str::from_utf8(bytes).map_err(|error| {
            let valid = error.valid_up_to();
            let message = "this is not UTF-8: save the file as UTF-8 text".to_owned();
            at(&path, &String::from_utf8_lossy(&bytes[..valid]), valid, message)
        })?;
        Ok(Self { home: Some(home.path().to_owned()), ..Self::from_toml(text, &path)? })
    }

    /// Reads the text of a `volt.toml`; `path` is for errors only.
    pub fn from_toml(text: &str, path: &Path) -> Result<Self, ConfigError> {
        let written: Written = toml::from_str(text).map_err(|error| {
            let start = error.span().map_or(0, |span| span.start);
            at(path, text, start, advised(error.message()))
        })?;
        if let Some((span, message)) = written.unknown_group() {
            return Err(at(path, text, span.start, message));
        }
        let config = written.into_config();
        config.check().map_err(|error| match error {
            ConfigError::Value { field, message } => at(path, text, find(text, field), message),
            other => other,
        })?;
        Ok(config)
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    name: Option<String>,
    #[serde(default)]
    listen: Vec<Parsed<Listen>>,
    #[serde(default, deserialize_with = "profile")]
    profile: Profile,
    #[serde(default)]
    connect: Vec<Parsed<PeerRef>>,
    #[serde(default)]
    mirror: Vec<Parsed<PeerRef>>,
    #[serde(default)]
    homes: Vec<Parsed<PeerRef>>,
    #[serde(default)]
    relays: Vec<Parsed<PeerRef>>,
    #[serde(default, deserialize_with = "relay")]
    relay: Option<RelayMode>,
    #[serde(default)]
    expose: Vec<WrittenExpose>,
    #[serde(default)]
    forward: Vec<WrittenForward>,
    #[serde(default)]
    open: bool,
    #[serde(default, deserialize_with = "strangers")]
    strangers: Strangers,
    #[serde(default)]
    exempt: Vec<Parsed<Prefix>>,
    #[serde(default)]
    limits: Limits,
    #[serde(default)]
    groups: Groups,
    #[serde(default)]
    rule: Vec<Spanned<WrittenRule>>,
    #[serde(default)]
    rate: Vec<Spanned<WrittenRate>>,
}

impl Written {
    fn unknown_group(&self) -> Option<(Range<usize>, String)> {
        let rules = self.rule.iter().map(|rule| (rule.span(), rule.get_ref().0.subject(), "rule"));
        let rates = self.rate.iter().map(|rate| (rate.span(), &rate.get_ref().0.who, "rate"));
        rules.chain(rates).find_map(|(span, subject, what)| match subject {
            Subject::Group(name) if !self.groups.contains_key(name) => Some((
                span,
                format!("there is no group `{name}`: add it under [groups], with its members, or correct the {what}"),
            )),
            _ => None,
        })
    }

    fn into_config(self) -> Config {
        Config {
            home: None,
            listen: self.listen.into_iter().map(|listen| listen.0.0).collect(),
            name: self.name,
            profile: self.profile,
            connect: self.connect.into_iter().map(|peer| peer.0).collect(),
            mirror: self.mirror.into_iter().map(|peer| peer.0).collect(),
            homes: self.homes.into_iter().map(|peer| peer.0).collect(),
            relays: self.relays.into_iter().map(|peer| peer.0).collect(),
            relay: self.relay,
            expose: self.expose.into_iter().map(|expose| Expose { name: expose.name.0.0, target: expose.target.0.0 }).collect(),
            forward: self.forward.into_iter().map(WrittenForward::into_forward).collect(),
            rules: self.rule.into_iter().map(|rule| rule.into_inner().0).collect(),
            groups: self.groups,
            open: self.open,
            strangers: self.strangers,
            exempt: Prefix::LOOPBACK.into_iter().chain(self.exempt.into_iter().map(|prefix| prefix.0)).collect(),
            rates: self.rate.into_iter().map(|rate| rate.into_inner().0).collect(),
            limits: self.limits,
        }
    }
}

#[derive(Deserialize)]
#[serde(try_from = "RuleFields")]
struct WrittenRule(Rule);

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RuleFields {
    allow: Option<Subject>,
    deny: Option<Subject>,
    action: Action,
    resource: Option<Pattern>,
}

impl TryFrom<RuleFields> for WrittenRule {
    type Error = String;

    fn try_from(fields: RuleFields) -> Result<Self, String> {
        let (effect, subject) = match (fields.allow, fields.deny) {
            (Some(subject), None) => (Effect::Permit, subject),
            (None, Some(subject)) => (Effect::Deny, subject),
            _ => return Err("a rule has either `allow = WHO` or `deny = WHO`".to_owned()),
        };
        let resource = fields.resource.unwrap_or_else(Pattern::everything);
        Rule::new(effect, subject, fields.action, resource, Source::Config).map(Self).map_err(|error| error.to_string())
    }
}

#[derive(Deserialize)]
#[serde(try_from = "RateFields")]
struct WrittenRate(RateRule);

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RateFields {
    #[serde(default = "Pattern::everything")]
    method: Pattern,
    #[serde(default = "anyone")]
    who: Subject,
    per_second: u32,
    burst: Option<u32>,
}

impl TryFrom<RateFields> for WrittenRate {
    type Error = String;

    fn try_from(fields: RateFields) -> Result<Self, String> {
        let RateFields { method, who, per_second, burst } = fields;
        let rate = Rate { per_second, burst: burst.unwrap_or(per_second) };
        rate.check()?;
        Ok(Self(RateRule { method, who, rate }))
    }
}

fn anyone() -> Subject {
    Subject::Anyone
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenExpose {
    name: Parsed<TargetName>,
    target: Parsed<Target>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenForward {
    listen: Parsed<ForwardListen>,
    peer: Parsed<PeerRef>,
    name: Parsed<TargetName>,
}

impl WrittenForward {
    fn into_forward(self) -> Forward {
        Forward { listen: self.listen.0.0, peer: self.peer.0, name: self.name.0.0 }
    }
}

struct TargetName(String);

impl FromStr for TargetName {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, &'static str> {
        check_name(text).map(|()| Self(text.to_owned()))
    }
}

struct Target(String);

impl FromStr for Target {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, &'static str> {
        check_target(text).map(|()| Self(text.to_owned()))
    }
}

struct ForwardListen(SocketAddr);

impl FromStr for ForwardListen {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, &'static str> {
        parse_listen(text).map(Self)
    }
}

struct Listen(SocketAddr);

impl FromStr for Listen {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, &'static str> {
        text.parse().map(Self).map_err(|_| "an address to listen at is IP:PORT, like \"0.0.0.0:8658\" or \"[::]:8658\"")
    }
}

/// An entry of a list. It is parsed inside the visitor: only there does the parser know which entry is wrong.
struct Parsed<T>(T);

impl<'de, T: FromStr<Err: Display>> Deserialize<'de> for Parsed<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Text<T>(PhantomData<T>);
        impl<T: FromStr<Err: Display>> de::Visitor<'_> for Text<T> {
            type Value = Parsed<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("text in quotes")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Parsed<T>, E> {
                text.parse().map(Parsed).map_err(E::custom)
            }
        }
        deserializer.deserialize_str(Text(PhantomData))
    }
}

fn profile<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Profile, D::Error> {
    match String::deserialize(deserializer)?.as_str() {
        "active" => Ok(Profile::Active),
        "battery" => Ok(Profile::Battery),
        _ => Err(de::Error::custom("profile is \"active\" or \"battery\"")),
    }
}

fn relay<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<RelayMode>, D::Error> {
    match String::deserialize(deserializer)?.as_str() {
        "closed" => Ok(Some(RelayMode::Closed)),
        "open" => Ok(Some(RelayMode::Open)),
        _ => Err(de::Error::custom("relay is \"closed\" or \"open\"; left out, nothing is relayed but what rules permit")),
    }
}

fn strangers<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Strangers, D::Error> {
    match String::deserialize(deserializer)?.as_str() {
        "ask" => Ok(Strangers::Ask),
        "refuse" => Ok(Strangers::Refuse),
        _ => Err(de::Error::custom("strangers is \"ask\" (the owner decides, see `volt requests`) or \"refuse\"")),
    }
}

/// The parser's message, and what to do where it leaves that open.
fn advised(message: &str) -> String {
    let advice = if message.starts_with("unknown field") {
        ": correct its name, or remove it"
    } else if message.starts_with("duplicate key") {
        ": keep one of them"
    } else {
        ""
    };
    format!("{message}{advice}")
}

/// Where in the text a field that has a wrong value is written.
fn find(text: &str, field: &str) -> usize {
    let Ok(table) = DeTable::parse(text) else { return 0 };
    let start_in = |table: &DeTable| table.keys().find(|key| key.get_ref().as_ref() == field).map(|key| key.span().start);
    let limits = || table.get_ref().get("limits").and_then(|limits| start_in(limits.get_ref().as_table()?));
    start_in(table.get_ref()).or_else(limits).unwrap_or(0)
}

fn at(path: &Path, text: &str, start: usize, message: String) -> ConfigError {
    let before = text.get(..start).unwrap_or(text);
    let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
    let (line, column) = (before.matches('\n').count() + 1, before[line_start..].chars().count() + 1);
    ConfigError::Text { path: path.to_owned(), line, column, message }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use proptest::prelude::*;

    use super::*;
    use crate::node::config::EXAMPLE;
    use crate::policy::{Policy, PolicyInput};

    fn read(text: &str) -> Result<Config, ConfigError> {
        Config::from_toml(text, Path::new("volt.toml"))
    }

    fn error(text: &str) -> String {
        read(text).unwrap_err().to_string()
    }

    #[test]
    fn nothing_written_is_the_default() {
        assert_eq!(read("").unwrap(), Config::default());
        let dir = tempfile::tempdir().unwrap();
        let home = Home::open(dir.path().join("home")).unwrap();
        assert_eq!(Config::read(&home).unwrap(), Config { home: Some(home.path().to_owned()), ..Config::default() });
    }

    #[test]
    fn the_example_is_read_and_means_what_it_says() {
        let config = read(EXAMPLE).unwrap();
        let camera = RateRule { method: "camera/*".parse().unwrap(), who: Subject::Anyone, rate: Rate::per_second(10).burst(20) };
        assert_eq!(config.rates, [camera]);
        assert_eq!(
            (config.name.as_deref(), config.limits.sessions, config.limits.resume_window.as_secs()),
            (Some("kitchen"), 1_000, 300)
        );
        assert_eq!(config.listen, [super::super::DEFAULT_LISTEN]);
        assert!(config.is_exempt("10.1.2.3".parse().unwrap()) && config.is_exempt("127.0.0.1".parse().unwrap()));
        assert!(!config.is_exempt("192.0.2.1".parse().unwrap()));
        assert!(matches!(config.connect[..], [PeerRef::Id(_)]));
        assert_eq!(config.expose, [Expose { name: "ssh".into(), target: "127.0.0.1:22".into() }]);
        assert!(matches!(&config.forward[..], [Forward { peer: PeerRef::Id(_), name, .. }] if name == "postgres"));
        assert_eq!(config.forward[0].listen, "127.0.0.1:15432".parse().unwrap());
        let members: Vec<_> = config.groups.values().flatten().copied().collect();
        let policy = Policy::new(PolicyInput { rules: config.rules, groups: config.groups, ..Default::default() }).unwrap();
        assert!(members.iter().all(|who| policy.decide(who, Action::Call, "greeter/hello").is_permit()));
        assert_eq!(members.iter().filter(|who| policy.decide(who, Action::Call, "greeter/shout").is_permit()).count(), 1);
    }

    #[test]
    fn a_mistake_is_told_with_its_line_and_what_would_be_right() {
        let cases = [
            ("\nnmae = \"x\"", "volt.toml:2:1: unknown field `nmae`, expected one of `name`"),
            ("open = \"yes\"", "volt.toml:1:8: invalid type: string \"yes\", expected a boolean"),
            ("listen = [\"8658\"]", "volt.toml:1:11: an address to listen at is IP:PORT"),
            ("profile = \"lazy\"", "volt.toml:1:11: profile is \"active\" or \"battery\""),
            ("connect = [\"did:key:zz\"]", "volt.toml:1:12: "),
            (
                "exempt = [\n\"10.0.0.0/8\",\n\"10.0.0.1/8\"]",
                "volt.toml:3:1: 10.0.0.1 is inside that range, not its start: write \"10.0.0.0/8\"",
            ),
            ("[limits]\nsessions = 0", "volt.toml:2:1: sessions is 0, and may be 1 to 100000"),
            ("[limits]\ndrain = 30", "volt.toml:2:9: invalid type: integer `30`, expected text: a span of time is written like"),
            ("[limits]\nseesions = 5", "volt.toml:2:1: unknown field `seesions`"),
            ("name = \"\"", "volt.toml:1:1: name has 1 to 255 bytes"),
            ("listen = [\"[::]:1\", \"[::]:1\"]", "volt.toml:1:1: listen names an address twice"),
            ("[groups]\nfriends = [\n\"did:key:zz\"]", "volt.toml:3:1: "),
            ("[groups]\n\"a b\" = []", "letters, digits"),
            ("[[rule]]\nallow = \"*\"\ndeny = \"*\"\naction = \"call\"", "either `allow = WHO` or `deny = WHO`"),
            ("[[rule]]\naction = \"call\"", "either `allow = WHO` or `deny = WHO`"),
            ("[[rule]]\nallow = \"*\"", "missing field `action`"),
            ("[[rule]]\nallow = \"*\"\naction = \"cal\"", "volt.toml:3:10: `cal` is no action; the actions are connect, call"),
            ("[[rule]]\nallow = \"*\"\naction = \"call\"\nresource = \"greeter\"", "write `greeter/*` for the whole service"),
            ("open = false\n[[rule]]\nallow = \"@pals\"\naction = \"connect\"", "volt.toml:2:1: there is no group `pals`"),
            ("[[rate]]\nmethod = \"a/*\"", "missing field `per_second`"),
            ("[[rate]]\nper_second = 0", "volt.toml:1:1: per_second of a rate is 0, and may be 1 to 1000000"),
            ("[[rate]]\nper_second = 1\nburst = 2_000_000", "burst of a rate is 2000000"),
            (
                "[[rate]]\nper_second = 1\nwho = \"@pals\"",
                "there is no group `pals`: add it under [groups], with its members, or correct the rate",
            ),
            ("[limits]\njournal_files = 1", "volt.toml:2:1: journal_files is 1, and may be 2 to 100"),
            ("[limits]\nhello = \"0s\"", "volt.toml:2:1: hello is 0s, and may be 1s to 60s"),
            ("[[expose]]\nname = \"a b\"\ntarget = \"a:1\"", "volt.toml:2:8: the name of what is exposed is letters"),
            ("[[expose]]\nname = \"a\"\ntarget = \"a\"", "volt.toml:3:10: a target is HOST:PORT"),
            ("[[expose]]\nname = \"a\"", "missing field `target`"),
            (
                "[[expose]]\nname = \"a\"\ntarget = \"a:1\"\n[[expose]]\nname = \"a\"\ntarget = \"a:2\"",
                "two are exposed as \"a\": give one of them another name",
            ),
            ("[[forward]]\nlisten = \"x\"\npeer = \"bob\"\nname = \"a\"", "volt.toml:2:10: where to listen is PORT"),
            ("[[forward]]\nlisten = \"1\"\npeer = \"did:key:zz\"\nname = \"a\"", "volt.toml:3:8: "),
            ("name = \"ü\" x", "volt.toml:1:"),
        ];
        for (text, expected) in cases {
            assert!(error(text).contains(expected), "{text:?} gave: {}", error(text));
        }
    }

    #[test]
    fn a_file_that_cannot_be_read_is_refused_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let home = Home::open(dir.path().join("home")).unwrap();
        fs::write(home.file(files::CONFIG), b"# \xc3\xbc\nname = \"\xff\"").unwrap();
        let error = Config::read(&home).unwrap_err().to_string();
        assert!(error.ends_with("volt.toml:2:9: this is not UTF-8: save the file as UTF-8 text"), "{error}");
        fs::write(home.file(files::CONFIG), vec![b'#'; FILE_BYTES as usize + 1]).unwrap();
        assert!(matches!(Config::read(&home), Err(ConfigError::Read { .. })));
        fs::remove_file(home.file(files::CONFIG)).unwrap();
        fs::create_dir(home.file(files::CONFIG)).unwrap();
        assert!(matches!(Config::read(&home), Err(ConfigError::Read { .. })));
    }

    proptest! {
        #[test]
        fn a_damaged_example_is_read_or_refused_without_panic(at in 0..EXAMPLE.len(), with in "\\PC?") {
            let mut text = EXAMPLE.to_owned();
            if text.is_char_boundary(at) && text.is_char_boundary(at + 1) {
                text.replace_range(at..at + 1, &with);
                let _ = read(&text);
            }
        }
    }
}
