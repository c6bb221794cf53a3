//! `volt.toml`, read again while the node runs: when it changes, and when somebody asks. What it says of policy is in force at
//! once; the rest waits for the next start, and is named. A file that is wrong changes nothing and is reported.

use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use notify::{RecursiveMode, Watcher};
use tokio::sync::{Mutex as AsyncMutex, Notify, broadcast};
use tokio::time::{Instant, MissedTickBehavior};

use super::builder::overlay;
use super::config::{Config, ConfigError};
use super::home::{Home, files};
use super::rules::{Configured, Rules};
use super::{Node, next};
use crate::journal::{Entry, Journal};
use crate::policy::PolicyError;

/// A file that is being written is read when it stayed the same for so long.
const QUIET: Duration = Duration::from_millis(50);
/// The same for one that is empty or gone: more often than not it is about to be written, and until then deny rules would be missing.
const EMPTY: Duration = Duration::from_millis(300);
/// A file that changes all the time is read nevertheless after so long.
const RESTLESS: Duration = Duration::from_secs(5);
/// How often a file is looked at that the system cannot watch.
const OFTEN: Duration = Duration::from_millis(400);
/// The same where it does: what a link leads to, or a network's file system holds, changes without a word.
const SELDOM: Duration = Duration::from_secs(30);
/// What was read and not yet told to whoever is slow.
const TOLD: usize = 16;

/// The configuration was read, and is in force as far as a running node can change.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Reloaded {
    /// What is different from what is in force, and will be at the next start: names as in `volt.toml`.
    pub waiting: Vec<&'static str>,
}

/// Why the configuration was not read again. What was in force stays.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReloadError {
    /// There is no file to read.
    #[error("this node reads no volt.toml: its program gave the configuration, or it has no home")]
    NoFile,
    /// The file cannot be read, or has a mistake.
    #[error(transparent)]
    Config(Arc<ConfigError>),
    /// With it the rules would make no policy.
    #[error("volt.toml: {0}")]
    Policy(PolicyError),
    /// There is nothing in it, or it is gone. More often than not that is an accident, and with it all that it denies would be permitted.
    #[error("volt.toml is gone or empty: if that is meant, write at least a comment into it (`# nothing`)")]
    Blank,
    /// The system failed in another way.
    #[error("the system failed: {0}")]
    System(String),
}

/// What comes of each time the configuration is read, from when this was asked for.
#[derive(Debug)]
pub struct Reloads(Option<broadcast::Receiver<Result<Reloaded, ReloadError>>>);

impl Reloads {
    /// What came of the next time; `None` when the node has ended, and at once for a node that reads no file. A reader that is more than 16
    /// times behind misses the oldest. Cancel-safe.
    pub async fn next(&mut self) -> Option<Result<Reloaded, ReloadError>> {
        let told = self.0.as_mut()?;
        loop {
            match told.recv().await {
                Ok(outcome) => return Some(outcome),
                Err(broadcast::error::RecvError::Lagged(_)) => {}
                Err(broadcast::error::RecvError::Closed) => return None,
            }
        }
    }
}

impl Node {
    /// Reads `volt.toml` again, as the node does by itself when the file changes. Rules, groups, `open` and `relay` are in force when
    /// this returns; those made by command, and what the program asked for, stay as they are. Everything else waits for the next start.
    /// A file that is just being written is waited for, and one that is in force already is left as it is.
    /// Not cancel-safe in this sense: dropped half-way, it may have been read or not.
    ///
    /// # Errors
    /// [`ReloadError`]; then nothing has changed.
    pub async fn reload(&self) -> Result<Reloaded, ReloadError> {
        let reloader = self.0.reloader.clone().ok_or(ReloadError::NoFile)?;
        reloader.look(true).await.unwrap_or_else(|| Ok(Reloaded::default()))
    }

    /// What comes of reading `volt.toml` again, from now on: by itself or by [`Node::reload`].
    pub fn reloads(&self) -> Reloads {
        Reloads(self.0.reloader.as_ref().map(|reloader| reloader.0.told.subscribe()))
    }

    /// How `volt.toml` was found when it was last read: why it is not in force, or what of it waits for the next start.
    ///
    /// # Errors
    /// As [`Node::reload`], of the last time.
    pub fn config_state(&self) -> Result<Reloaded, ReloadError> {
        self.0.reloader.as_ref().map_or_else(|| Ok(Reloaded::default()), |reloader| reloader.standing().clone())
    }

    /// Until the node stops, which ends its events.
    pub(super) fn watch_config(&self) {
        let Some(reloader) = self.0.reloader.clone().filter(|reloader| reloader.0.watched) else { return };
        let mut events = self.0.hub.events();
        self.run(async move {
            let ended = async { while next(&mut events).await.is_some() {} };
            tokio::select! {
                biased;
                () = ended => {}
                () = reloader.watch() => {}
            }
        });
    }
}

/// What the file held, and what it says.
#[derive(Debug)]
pub(super) struct FileRead {
    bytes: Vec<u8>,
    pub config: Config,
}

impl FileRead {
    /// Reads the file of a home.
    pub fn of(home: &Home) -> Result<Self, ConfigError> {
        let bytes = Config::bytes(home)?;
        Ok(Self { config: Config::from_bytes(home, &bytes)?, bytes })
    }
}

/// Reads the file again. Clones share it.
#[derive(Clone, Debug)]
pub(super) struct Reloader(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    home: Home,
    rules: Rules,
    journal: Journal,
    /// What the program asked for.
    asked: Config,
    /// What the node was started with: the file's and the program's, without what is of policy.
    started: Config,
    /// Held by whoever reads the file, until it is in force: one after the other.
    turn: Arc<AsyncMutex<()>>,
    last: Mutex<Last>,
    standing: Mutex<Outcome>,
    told: broadcast::Sender<Result<Reloaded, ReloadError>>,
    /// Whether the node looks at the file by itself.
    watched: bool,
}

/// What the file was when it was last read.
#[derive(Debug)]
struct Last {
    seen: Seen,
    /// Whether there was nothing in the one that is in force.
    is_blank: bool,
}

type Outcome = Result<Reloaded, ReloadError>;
type Read = Result<Vec<u8>, ConfigError>;
/// The bytes of a file, or why there are none: what a change is told by.
type Seen = Result<Vec<u8>, String>;

impl Reloader {
    /// For a node that was started with this file, what its program asked for, and what both make together.
    pub fn new(
        home: Home,
        (rules, journal): (Rules, Journal),
        read: FileRead,
        (asked, started): (Config, Config),
        watched: bool,
    ) -> Self {
        let told = broadcast::Sender::new(TOLD);
        let last = Mutex::new(Last { is_blank: is_blank(&read.bytes), seen: Ok(read.bytes) });
        let (turn, standing) = (Arc::default(), Mutex::new(Ok(Reloaded::default())));
        Self(Arc::new(Inner { home, rules, journal, asked, started, turn, last, standing, told, watched }))
    }

    fn last(&self) -> MutexGuard<'_, Last> {
        self.0.last.lock().expect("nothing panics while it is held")
    }

    fn standing(&self) -> MutexGuard<'_, Outcome> {
        self.0.standing.lock().expect("nothing panics while it is held")
    }

    /// Reads the file when whoever writes it has written it, and puts it in force; unless `always`, only if it is another one than last time.
    async fn look(&self, always: bool) -> Option<Outcome> {
        let turn = self.0.turn.clone().lock_owned().await;
        let read = self.settled().await;
        let this = self.clone();
        let looked = tokio::task::spawn_blocking(move || {
            let outcome = this.take(read, always);
            drop(turn);
            outcome
        });
        looked.await.unwrap_or_else(|error| Some(Err(ReloadError::System(error.to_string()))))
    }

    fn take(&self, read: Read, always: bool) -> Option<Outcome> {
        let (mut last, now, before) = (self.last(), as_seen(&read), self.standing().clone());
        let is_same = last.seen == now;
        if is_same && !always {
            return None;
        }
        let outcome = if is_same && before.is_ok() { before.clone() } else { self.put_in_force(read, &mut last) };
        // Whoever asks again and again learns the same, and fills nothing with it.
        if !is_same || said(&outcome) != said(&before) {
            self.tell(&outcome);
        }
        last.seen = now;
        *self.standing() = outcome.clone();
        // Nobody need listen.
        let _ = self.0.told.send(outcome.clone());
        Some(outcome)
    }

    fn tell(&self, outcome: &Outcome) {
        match outcome {
            Ok(Reloaded { waiting }) if waiting.is_empty() => tracing::info!("volt.toml was read again, and is in force"),
            Ok(Reloaded { waiting }) => tracing::warn!(?waiting, "volt.toml was read again; these wait for the next start"),
            Err(error) => tracing::error!(%error, "volt.toml cannot be used; what was in force before stays"),
        }
        let error = said(outcome).map(Into::into);
        self.0.journal.note(Entry::Config { error, rules: self.0.rules.handle().current().rules().count() });
    }

    fn put_in_force(&self, read: Read, last: &mut Last) -> Outcome {
        let wrong = |error| ReloadError::Config(Arc::new(error));
        let bytes = read.map_err(wrong)?;
        if is_blank(&bytes) && !last.is_blank {
            return Err(ReloadError::Blank);
        }
        let file = Config::from_bytes(&self.0.home, &bytes).map_err(wrong)?;
        let mut config = overlay(Some(file), self.0.asked.clone());
        config.check().map_err(wrong)?;
        self.0.rules.configure(Configured::take(&mut config)).map_err(ReloadError::Policy)?;
        last.is_blank = is_blank(&bytes);
        Ok(Reloaded { waiting: waiting(&config, &self.0.started) })
    }

    /// Looks at the file whenever it may have changed.
    async fn watch(&self) {
        let hint = Arc::new(Notify::new());
        let (home, told) = (self.0.home.clone(), hint.clone());
        let watcher = tokio::task::spawn_blocking(move || begin(&home, &told)).await;
        let watcher = watcher.unwrap_or_else(|error| Err(notify::Error::generic(&error.to_string())));
        if let Err(error) = &watcher {
            tracing::info!(%error, every = ?OFTEN, "the system does not watch volt.toml; it is looked at now and then");
        }
        let mut ticks = tokio::time::interval(if watcher.is_ok() { SELDOM } else { OFTEN });
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            // The first tick comes at once: it may have changed since the node read it.
            tokio::select! {
                biased;
                () = hint.notified() => {}
                _ = ticks.tick() => {}
            }
            self.look(false).await;
        }
    }

    /// The file: another one than last time when whoever writes it has written it.
    async fn settled(&self) -> Read {
        let until = Instant::now() + RESTLESS;
        let (mut before, mut is_new) = self.read().await;
        while is_new && Instant::now() < until {
            let is_blank = before.as_deref().is_ok_and(is_blank);
            tokio::time::sleep(if is_blank { EMPTY } else { QUIET }).await;
            let (now, is_still_new) = self.read().await;
            if as_seen(&now) == as_seen(&before) {
                return now;
            }
            (before, is_new) = (now, is_still_new);
        }
        before
    }

    /// The file as it is now, and whether it is another one than last time.
    async fn read(&self) -> (Read, bool) {
        let this = self.clone();
        let read = tokio::task::spawn_blocking(move || {
            let read = Config::bytes(&this.0.home);
            let is_new = this.last().seen != as_seen(&read);
            (read, is_new)
        });
        read.await.unwrap_or_else(|error| {
            let (path, source) = (self.0.home.file(files::CONFIG), std::io::Error::other(error));
            (Err(ConfigError::Read { path, source }), true)
        })
    }
}

/// Whether a file says nothing at all: a comment says that this is meant.
fn is_blank(bytes: &[u8]) -> bool {
    bytes.trim_ascii().is_empty()
}

/// What is wrong, if anything.
fn said(outcome: &Outcome) -> Option<String> {
    outcome.as_ref().err().map(ToString::to_string)
}

fn as_seen(read: &Read) -> Seen {
    read.as_ref().cloned().map_err(ToString::to_string)
}

/// Has the system tell of changes in the directory: editors put another file in the place of the old one.
fn begin(home: &Home, hint: &Arc<Notify>) -> notify::Result<impl Watcher + Send + use<>> {
    let hint = hint.clone();
    let mut watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
        // What goes wrong may have hidden a change.
        let is_it = |event: notify::Event| {
            let named = event.paths.iter().any(|path| path.file_name().is_some_and(|name| name == files::CONFIG));
            event.need_rescan() || named && !is_reading(event.kind)
        };
        if event.map_or(true, is_it) {
            hint.notify_one();
        }
    })?;
    watcher.watch(home.path(), RecursiveMode::NonRecursive)?;
    Ok(watcher)
}

/// Ours, too.
fn is_reading(kind: notify::EventKind) -> bool {
    use notify::event::{AccessKind, AccessMode, EventKind};
    matches!(kind, EventKind::Access(access) if access != AccessKind::Close(AccessMode::Write))
}

/// What of a configuration is not in force in a node that was started with another one.
fn waiting(now: &Config, started: &Config) -> Vec<&'static str> {
    // Those that are not looked at are of policy, and in force.
    let Config {
        home: _,
        rules: _,
        groups: _,
        open: _,
        strangers: _,
        relay: _,
        listen,
        name,
        profile,
        connect,
        mirror,
        homes,
        relays,
        ..
    } = now;
    let Config { expose, forward, exempt, rates, limits, .. } = now;
    let differ = [
        ("listen", *listen != started.listen),
        ("name", *name != started.name),
        ("profile", *profile != started.profile),
        ("connect", *connect != started.connect),
        ("mirror", *mirror != started.mirror),
        ("homes", *homes != started.homes),
        ("relays", *relays != started.relays),
        ("expose", *expose != started.expose),
        ("forward", *forward != started.forward),
        ("exempt", *exempt != started.exempt),
        ("rate", *rates != started.rates),
        ("limits", *limits != started.limits),
    ];
    differ.into_iter().filter(|(_, differs)| *differs).map(|(name, _)| name).collect()
}
