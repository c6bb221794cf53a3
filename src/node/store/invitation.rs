//! An invitation as its issuer keeps it. Both directions of its JSON.

use serde::{Deserialize, Serialize};

use crate::id::{InviteHash, NodeId};
use crate::policy::{Grant, Rule};

/// Leave to connect, and perhaps for more, for whoever has its secret. The secret itself is in the ticket only.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Invitation {
    /// What its secret is known by.
    pub hash: InviteHash,
    /// How many nodes it lets in.
    pub uses: u32,
    /// Those it has let in.
    pub used: Vec<NodeId>,
    /// When it was made, in milliseconds since 1970 (UTC).
    pub made_unix_ms: u64,
    /// From when on it is no good.
    pub expires_unix_ms: u64,
    /// What they may do besides connecting.
    pub may: Vec<Grant>,
    /// The peer that had it made from afar; none if that was the owner.
    pub by: Option<NodeId>,
}

/// What came of the use of an invitation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Use {
    /// The rules it gives, all of which are kept.
    pub rules: Vec<Rule>,
    /// Whether it was used now, and not before.
    pub new: bool,
    /// Whether it is good for anything more.
    pub good: bool,
}

impl Invitation {
    /// Whether it lets anybody in at this time.
    pub fn is_good(&self, now_unix_ms: u64) -> bool {
        now_unix_ms < self.expires_unix_ms && self.used.len() < self.uses as usize
    }

    /// The rules that let this node in.
    pub(super) fn rules(&self, who: NodeId) -> Vec<Rule> {
        std::iter::once(&Grant::connect()).chain(&self.may).map(|grant| grant.to(who)).collect()
    }

    pub(super) fn to_json(&self) -> String {
        let Self { hash: _, uses, used, made_unix_ms, expires_unix_ms, may, by } = self.clone();
        serde_json::to_string(&Record { uses, used, made_unix_ms, expires_unix_ms, may, by })
            .expect("its fields are text and numbers")
    }

    pub(super) fn from_json(hash: InviteHash, json: &str) -> Result<Self, serde_json::Error> {
        let Record { uses, used, made_unix_ms, expires_unix_ms, may, by } = serde_json::from_str(json)?;
        Ok(Self { hash, uses, used, made_unix_ms, expires_unix_ms, may, by })
    }
}

/// The value of a row; the key is the hash.
#[derive(Serialize, Deserialize)]
struct Record {
    uses: u32,
    used: Vec<NodeId>,
    made_unix_ms: u64,
    expires_unix_ms: u64,
    may: Vec<Grant>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    by: Option<NodeId>,
}

/// What became of a peer's leave when it was revoked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Revoked {
    /// Rules that permitted it something, and are gone.
    pub removed: Vec<Rule>,
    /// Invitations that it had made from afar, and are taken back.
    pub withdrawn: Vec<InviteHash>,
}
