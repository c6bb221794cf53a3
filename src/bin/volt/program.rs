//! A program that answers one call: messages to its stdin, its stdout for the reply. It runs in a process group of its own, and
//! all of that group ends when the call is given up.

use std::collections::HashSet;
use std::process::Stdio;
use std::sync::Mutex;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process_group};
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::sync::mpsc;
use voltmesh::local::Invocation;
use voltmesh::proto::limits::BODY_BYTES;
use voltmesh::proto::status::{Code, Status};

/// Time a cancelled program has to end by itself.
const GRACE: Duration = Duration::from_secs(1);
/// How much of the end of stderr the caller gets, in bytes.
const STDERR_BYTES: usize = 1_024;

/// Groups that run, for who has no time to wait for them.
static RUNNING: Mutex<Option<HashSet<Pid>>> = Mutex::new(None);

/// How programs are run.
#[derive(Clone, Debug)]
pub struct Recipe {
    /// For `sh -c`.
    pub command: String,
    /// Replies need not be JSON.
    pub raw: bool,
    /// Each line is a message.
    pub stream: bool,
}

impl Recipe {
    /// Runs the program for one call. Replies go out as they come; the status says how it ended. Dropped, it ends the program.
    pub async fn run(&self, call: &Invocation, requests: mpsc::Receiver<Vec<u8>>, replies: &mpsc::Sender<Vec<u8>>) -> Status {
        let (mut child, group) = match self.start(call) {
            Ok(started) => started,
            Err(error) => return Status::new(Code::Internal, format!("the program could not be started: {error}")),
        };
        let (Some(stdin), Some(stdout), Some(stderr)) = (child.stdin.take(), child.stdout.take(), child.stderr.take()) else {
            return Status::new(Code::Internal, "the program has no stdin, stdout or stderr");
        };
        let feeding = feed(stdin, requests, self.stream);
        tokio::pin!(feeding);
        let reading = async { tokio::join!(self.read(stdout, replies), tail(stderr), child.wait()) };
        tokio::pin!(reading);
        // A program need not read all it is sent; what it does not read holds up nothing.
        let (read, stderr, ended) = tokio::select! {
            ended = &mut reading => ended,
            () = &mut feeding => reading.await,
        };
        let ended = match ended {
            Ok(ended) => ended,
            Err(error) => return Status::new(Code::Internal, format!("the program could not be waited for: {error}")),
        };
        group.ended();
        match (ended.success(), read) {
            (true, Ok(())) => Status::ok(),
            (true, Err(status)) => status,
            (false, _) => {
                let text = String::from_utf8_lossy(&stderr).trim().to_owned();
                Status::new(Code::Aborted, if text.is_empty() { ended.to_string() } else { format!("{ended}: {text}") })
            }
        }
    }

    fn start(&self, call: &Invocation) -> std::io::Result<(Child, Group)> {
        let mut command = Command::new("sh");
        command.arg("-c").arg(&self.command).process_group(0);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command.env_remove("VOLT_PASSPHRASE").env("VOLT_PEER", call.peer.to_string()).env("VOLT_METHOD", &call.method);
        if let Some(deadline_ms) = call.deadline_ms {
            command.env("VOLT_DEADLINE_MS", deadline_ms.to_string());
        }
        for (name, value) in call.metadata.iter().filter(|(_, value)| !value.contains('\0')) {
            command.env(variable(name), value);
        }
        let child = command.spawn()?;
        let pid = child.id().and_then(|pid| Pid::from_raw(pid.cast_signed()));
        Ok((child, Group::new(pid)))
    }

    async fn read(&self, stdout: ChildStdout, replies: &mpsc::Sender<Vec<u8>>) -> Result<(), Status> {
        if self.stream {
            return self.read_lines(stdout, replies).await;
        }
        let mut body = Vec::new();
        let mut stdout = stdout.take(BODY_BYTES as u64 + 1);
        stdout.read_to_end(&mut body).await.map_err(unreadable)?;
        if body.len() > BODY_BYTES {
            // Read on, so that it can end: what is there is of no use.
            let _ = tokio::io::copy(stdout.get_mut(), &mut tokio::io::sink()).await;
            return Err(Status::new(Code::ResourceExhausted, format!("the program's reply has more than {BODY_BYTES} bytes")));
        }
        self.reply(body, replies).await
    }

    async fn read_lines(&self, stdout: ChildStdout, replies: &mpsc::Sender<Vec<u8>>) -> Result<(), Status> {
        let mut stdout = BufReader::new(stdout);
        loop {
            let mut line = Vec::new();
            let read = (&mut stdout).take(BODY_BYTES as u64 + 1).read_until(b'\n', &mut line).await.map_err(unreadable)?;
            if read == 0 {
                return Ok(());
            }
            if line.pop_if(|last| *last == b'\n').is_none() && line.len() > BODY_BYTES {
                return Err(Status::new(
                    Code::ResourceExhausted,
                    format!("a line of the program has more than {BODY_BYTES} bytes"),
                ));
            }
            self.reply(line, replies).await?;
        }
    }

    async fn reply(&self, body: Vec<u8>, replies: &mpsc::Sender<Vec<u8>>) -> Result<(), Status> {
        if !self.raw && voltmesh::local::json(&body).is_none() {
            let start: String = String::from_utf8_lossy(&body).chars().take(64).collect();
            let text = format!("the program's reply is not JSON (it begins {start:?}); `volt serve --raw` serves anything");
            return Err(Status::new(Code::Internal, text));
        }
        // Fails when the caller is gone; then the call is given up anyway.
        let _ = replies.send(body).await;
        Ok(())
    }
}

fn unreadable(error: std::io::Error) -> Status {
    Status::new(Code::Internal, format!("the program's stdout could not be read: {error}"))
}

/// `VOLT_META_` and the name, in the letters that shells take.
fn variable(name: &str) -> String {
    let letter = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_uppercase() } else { '_' };
    std::iter::once("VOLT_META_".to_owned()).chain(name.chars().map(|c| letter(c).to_string())).collect()
}

/// Writes messages, lines if there may be several, and closes at their end. A program that reads no further is no error.
async fn feed(mut stdin: ChildStdin, mut requests: mpsc::Receiver<Vec<u8>>, lines: bool) {
    while let Some(mut body) = requests.recv().await {
        if lines {
            body.push(b'\n');
        }
        if stdin.write_all(&body).await.is_err() || stdin.flush().await.is_err() {
            return;
        }
    }
}

/// The end of what comes.
async fn tail(mut stream: impl AsyncRead + Unpin) -> Vec<u8> {
    let (mut tail, mut buffer) = (Vec::new(), [0; 4_096]);
    while let Ok(read @ 1..) = stream.read(&mut buffer).await {
        tail.extend_from_slice(&buffer[..read]);
        let excess = tail.len().saturating_sub(STDERR_BYTES);
        tail.drain(..excess);
    }
    tail
}

/// A process group that ends when this is dropped: asked first, killed a second later.
struct Group(Option<Pid>);

impl Group {
    fn new(leader: Option<Pid>) -> Self {
        if let Some(leader) = leader {
            running(|groups| groups.insert(leader));
        }
        Self(leader)
    }

    /// The program has ended by itself; what it left in the background is its own business.
    fn ended(mut self) {
        if let Some(leader) = self.0.take() {
            running(|groups| groups.remove(&leader));
        }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let Some(leader) = self.0.take() else { return };
        let _ = kill_process_group(leader, Signal::TERM);
        // Not a task: it has to happen even if the command ends meanwhile, which waits for no task.
        std::thread::spawn(move || {
            std::thread::sleep(GRACE);
            let _ = kill_process_group(leader, Signal::KILL);
            running(|groups| groups.remove(&leader));
        });
    }
}

/// Waits until all groups that were told to end have ended, at most a little longer than that takes.
pub async fn wait_for_all() {
    for _ in 0..150 {
        if running(|groups| groups.is_empty()) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Ends every program at once.
pub fn kill_all() {
    running(|groups| groups.drain().for_each(|leader| kill_process_group(leader, Signal::KILL).unwrap_or_default()));
}

fn running<T>(with: impl FnOnce(&mut HashSet<Pid>) -> T) -> T {
    let mut running = RUNNING.lock().expect("nothing panics while it is held");
    with(running.get_or_insert_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metadata_becomes_variables_that_shells_take() {
        assert_eq!(variable("trace-id"), "VOLT_META_TRACE_ID");
        assert_eq!(variable("ä=b"), "VOLT_META___B");
    }

    #[tokio::test]
    async fn only_the_end_of_stderr_is_kept() {
        let long: Vec<u8> = (0..5_000u32).map(|n| (n % 251) as u8).collect();
        assert_eq!(tail(&long[..]).await, &long[5_000 - STDERR_BYTES..]);
        assert_eq!(tail(&b"short"[..]).await, b"short");
    }
}
