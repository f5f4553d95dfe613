//! Stop strings over a stream of text: holds back what may be the beginning of one.

/// Watches a stream for the first occurrence of any stop string.
#[derive(Debug, Default)]
pub(super) struct StopStrings {
    stops: Vec<String>,
    /// Text that may be the beginning of a stop string.
    held: String,
}

/// What can be shown after a piece of text.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Shown {
    pub(super) text: String,
    /// A stop string is complete; it and what follows are left out.
    pub(super) stopped: bool,
}

impl StopStrings {
    /// Empty strings are not allowed: they would stop everything.
    pub(super) fn new(stops: Vec<String>) -> Self {
        Self { stops, held: String::new() }
    }

    /// Takes the next piece of text.
    pub(super) fn push(&mut self, text: &str) -> Shown {
        if self.stops.is_empty() {
            return Shown { text: text.to_owned(), stopped: false };
        }
        self.held.push_str(text);
        let found = self.stops.iter().filter_map(|stop| self.held.find(stop.as_str())).min();
        if let Some(at) = found {
            self.held.truncate(at);
            return Shown { text: std::mem::take(&mut self.held), stopped: true };
        }
        let keep = self.stops.iter().map(|stop| overlap(&self.held, stop)).max().unwrap_or(0);
        let rest = self.held.split_off(self.held.len() - keep);
        Shown { text: std::mem::replace(&mut self.held, rest), stopped: false }
    }

    /// What was held back, when the stream ended without a stop string.
    pub(super) fn finish(&mut self) -> String {
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
    use super::*;

    fn watch(stops: &[&str], pieces: &[&str]) -> (String, bool) {
        let mut watched = StopStrings::new(stops.iter().map(|stop| (*stop).to_owned()).collect());
        let mut shown = String::new();
        for piece in pieces {
            let Shown { text, stopped } = watched.push(piece);
            shown.push_str(&text);
            if stopped {
                return (shown, true);
            }
        }
        shown.push_str(&watched.finish());
        (shown, false)
    }

    #[test]
    fn stop_string_over_several_pieces_is_found_and_left_out() {
        assert_eq!(watch(&["\n\nQ:"], &["a\n", "\n", "Q", ": b"]), ("a".to_owned(), true));
        // Of two that are complete, the one that begins first.
        assert_eq!(watch(&["abcd", "bc"], &["xab", "cd"]), ("x".to_owned(), true));
    }

    #[test]
    fn near_miss_is_shown_whole() {
        assert_eq!(watch(&["END"], &["EN", "EN", "x"]), ("ENENx".to_owned(), false));
        assert_eq!(watch(&["END"], &["the EN"]), ("the EN".to_owned(), false));
    }

    #[test]
    fn characters_of_several_bytes_are_not_split() {
        assert_eq!(watch(&["é!"], &["caf", "é", "?"]), ("café?".to_owned(), false));
        assert_eq!(watch(&["é!"], &["caf", "é", "!"]), ("caf".to_owned(), true));
    }

    #[test]
    fn without_stop_strings_nothing_is_held_back() {
        let mut none = StopStrings::default();
        assert_eq!(none.push("x"), Shown { text: "x".to_owned(), stopped: false });
        assert_eq!(none.finish(), "");
    }
}
