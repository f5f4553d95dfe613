//! Foreign text on its way into markup.

use std::fmt::Write;

use crate::report::prose::printable;

/// Text that is text in an element as in a quoted attribute, whatever it holds.
pub(super) fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in printable(text).chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            c => escaped.push(c),
        }
    }
    escaped
}

/// [`escape`] for a name such as `max_num_seqs`, which may break behind its underscores.
pub(super) fn escape_name(name: &str) -> String {
    escape(name).replace('_', "_<wbr>")
}

/// A coordinate or length with one decimal at most.
pub(super) fn coordinate(value: f64) -> String {
    let mut text = String::new();
    // Writing to a string does not fail.
    let _ = write!(text, "{value:.1}");
    if let Some(whole) = text.strip_suffix(".0") {
        text.truncate(whole.len());
    }
    if text == "-0" { "0".to_owned() } else { text }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn coordinates_are_short() {
        assert_eq!(coordinate(12.04), "12");
        assert_eq!(coordinate(-0.01), "0");
        assert_eq!(coordinate(3.25), "3.2");
    }

    proptest! {
        #[test]
        fn nothing_escaped_is_markup(text in "\\PC{0,40}|[<>&\"'a]{0,40}") {
            let escaped = escape(&text);
            prop_assert!(!escaped.contains(['<', '>', '"', '\'']));
            let entities = ["&amp;", "&lt;", "&gt;", "&quot;", "&#39;"];
            for (at, _) in escaped.match_indices('&') {
                prop_assert!(entities.iter().any(|entity| escaped[at..].starts_with(entity)));
            }
        }
    }
}
