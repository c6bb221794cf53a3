//! The server's process, seen from the client: started, asked where it is, how much memory it holds and how much processor time it
//! has used, and ended. It never outlives this handle. And the server's half of that. Where several make a chain, each is told where
//! its neighbour is when it is started.

use std::collections::VecDeque;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};
use serde_json::{Value, json};

use super::{BenchError, SERVER_COMMAND};

/// A running server. Dropping it ends the process and waits for that.
pub struct ServerProcess {
    child: Child,
    stdin: Option<ChildStdin>,
    said: BufReader<ChildStdout>,
    at: String,
}

impl ServerProcess {
    /// Starts `program` as the server of `side` and waits until it says where it is.
    pub fn start(program: &Path, side: &str) -> Result<Self, BenchError> {
        Self::spawn(program, side, None)
    }

    /// As [`ServerProcess::start`], of a server that has to know where another one is.
    pub fn start_beside(program: &Path, side: &str, neighbour: &str) -> Result<Self, BenchError> {
        Self::spawn(program, side, Some(neighbour))
    }

    /// So many of one side in a row that leads to `at`: the last one is told that, and each other one where the one after it is. In the
    /// order in which a client comes through them.
    pub fn start_chain(program: &Path, side: &str, count: usize, at: &str) -> Result<Vec<Self>, BenchError> {
        let mut chain = VecDeque::<Self>::with_capacity(count);
        for _ in 0..count {
            let next = chain.front().map_or(at, Self::at);
            chain.push_front(Self::start_beside(program, side, next)?);
        }
        Ok(chain.into())
    }

    /// Where to dial it, in its side's own words.
    pub fn at(&self) -> &str {
        &self.at
    }

    /// Its resident memory in KiB.
    pub fn resident_kib(&self) -> io::Result<u64> {
        let pid = self.child.id();
        match std::fs::read_to_string(format!("/proc/{pid}/status")) {
            Ok(status) => status
                .lines()
                .find_map(|line| line.strip_prefix("VmRSS:")?.trim().strip_suffix("kB")?.trim().parse().ok())
                .ok_or_else(|| io::Error::other("the kernel does not say")),
            Err(_) => resident_kib_by_ps(pid),
        }
    }

    /// The processor time it has used since it was started, in user and kernel mode. Waits for its answer.
    pub fn cpu(&mut self) -> io::Result<Duration> {
        let stdin = self.stdin.as_mut().ok_or_else(|| io::Error::other("it has ended"))?;
        stdin.write_all(b"cpu\n")?;
        let mut line = String::new();
        self.said.read_line(&mut line)?;
        read_cpu(&line).ok_or_else(|| io::Error::other(format!("it said {line:?}")))
    }

    fn spawn(program: &Path, side: &str, neighbour: Option<&str>) -> Result<Self, BenchError> {
        let arguments = [SERVER_COMMAND, side].into_iter().chain(neighbour);
        Self::run(Command::new(program).args(arguments)).map_err(|error| BenchError::Server {
            program: program.display().to_string(),
            side: side.to_owned(),
            error,
        })
    }

    fn run(command: &mut Command) -> io::Result<Self> {
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let stdin = child.stdin.take();
        let stdout = child.stdout.take().expect("stdout was asked to be a pipe");
        let mut server = Self { child, stdin, said: BufReader::new(stdout), at: String::new() };
        let mut line = String::new();
        server.said.read_line(&mut line)?;
        server.at = read_ready(&line).ok_or_else(|| io::Error::other(format!("it said {line:?}")))?;
        Ok(server)
    }
}

impl Drop for ServerProcess {
    fn drop(&mut self) {
        drop(self.stdin.take());
        let _ = self.child.wait();
    }
}

/// The line by which a server says where to dial it.
pub fn ready(at: &str) -> String {
    json!({ "at": at }).to_string()
}

fn read_ready(line: &str) -> Option<String> {
    let ready: Value = serde_json::from_str(line).ok()?;
    Some(ready.get("at")?.as_str()?.to_owned())
}

/// The server's half, once it is ready: says how much processor time it has used whenever it is asked, until nobody can ask.
pub fn answer(questions: impl Read, mut say: impl Write) {
    for line in BufReader::new(questions).lines() {
        let Ok(line) = line else { return };
        if line == "cpu"
            && writeln!(say, "{}", json!({ "cpu_ns": own_cpu().as_nanos() as u64 })).and_then(|()| say.flush()).is_err()
        {
            return;
        }
    }
}

/// The processor time this process has used since it was started, in user and kernel mode, all threads together: what getrusage
/// tells, in nanoseconds.
pub fn own_cpu() -> Duration {
    let used = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(used.tv_sec.try_into().unwrap_or_default(), used.tv_nsec.try_into().unwrap_or_default())
}

fn read_cpu(line: &str) -> Option<Duration> {
    let said: Value = serde_json::from_str(line).ok()?;
    Some(Duration::from_nanos(said.get("cpu_ns")?.as_u64()?))
}

/// Where there is no /proc, as on macOS.
fn resident_kib_by_ps(pid: u32) -> io::Result<u64> {
    let output = Command::new("ps").args(["-o", "rss=", "-p", &pid.to_string()]).output()?;
    String::from_utf8_lossy(&output.stdout).trim().parse().map_err(|_| io::Error::other("ps does not say"))
}

/// A server in this process, for tests: where it is, its end (dropping the writer), and itself.
#[cfg(test)]
pub fn in_here<S>(serve: S) -> (String, io::PipeWriter, std::thread::JoinHandle<Result<(), BenchError>>)
where
    S: FnOnce(io::PipeWriter, io::PipeReader) -> Result<(), BenchError> + Send + 'static,
{
    let (until, end) = io::pipe().unwrap();
    let (said, ready) = io::pipe().unwrap();
    let serving = std::thread::spawn(move || serve(ready, until));
    let mut line = String::new();
    BufReader::new(said).read_line(&mut line).unwrap();
    (read_ready(&line).unwrap(), end, serving)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ready_line_is_read_as_it_was_written() {
        assert_eq!(read_ready(&ready("127.0.0.1:1")).as_deref(), Some("127.0.0.1:1"));
        assert_eq!(read_ready(""), None);
        assert_eq!(read_ready("{\"at\": 1}"), None);
    }

    #[test]
    fn a_server_tells_its_processor_time_as_often_as_it_is_asked() {
        let (mut said, before) = (Vec::new(), own_cpu());
        answer(&b"cpu\nwhat\ncpu\n"[..], &mut said);
        let said = String::from_utf8(said).unwrap();
        let told: Vec<_> = said.lines().map(|line| read_cpu(line).unwrap()).collect();
        assert!(told.len() == 2 && before <= told[0] && told[0] <= told[1] && told[1] <= own_cpu(), "{told:?}");
        assert_eq!(read_cpu("{}"), None);
    }

    #[test]
    fn a_program_that_is_no_server_is_an_error_that_names_it() {
        let error = ServerProcess::start(Path::new("/nonexistent/volt"), "baseline").err().unwrap();
        assert!(error.to_string().contains("/nonexistent/volt"), "{error}");
    }
}
