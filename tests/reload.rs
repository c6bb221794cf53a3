//! `volt.toml`, changed under a running node: what is right is in force at once, what is wrong changes nothing and is told.

mod support;

use std::fs;
use std::path::{Path, PathBuf};

use support::{closed, echo, loopback, soon};
use tempfile::TempDir;
use voltmesh::node::config::RelayMode;
use voltmesh::node::{ReloadError, Reloaded, Reloads};
use voltmesh::policy::{Action, Effect, Pattern, Rule, Source, Subject};
use voltmesh::proto::status::Code;
use voltmesh::{Event, Node, Session};

/// A directory with a home in it, whose `volt.toml` is written in the ways there are.
struct Home {
    dir: TempDir,
}

impl Home {
    fn new(toml: &str) -> Self {
        use std::os::unix::fs::PermissionsExt;
        let home = Self { dir: tempfile::tempdir().unwrap() };
        fs::create_dir(home.path()).unwrap();
        fs::set_permissions(home.path(), fs::Permissions::from_mode(0o700)).unwrap();
        home.write(toml);
        home
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("home")
    }

    fn toml(&self) -> PathBuf {
        self.path().join("volt.toml")
    }

    /// As a shell does it: cut to nothing, and written anew.
    fn write(&self, toml: &str) {
        fs::write(self.toml(), toml).unwrap();
    }

    /// As editors do it: another file in its place.
    fn replace(&self, toml: &str) {
        let new = self.path().join(".volt.toml.swp");
        fs::write(&new, toml).unwrap();
        fs::rename(new, self.toml()).unwrap();
    }

    async fn node(&self) -> Node {
        Node::builder().home(self.path()).listen(loopback()).service(echo()).bind().await.unwrap()
    }
}

fn rule(what: &str, who: &Node, action: &str, resource: &str) -> String {
    format!("[[rule]]\n{what} = \"{}\"\naction = \"{action}\"\nresource = \"{resource}\"\n", who.id())
}

async fn read(reloads: &mut Reloads) -> Result<Reloaded, ReloadError> {
    soon(reloads.next()).await.unwrap()
}

async fn may_call(session: &Session) -> bool {
    match soon(session.call::<_, String>("echo/one", "x")).await {
        Ok(_) => true,
        Err(error) if error.code() == Code::PermissionDenied => false,
        Err(error) => panic!("{error}"),
    }
}

#[tokio::test]
async fn a_changed_file_is_in_force_however_it_was_written() {
    let home = Home::new("");
    let (node, peer) = (home.node().await, closed().bind().await.unwrap());
    let mut reloads = node.reloads();
    let may = rule("allow", &peer, "call", "echo/*");
    home.replace(&may);
    assert_eq!(read(&mut reloads).await.unwrap().waiting, Vec::<&str>::new());
    let session = soon(peer.connect(node.ticket())).await.unwrap();
    assert!(may_call(&session).await);

    home.write(&format!("{may}{}", rule("deny", &peer, "call", "echo/one")));
    read(&mut reloads).await.unwrap();
    assert!(!may_call(&session).await);

    home.replace(&format!("[groups]\npals = [\"{}\"]\n[[rule]]\nallow = \"@pals\"\naction = \"call\"\n", peer.id()));
    read(&mut reloads).await.unwrap();
    assert!(may_call(&session).await);

    // Nothing written may be an accident; a comment is none, and denies everything.
    let mut events = node.events();
    fs::remove_file(home.toml()).unwrap();
    assert!(matches!(read(&mut reloads).await, Err(ReloadError::Blank)));
    assert!(may_call(&session).await);
    home.write("# nothing\n");
    read(&mut reloads).await.unwrap();
    while !matches!(soon(events.next()).await, Some(Event::Disconnected { .. })) {}
    peer.shutdown().await;
    node.shutdown().await;
}

#[tokio::test]
async fn a_broken_file_changes_nothing_and_is_told_until_a_good_one_is_there() {
    let home = Home::new("");
    let (node, peer) = (home.node().await, closed().bind().await.unwrap());
    let mut reloads = node.reloads();
    let may = rule("allow", &peer, "call", "echo/*");
    home.replace(&may);
    read(&mut reloads).await.unwrap();
    let (session, before) = (soon(peer.connect(node.ticket())).await.unwrap(), node.policy().generation());

    let broken = [
        ("\nopne = true", "volt.toml:2:1: unknown field `opne`"),
        ("[[rule]]\nallow = \"@nobody\"\naction = \"call\"", "volt.toml:1:1: there is no group `nobody`"),
        ("listen = [\"127.0.0.1\"]", "volt.toml:1:11: an address to listen at is IP:PORT"),
        ("[limits]\nsessions = 0", "volt.toml:2:1: sessions is 0"),
    ];
    for (text, expected) in broken {
        home.replace(text);
        let error = read(&mut reloads).await.unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
        assert_eq!(node.config_state().unwrap_err().to_string(), error);
        assert_eq!(node.reload().await.unwrap_err().to_string(), error);
        read(&mut reloads).await.unwrap_err();
    }
    assert!(may_call(&session).await);
    assert_eq!(node.policy().generation(), before);

    home.write(&format!("name = \"other\"\nlisten = [\"127.0.0.1:1\"]\n{may}"));
    // Where it listens was said by the program, and still is.
    assert_eq!(read(&mut reloads).await.unwrap().waiting, ["name"]);
    assert_eq!(node.config_state().unwrap().waiting, ["name"]);
    peer.shutdown().await;
    node.shutdown().await;
}

#[tokio::test]
async fn what_commands_and_the_program_made_survives() {
    let home = Home::new("open = true\n[groups]\npals = []\n");
    let peer = closed().bind().await.unwrap();
    let permit = |subject, action, resource: &str, source| {
        let resource: Pattern = resource.parse().unwrap();
        Rule::new(Effect::Permit, subject, action, resource, source).unwrap()
    };
    let of_program = permit(Subject::Node(peer.id()), Action::Call, "program/*", Source::Store);
    let builder = Node::builder().home(home.path()).listen(loopback()).relay(RelayMode::Closed).rule(of_program);
    let node = builder.bind().await.unwrap();
    let by_command = permit("@pals".parse().unwrap(), Action::Publish, "*", Source::Store);
    assert!(node.add_rule(by_command.clone()).await.unwrap());
    node.hold(peer.id(), &peer.listening());

    let mut reloads = node.reloads();
    home.replace(&format!("[groups]\npals = [\"{}\"]\n", peer.id()));
    assert!(node.reload().await.unwrap().waiting.is_empty());
    read(&mut reloads).await.unwrap();
    let may = |action, resource: &str| node.policy().decide(&peer.id(), action, resource).is_permit();
    assert!(may(Action::Call, "program/x") && may(Action::Publish, "w") && may(Action::Connect, ""));
    assert!(may(Action::Relay, &peer.id().to_string()));
    assert!(!may(Action::Call, "other/x"), "`open` is in the file no longer");

    // A rule made by command names a group that would be gone.
    home.replace("open = true\n");
    let error = loop {
        // What was asked for before may have been told twice.
        if let Err(error) = read(&mut reloads).await {
            break error;
        }
    };
    assert!(matches!(error, ReloadError::Policy(_)), "{error}");
    assert!(may(Action::Publish, "w") && !may(Action::Call, "other/x"));
    assert!(node.remove_rule(by_command.id()).await.unwrap());
    node.reload().await.unwrap();
    assert!(!may(Action::Publish, "w") && may(Action::Call, "other/x"));
    node.shutdown().await;
    peer.shutdown().await;
}

#[tokio::test]
async fn a_file_that_is_just_being_written_takes_no_rule_away() {
    let home = Home::new("");
    let peer = closed().bind().await.unwrap();
    let (may, deny) = (rule("allow", &peer, "call", "echo/*"), rule("deny", &peer, "call", "echo/one"));
    home.write(&format!("{may}{deny}"));
    let node = home.node().await;
    let is_denied = || !node.policy().decide(&peer.id(), Action::Call, "echo/one").is_permit();
    for blank in ["", "\n"] {
        home.write(blank);
        let error = node.reload().await.unwrap_err();
        assert!(matches!(error, ReloadError::Blank) && error.to_string().contains("write at least a comment"), "{error}");
        assert!(is_denied());
    }
    // However far whoever writes it has come when it is asked for.
    for _ in 0..5 {
        home.write("");
        let (asked, ()) = tokio::join!(node.reload(), async {
            tokio::task::yield_now().await;
            home.write(&format!("{may}{deny}"));
        });
        assert!(matches!(asked, Ok(_) | Err(ReloadError::Blank)), "{asked:?}");
        assert!(is_denied());
    }
    node.reload().await.unwrap();
    assert!(is_denied() && node.policy().decide(&peer.id(), Action::Call, "echo/two").is_permit());
    node.shutdown().await;
    peer.shutdown().await;
}

#[tokio::test]
async fn who_asks_without_end_for_the_same_file_changes_nothing_and_fills_no_journal() {
    let home = Home::new("open = true\n");
    let node = home.node().await;
    let generation = node.policy().generation();
    for _ in 0..50 {
        assert_eq!(node.reload().await.unwrap(), Reloaded::default());
    }
    assert_eq!(node.policy().generation(), generation);
    home.write("opne = true\n");
    for _ in 0..50 {
        node.reload().await.unwrap_err();
    }
    assert_eq!(node.policy().generation(), generation);
    node.shutdown().await;
    let journal = fs::read_to_string(home.path().join("journal.jsonl")).unwrap();
    assert_eq!(journal.matches("\"event\":\"config\"").count(), 1, "{journal}");
}

#[tokio::test]
async fn who_reads_no_file_says_so() {
    let home = Home::new("open = true\n");
    let config = voltmesh::node::config::Config { home: Some(home.path()), listen: vec![loopback()], ..Default::default() };
    let node = Node::builder().config(config).bind().await.unwrap();
    assert!(matches!(node.reload().await, Err(ReloadError::NoFile)));
    assert!(node.reloads().next().await.is_none());
    node.shutdown().await;
    assert!(Path::new(&home.toml()).exists());
}

#[tokio::test]
async fn a_file_that_is_a_link_is_read_when_asked() {
    let home = Home::new("");
    let elsewhere = home.dir.path().join("elsewhere.toml");
    fs::write(&elsewhere, "").unwrap();
    fs::remove_file(home.toml()).unwrap();
    std::os::unix::fs::symlink(&elsewhere, home.toml()).unwrap();
    let node = home.node().await;
    fs::write(&elsewhere, "open = true\n").unwrap();
    node.reload().await.unwrap();
    assert!(node.policy().decide(&node.id(), Action::Call, "any/x").is_permit());
    node.shutdown().await;
}
