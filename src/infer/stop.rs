//! Stop texts over a stream of text: finds the one that is complete first, and
//! holds back what may still become one. Knows no token.

use super::InferError;

/// Stop texts of one request.
pub const MAX_STOPS: usize = 16;
/// Bytes of one stop text.
pub const MAX_STOP_BYTES: usize = 256;

/// Watches a stream for the first stop text to be complete; of two that end at
/// the same place, the one that began first. That does not depend on how the
/// stream is cut into pieces.
#[derive(Debug, Clone, Default)]
pub struct StopMatcher {
    stops: Vec<String>,
    /// Text that may be the beginning of a stop text, shorter than the longest.
    held: String,
}

/// What can be shown after a piece of text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shown {
    /// Text that is decided, maybe none.
    pub text: String,
    /// A stop text is complete; it and what follows are left out.
    pub stopped: bool,
}

/// Checks the stop texts of a request.
///
/// # Errors
/// [`InferError::Request`] for more than [`MAX_STOPS`], an empty one (it would
/// stop everything), or one longer than [`MAX_STOP_BYTES`].
pub fn check(stops: &[String]) -> Result<(), InferError> {
    if stops.len() > MAX_STOPS {
        return Err(InferError::Request(format!(
            "stop has {} texts: at most {MAX_STOPS} are taken",
            stops.len()
        )));
    }
    match stops.iter().find(|stop| stop.is_empty() || stop.len() > MAX_STOP_BYTES) {
        Some(stop) => Err(InferError::Request(format!(
            "stop has a text of {} bytes: expected 1 to {MAX_STOP_BYTES}",
            stop.len()
        ))),
        None => Ok(()),
    }
}

impl StopMatcher {
    /// A matcher for stop texts that [`check`] accepts.
    #[must_use]
    pub const fn new(stops: Vec<String>) -> Self {
        Self { stops, held: String::new() }
    }

    /// Takes the next piece of text.
    pub fn push(&mut self, text: &str) -> Shown {
        if self.stops.is_empty() {
            return Shown { text: text.to_owned(), stopped: false };
        }
        self.held.push_str(text);
        let found = |stop: &String| self.held.find(stop.as_str()).map(|at| (at + stop.len(), at));
        if let Some((_, start)) = self.stops.iter().filter_map(found).min() {
            self.held.truncate(start);
            return Shown { text: std::mem::take(&mut self.held), stopped: true };
        }
        let keep = self.stops.iter().map(|stop| overlap(&self.held, stop)).max().unwrap_or(0);
        let rest = self.held.split_off(self.held.len() - keep);
        Shown { text: std::mem::replace(&mut self.held, rest), stopped: false }
    }

    /// What was held back, when the stream ended without a stop text.
    pub fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }
}

/// Bytes at the end of `text` that are a beginning of `stop`, the most there are.
fn overlap(text: &str, stop: &str) -> usize {
    let ends = stop.char_indices().map(|(at, _)| at).skip(1);
    ends.filter(|at| text.ends_with(&stop[..*at])).max().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn owned(stops: &[&str]) -> Vec<String> {
        stops.iter().map(|stop| (*stop).to_owned()).collect()
    }

    /// What is shown of `pieces`, and whether a stop text ended it.
    fn watch(stops: &[String], pieces: &[&str]) -> (String, bool) {
        let mut matcher = StopMatcher::new(stops.to_vec());
        let mut shown = String::new();
        for piece in pieces {
            let Shown { text, stopped } = matcher.push(piece);
            shown.push_str(&text);
            if stopped {
                return (shown, true);
            }
            let longest = stops.iter().map(String::len).max().unwrap_or(1);
            assert!(matcher.held.len() < longest, "held {:?}", matcher.held);
        }
        shown.push_str(&matcher.finish());
        (shown, false)
    }

    /// The definition, read naively: the smallest end, then the smallest start.
    fn naive(stops: &[String], text: &str) -> (String, bool) {
        for end in 1..=text.len() {
            let starts =
                stops.iter().filter(|stop| text.as_bytes()[..end].ends_with(stop.as_bytes()));
            if let Some(start) = starts.map(|stop| end - stop.len()).min() {
                return (text[..start].to_owned(), true);
            }
        }
        (text.to_owned(), false)
    }

    #[test]
    fn stop_text_over_several_pieces_is_found_and_left_out() {
        assert_eq!(watch(&owned(&["\n\nQ:"]), &["a\n", "\n", "Q", ": b"]), ("a".to_owned(), true));
        // Of two, the one that is complete first, however the text is cut.
        for pieces in [&["xabcd"][..], &["xabc", "d"], &["xab", "cd"]] {
            assert_eq!(watch(&owned(&["abcd", "bc"]), pieces), ("xa".to_owned(), true));
        }
        assert_eq!(watch(&owned(&["c", "abc"]), &["xab", "cd"]), ("x".to_owned(), true));
    }

    #[test]
    fn near_miss_is_shown_whole() {
        assert_eq!(watch(&owned(&["END"]), &["EN", "EN", "x"]), ("ENENx".to_owned(), false));
        assert_eq!(watch(&owned(&["END"]), &["the EN"]), ("the EN".to_owned(), false));
    }

    #[test]
    fn stop_text_longer_than_the_output_never_matches_and_loses_no_text() {
        let long = vec!["a".repeat(MAX_STOP_BYTES)];
        let text = "a".repeat(MAX_STOP_BYTES - 1);
        assert_eq!(watch(&long, &[&text]), (text, false));
    }

    #[test]
    fn characters_of_several_bytes_are_not_split() {
        assert_eq!(watch(&owned(&["é!"]), &["caf", "é", "?"]), ("café?".to_owned(), false));
        assert_eq!(watch(&owned(&["é!"]), &["caf", "é", "!"]), ("caf".to_owned(), true));
    }

    #[test]
    fn without_stop_texts_nothing_is_held_back() {
        let mut none = StopMatcher::default();
        assert_eq!(none.push("x"), Shown { text: "x".to_owned(), stopped: false });
        assert_eq!(none.finish(), "");
    }

    #[test]
    fn stop_texts_out_of_bounds_are_refused_with_their_numbers() {
        let refused = |stops: Vec<String>| check(&stops).unwrap_err().to_string();
        assert!(refused(vec!["x".to_owned(); MAX_STOPS + 1]).contains("17"));
        assert!(refused(vec![String::new()]).contains("0 bytes"));
        assert!(refused(vec!["x".repeat(MAX_STOP_BYTES + 1)]).contains("257 bytes"));
        assert!(check(&vec!["x".repeat(MAX_STOP_BYTES); MAX_STOPS]).is_ok());
    }

    proptest! {
        #[test]
        fn any_split_gives_what_the_whole_text_gives(
            stops in prop::collection::vec("[abé]{1,4}", 0..4),
            pieces in prop::collection::vec("[abcé]{0,5}", 0..12),
        ) {
            let pieces: Vec<&str> = pieces.iter().map(String::as_str).collect();
            let text = pieces.concat();
            let whole = naive(&stops, &text);
            prop_assert_eq!(watch(&stops, &pieces), whole.clone());
            prop_assert_eq!(watch(&stops, &[&text]), whole);
        }
    }
}
