//! How the demo is told: lines for people, or JSON Lines. It knows nothing of what happens.

use std::io::{self, Write};
use std::time::Duration;

use anstyle::{AnsiColor, Style};

const GOOD: Style = AnsiColor::Green.on_default().bold();
const BAD: Style = AnsiColor::Red.on_default().bold();
const TITLE: Style = Style::new().bold();
const QUIET: Style = Style::new().dimmed();

/// The widest title of a step.
const TITLE_CHARS: usize = 32;

/// What to type when the demo is over.
const NEXT: [(&str, &str); 5] = [
    ("volt up", "runs a node of your own here, until you stop it"),
    ("volt id", "says who it is, and the ticket by which others reach it"),
    ("volt serve hello/upper --exec 'tr a-z A-Z'", "offers a program as a function"),
    ("volt policy allow ID call hello/upper", "lets another node call it; nobody may unasked"),
    ("volt call TICKET hello/upper '\"hi\"'", "calls it, from there"),
];

/// Tells the demo.
pub struct Teller<'a> {
    json: bool,
    out: &'a mut dyn Write,
}

impl<'a> Teller<'a> {
    /// For people, or as JSON Lines.
    pub fn new(json: bool, out: &'a mut dyn Write) -> Self {
        Self { json, out }
    }

    /// The title.
    pub fn begin(&mut self) -> io::Result<()> {
        if self.json {
            return Ok(());
        }
        writeln!(self.out, "\n{TITLE}volt demo{TITLE:#}  three nodes, a, b and c, over QUIC on 127.0.0.1\n")?;
        self.out.flush()
    }

    /// A step is done, or has failed.
    pub fn step(&mut self, name: &str, title: &str, took: Duration, outcome: &Result<String, String>) -> io::Result<()> {
        let (ok, detail) = match outcome {
            Ok(detail) => (true, detail),
            Err(why) => (false, why),
        };
        let ms = took.as_secs_f64() * 1e3;
        if self.json {
            let ms = (ms * 1e3).round() / 1e3;
            let line = serde_json::json!({ "step": name, "ok": ok, "ms": ms, "detail": detail });
            writeln!(self.out, "{line}")?;
        } else {
            let (mark, style) = if ok { ('✓', GOOD) } else { ('✗', BAD) };
            write!(self.out, "  {style}{mark}{style:#} {title:<TITLE_CHARS$} {QUIET}{ms:>7.1} ms{QUIET:#}")?;
            let style = if ok { QUIET } else { Style::new() };
            writeln!(self.out, "   {style}{detail}{style:#}")?;
        }
        self.out.flush()
    }

    /// All went well: what there is to do next.
    pub fn end(&mut self, steps: usize, took: Duration) -> io::Result<()> {
        if self.json {
            return Ok(());
        }
        let seconds = took.as_secs_f64();
        writeln!(self.out, "\n{GOOD}All {steps} steps held{GOOD:#}, in {seconds:.1} s. Next, with nodes of your own:\n")?;
        let width = NEXT.iter().map(|(command, _)| command.chars().count()).max().unwrap_or_default();
        for (command, what) in NEXT {
            writeln!(self.out, "  {TITLE}{command:<width$}{TITLE:#}  {QUIET}{what}{QUIET:#}")?;
        }
        writeln!(self.out)?;
        self.out.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(json: bool, outcome: Result<String, String>) -> String {
        let mut out = Vec::new();
        Teller::new(json, &mut out).step("connect", "sessions come up", Duration::from_micros(12_345), &outcome).unwrap();
        anstream::adapter::strip_str(&String::from_utf8(out).unwrap()).to_string()
    }

    #[test]
    fn a_step_is_one_line() {
        let line = told(false, Ok("both".into()));
        assert_eq!(line, format!("  ✓ {:<TITLE_CHARS$}    12.3 ms   both\n", "sessions come up"));
        assert!(told(false, Err("none".into())).starts_with("  ✗ "));
    }

    #[test]
    fn as_json_a_step_is_one_object() {
        let line = told(true, Err("no \"b\"".into()));
        assert_eq!(line, "{\"detail\":\"no \\\"b\\\"\",\"ms\":12.345,\"ok\":false,\"step\":\"connect\"}\n");
    }
}
