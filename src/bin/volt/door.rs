//! The way in for a command: through the node that runs on the home, or, where none does, as a visitor with its key.

use voltmesh::Node;
use voltmesh::id::keyfile::{KeyFileError, KeyFileProblem};
use voltmesh::local::{Cause, Failure, Guests};
use voltmesh::node::BindError;
use voltmesh::node::home::Home;

use crate::client::Client;
use crate::context::Context;
use crate::far::Near;

/// The way in for a command.
pub enum Door {
    /// The node that runs on the home.
    Node(Client),
    /// A short-lived node of our own. It has to be shut down, so that peers are told.
    Visitor(Node, Guests),
}

impl Door {
    /// Through the running node, or as a visitor.
    pub async fn open(context: &Context) -> Result<Self, Failure> {
        match node(context).await? {
            Some(client) => Ok(Self::Node(client)),
            None => Ok(Self::Visitor(visit(context).await?, Guests::default())),
        }
    }

    /// The same for a wire: one of this node needs the node to run.
    pub async fn for_wire(context: &Context, wire: &str) -> Result<Self, Failure> {
        if wire.contains('@') { Self::open(context).await } else { running(context).await.map(Self::Node) }
    }

    /// Says goodbye, if it was a visit.
    pub async fn close(self) {
        if let Self::Visitor(node, _) = self {
            node.shutdown().await;
        }
    }
}

async fn visit(context: &Context) -> Result<Node, Failure> {
    let mut builder = Node::builder().home(context.home()?.path()).visitor();
    if let Some(passphrase) = context.passphrase()? {
        builder = builder.passphrase(passphrase);
    }
    builder.bind().await.map_err(unbound)
}

/// What calls another node that is to be administered.
pub async fn near(context: &Context) -> Result<Near, Failure> {
    let home = context.home()?;
    match Client::find(&home).await? {
        Some(_) => Ok(Near::Node(home.socket_path()?)),
        None => Ok(Near::Visitor(visit(context).await?, Guests::default())),
    }
}

/// The node that a command is for: the one that `--on` names, or the one that runs on the home. `None` if none does.
pub async fn node(context: &Context) -> Result<Option<Client>, Failure> {
    match context.far().await? {
        Some(far) => Ok(Some(Client::of(far))),
        None => Client::find(&context.home()?).await,
    }
}

/// Where what is kept can be looked up and changed: at the node that a command is for, or, where none runs, in the files of the home.
pub enum Place {
    Node(Client),
    Files(Home),
}

impl Place {
    pub async fn find(context: &Context) -> Result<Self, Failure> {
        match node(context).await? {
            Some(client) => Ok(Self::Node(client)),
            None => Ok(Self::Files(context.home()?)),
        }
    }
}

/// The same, for commands that need one.
pub async fn running(context: &Context) -> Result<Client, Failure> {
    let home = context.home()?;
    node(context).await?.ok_or_else(|| {
        let text = format!("no node runs on {}", home.path().display());
        Failure::new(Cause::Local, voltmesh::proto::status::Code::FailedPrecondition, text).hint("start it first: `volt up`")
    })
}

/// Why a node could not be started, for people.
pub fn unbound(error: BindError) -> Failure {
    match error {
        BindError::Home(error) => error.into(),
        BindError::Store(error) => error.into(),
        BindError::Key(error) => unread(error),
        BindError::UnknownName(_) => Failure::usage(error),
        other => Failure::local(other),
    }
}

/// Why a key could not be read, for people.
pub fn unread(error: KeyFileError) -> Failure {
    let failure = Failure::local(&error);
    match error.problem {
        KeyFileProblem::NeedsPassphrase | KeyFileProblem::WrongPassphrase => {
            failure.hint("set VOLT_PASSPHRASE, or give --passphrase-file")
        }
        _ => failure,
    }
}
