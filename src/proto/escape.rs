//! Text of others, made harmless where people read it: in logs, journals and terminals. What it says is not judged.

/// Text with its control characters, what changes the direction of text, and what cannot be seen spelt out: `\u{1b}`. Line breaks and
/// tabs stay.
///
/// ```
/// use voltmesh::proto::escape::escape;
/// assert_eq!(escape("a\u{1b}[31mb\u{202e}c"), "a\\u{1b}[31mb\\u{202e}c");
/// assert_eq!(escape("küche"), "küche");
/// ```
pub fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        if (c.is_control() && c != '\n' && c != '\t') || is_hidden(c) {
            escaped.extend(c.escape_unicode());
        } else {
            escaped.push(c);
        }
    }
    escaped
}

/// The same on one line: line breaks and tabs are spaces.
pub fn escape_line(text: &str) -> String {
    escape(text).replace(['\n', '\t'], " ")
}

/// The same, of at most so many bytes, with `…` where something was left out. Line breaks are spelt out too: of two names that
/// differ, what is written differs.
pub fn escape_name(text: &str, bytes_max: usize) -> String {
    let mut escaped = String::with_capacity(text.len().min(bytes_max));
    for c in text.chars() {
        let before = escaped.len();
        if c.is_control() || is_hidden(c) || c == '\\' {
            escaped.extend(c.escape_default());
        } else {
            escaped.push(c);
        }
        if escaped.len() > bytes_max.saturating_sub('…'.len_utf8()) {
            escaped.truncate(before);
            escaped.push('…');
            return escaped;
        }
    }
    escaped
}

/// What changes how the text around it looks, or is not seen itself: marks and embeddings of direction, spaces of no width, separators of
/// lines and paragraphs, tags.
fn is_hidden(c: char) -> bool {
    matches!(c,
        '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}'
        | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}')
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_peers_text_cannot_steer_the_terminal() {
        assert_eq!(escape_line("a\u{1b}[31mb\nc\u{202e}d"), "a\\u{1b}[31mb c\\u{202e}d");
        assert_eq!(escape("küche\nüber"), "küche\nüber");
    }

    #[test]
    fn a_name_that_is_too_long_says_so() {
        assert_eq!(escape_name("kitchen", 10), "kitchen");
        assert_eq!(escape_name(&"ü".repeat(20), 10), "üüü…");
        assert_eq!(escape_name("a\nb\\n", 100), "a\\nb\\\\n");
    }

    proptest! {
        #[test]
        fn no_name_is_longer_than_it_may_be_or_has_more_than_one_line(text in any::<String>(), most in 10usize..64) {
            let escaped = escape_name(&text, most);
            prop_assert!(escaped.len() <= most, "{} of {most}", escaped.len());
            prop_assert!(!escaped.chars().any(|c| c.is_control() || is_hidden(c)));
        }
    }
}
