//! What all commands share: which home, how to print, and the passphrase of the key.

use std::io::{IsTerminal, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use tokio::sync::OnceCell;
use voltmesh::local::Failure;
use voltmesh::node::home::{self, Home};

use crate::door::near;
use crate::far::Far;
use crate::{Global, output};

/// What all commands share.
#[derive(Debug)]
pub struct Context {
    home: Option<PathBuf>,
    passphrase_file: Option<PathBuf>,
    /// The node to administer, if it is not the one of this home.
    pub on: Option<String>,
    far: OnceCell<Arc<Far>>,
    /// Results and errors as JSON.
    pub json: bool,
}

impl Context {
    /// As the arguments say.
    pub fn new(global: Global) -> Self {
        let Global { home, json, passphrase_file, on, .. } = global;
        Self { home, passphrase_file, on, far: OnceCell::new(), json }
    }

    /// The node that `--on` names, if it was given.
    pub async fn far(&self) -> Result<Option<Arc<Far>>, Failure> {
        let Some(peer) = &self.on else { return Ok(None) };
        let open = async { Ok::<_, Failure>(Arc::new(Far::new(peer.clone(), near(self).await?))) };
        self.far.get_or_try_init(|| open).await.cloned().map(Some)
    }

    /// Ends what was begun for the command.
    pub async fn close(&self) {
        if let Some(far) = self.far.get() {
            far.close().await;
        }
    }

    /// The directory of the node, which may not be there yet.
    pub fn home_path(&self) -> Result<PathBuf, Failure> {
        match &self.home {
            Some(path) => Ok(path.clone()),
            None => Ok(home::default_home()?),
        }
    }

    /// The home, which is there.
    pub fn home(&self) -> Result<Home, Failure> {
        Ok(Home::existing(self.home_path()?)?)
    }

    /// The passphrase that was given, if one was: never asked for.
    pub fn passphrase(&self) -> Result<Option<String>, Failure> {
        let Some(path) = &self.passphrase_file else {
            return match std::env::var("VOLT_PASSPHRASE") {
                Ok(passphrase) => Ok(Some(passphrase)),
                Err(std::env::VarError::NotPresent) => Ok(None),
                Err(error) => Err(Failure::usage(format!("VOLT_PASSPHRASE: {error}"))),
            };
        };
        let text = std::fs::read_to_string(path)
            .map_err(|error| Failure::usage(format!("cannot read the passphrase from {}: {error}", path.display())))?;
        Ok(Some(text.lines().next().unwrap_or_default().to_owned()))
    }

    /// Prints why a command failed, and says what to exit with.
    pub fn failed(&self, failure: &Failure) -> ExitCode {
        output::failure(self.json, failure);
        ExitCode::from(failure.cause.exit_code())
    }

    /// Says something to people, never to programs.
    pub fn say(&self, text: &str) {
        if !self.json {
            Self::note(text);
        }
    }

    /// Says something that scripts may wait for too, on stderr.
    pub fn note(text: &str) {
        // Nobody there to read it is no reason to stop.
        let _ = writeln!(std::io::stderr(), "{text}");
    }

    /// Whether somebody sits in front of it.
    pub fn is_interactive() -> bool {
        std::io::stdin().is_terminal() && std::io::stderr().is_terminal()
    }
}
