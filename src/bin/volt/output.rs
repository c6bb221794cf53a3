//! What is printed: results on stdout, errors on stderr; JSON for programs, tables and colour on a terminal only. A reader that
//! has gone away ends the command quietly.

use std::io::{self, IsTerminal, Write};

use comfy_table::{ContentArrangement, Table, presets};
use serde::Serialize;
use voltmesh::local::Failure;
pub use voltmesh::proto::escape::{escape, escape_line};

/// Writes bytes as they are.
pub fn bytes(bytes: &[u8]) {
    if try_bytes(bytes).is_err() {
        std::process::exit(0);
    }
}

/// The same, for who must not end here.
///
/// # Errors
/// If nobody reads.
pub fn try_bytes(bytes: &[u8]) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(bytes)?;
    stdout.flush()
}

/// Writes a line of text.
pub fn line(text: &str) {
    bytes(format!("{text}\n").as_bytes());
}

/// Writes a value as one line of JSON.
pub fn json<T: Serialize>(value: &T) {
    bytes(&voltmesh::local::line(value));
}

/// Rows of text: a table on a terminal, columns between tabs elsewhere.
pub fn table(head: &[&str], rows: Vec<Vec<String>>) {
    if !io::stdout().is_terminal() {
        rows.iter().for_each(|row| line(&row.join("\t")));
        return;
    }
    if rows.is_empty() {
        return;
    }
    let mut table = Table::new();
    // Never wrapped: ids are there to be copied.
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(head);
    table.add_rows(rows);
    let text = table.trim_fmt();
    let (head, rows) = text.split_once('\n').unwrap_or((&text, ""));
    line(&format!("{}\n{rows}", bold(head)));
}

fn bold(text: &str) -> String {
    if colours(&io::stdout()) {
        let style = anstyle::Style::new().bold();
        format!("{style}{text}{style:#}")
    } else {
        text.to_owned()
    }
}

/// Writes why the command failed.
pub fn failure(as_json: bool, failure: &Failure) {
    let mut stderr = io::stderr().lock();
    let text = if as_json {
        // Not the cause: that is what the exit code says.
        let mut error = serde_json::json!({ "code": failure.code, "message": failure.message, "hint": failure.hint });
        if let Some(outcome) = &failure.outcome {
            error["outcome"] = outcome.as_str().into();
        }
        serde_json::json!({ "error": error }).to_string()
    } else {
        let red = if colours(&io::stderr()) { anstyle::AnsiColor::Red.on_default() } else { anstyle::Style::new() };
        let hint = failure.hint.as_ref().map(|hint| format!("\n  {}", escape(hint))).unwrap_or_default();
        format!("{red}error{red:#}: {} ({}){hint}", escape(&failure.message), failure.code.to_uppercase())
    };
    // There is nowhere left to say that this failed.
    let _ = writeln!(stderr, "{text}");
}

/// Whether colour is welcome there: a terminal, and nobody said no (<https://no-color.org>).
pub fn colours(stream: &impl IsTerminal) -> bool {
    let refused = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    stream.is_terminal() && !refused && std::env::var_os("TERM").is_none_or(|term| term != "dumb")
}

/// What to show where there may be nothing.
pub fn or_dash(text: Option<String>) -> String {
    text.filter(|text| !text.is_empty()).unwrap_or_else(|| "-".to_owned())
}
