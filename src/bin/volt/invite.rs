//! `invite` and `join`: letting somebody in whose id is not known yet, and getting in that way.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use clap::Args;
use serde_json::{Value, json};
use voltmesh::id::{InviteSecret, Ticket};
use voltmesh::local::trust::{InvitationLine, InviteRequest, InvitedLine, grants};
use voltmesh::local::{ConnectRequest, Failure, peers};
use voltmesh::node::home::files;
use voltmesh::node::store::Store;
use voltmesh::node::{new_invitation, withdraw};

use crate::connect::connected;
use crate::context::Context;
use crate::door::{Place, running};
use crate::identity::would_be_reached;
use crate::output;

/// Print a ticket that lets somebody in
///
/// Whoever has the ticket can use it, as often and as long as it says; then it is worthless, also to who stole it. `volt join` uses
/// it. The secret is in the ticket only: this node keeps a hash of it.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  volt invite\n  volt invite --uses 5 --ttl 1d --may 'call greeter/*' --may 'subscribe sensors/*'\n  volt invite --list\n  volt invite --withdraw 3f2a9c01be"
)]
pub struct Invite {
    /// How many nodes it lets in
    #[arg(long, default_value_t = 1)]
    uses: u32,
    /// For how long it is good
    #[arg(long, value_name = "DURATION", default_value = "1h", value_parser = humantime::parse_duration)]
    ttl: Duration,
    /// What they may do besides connecting: an action and a resource; may be given several times
    #[arg(long, value_name = "ACTION RESOURCE")]
    may: Vec<String>,
    /// List the invitations that are still good for something
    #[arg(long, conflicts_with_all = ["uses", "ttl", "may", "withdraw"])]
    list: bool,
    /// Take an invitation back, by its name; whom it has let in stays
    #[arg(long, value_name = "NAME", conflicts_with_all = ["uses", "ttl", "may"])]
    withdraw: Option<String>,
}

/// Use an invitation: hold a session with who issued it from now on
///
/// Exit code 5 when it is no good: used up, expired or taken back. Then nothing is remembered.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  volt join volt1aexample --as office\nNeeds a running node (`volt up`).")]
pub struct Join {
    /// The ticket that `volt invite` printed
    ticket: String,
    /// The name you give who issued it
    #[arg(long = "as", value_name = "NAME")]
    name: Option<String>,
    /// How long to wait for the session
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = humantime::parse_duration)]
    timeout: Duration,
}

impl Invite {
    pub async fn run(self, context: &Context) -> Result<(), Failure> {
        let place = Place::find(context).await?;
        if self.list {
            list(context, place.invitations().await?);
            return Ok(());
        }
        if let Some(name) = self.withdraw {
            let removed = place.withdraw(&name).await?;
            if !removed {
                return Err(Failure::usage(format!("there is no invitation {name:?}")).hint("`volt invite --list` lists them"));
            }
            match context.json {
                true => output::json(&json!({ "name": name, "removed": true })),
                false => output::line(&format!("Taken back: {name}")),
            }
            return Ok(());
        }
        let ttl_ms = u64::try_from(self.ttl.as_millis()).unwrap_or(u64::MAX);
        let invited = place.invite(context, InviteRequest { uses: self.uses, ttl_ms, may: self.may }).await?;
        if context.json {
            let expires = until(invited.expires_unix_ms);
            output::json(&json!({ "ticket": invited.ticket, "expires": expires, "name": invited.name }));
            return Ok(());
        }
        output::line(&invited.ticket);
        let uses = if self.uses == 1 { "one node".to_owned() } else { format!("{} nodes", self.uses) };
        context.say(&format!(
            "Lets in {uses}, until {}. Whoever has it can use it: `volt join` and the ticket. Its name is {}.",
            until(invited.expires_unix_ms),
            invited.name
        ));
        Ok(())
    }
}

impl Place {
    async fn invite(&self, context: &Context, request: InviteRequest) -> Result<InvitedLine, Failure> {
        let home = match self {
            Self::Node(client) => return client.post("/v1/invitations", &request).await,
            Self::Files(home) => home,
        };
        let (ticket, _) = would_be_reached(context, home)?;
        let (_lock, secret) = (home.lock()?, InviteSecret::generate());
        let (life, may) = (Duration::from_millis(request.ttl_ms), grants(&request.may)?);
        let invitation = new_invitation(&secret, request.uses, life, &may, now())?;
        Store::open(home.file(files::STORE))?.add_invitation(&invitation)?;
        let (name, expires_unix_ms) = (invitation.hash.short(), invitation.expires_unix_ms);
        let ticket = Ticket { secret: Some(secret), ..ticket }.to_string();
        Ok(InvitedLine { ticket, name, expires_unix_ms })
    }

    async fn invitations(&self) -> Result<Vec<InvitationLine>, Failure> {
        match self {
            Self::Node(client) => client.get("/v1/invitations").await,
            Self::Files(home) => {
                let all = Store::open_read_only(home.file(files::STORE))?.invitations(now())?;
                Ok(all.iter().map(InvitationLine::of).collect())
            }
        }
    }

    async fn withdraw(&self, name: &str) -> Result<bool, Failure> {
        match self {
            Self::Node(client) => {
                let fine = name.bytes().all(|byte| byte.is_ascii_alphanumeric());
                let path = format!("/v1/invitations/{}", if fine && !name.is_empty() { name } else { "-" });
                let done: Value = client.delete(&path).await?;
                Ok(done["removed"].as_bool().unwrap_or(false))
            }
            Self::Files(home) => {
                let _lock = home.lock()?;
                Ok(withdraw(&Store::open(home.file(files::STORE))?, name)?)
            }
        }
    }
}

impl Join {
    pub async fn run(self, context: &Context) -> Result<(), Failure> {
        peers::parse(&self.ticket)?;
        let wait_ms = u64::try_from(self.timeout.as_millis()).unwrap_or(u64::MAX);
        let request = ConnectRequest { peer: self.ticket, name: self.name, remember: true, wait_ms };
        connected(context, running(context).await?.post("/v1/join", &request).await?, "Joined");
        Ok(())
    }
}

fn list(context: &Context, invitations: Vec<InvitationLine>) {
    if context.json {
        return invitations.iter().for_each(output::json);
    }
    if invitations.is_empty() {
        context.say("No invitations.");
    }
    let row = |invitation: InvitationLine| {
        let used = format!("{} of {}", invitation.used.len(), invitation.uses);
        let may = if invitation.may.is_empty() { "connect".to_owned() } else { invitation.may.join(", ") };
        let by = invitation.by.map_or_else(|| "-".to_owned(), |by| by.to_string());
        vec![invitation.name, used, until(invitation.expires_unix_ms), may, by]
    };
    output::table(&["NAME", "USED", "GOOD UNTIL", "MAY", "MADE BY"], invitations.into_iter().map(row).collect());
}

fn until(unix_ms: u64) -> String {
    // Beyond the year 9999 there is no text for it.
    let time = UNIX_EPOCH + Duration::from_millis(unix_ms.min(253_402_300_799_000));
    humantime::format_rfc3339_seconds(time).to_string()
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}
