//! Numbers between words: what every pattern of an engine's text is made of.

/// Longest stretch that a gap of a pattern may skip, in bytes.
const MAX_GAP: usize = 200;
/// Places at which a pattern is taken: more than the workers that print one line each.
/// What reads a text goes over all that was found again and again.
const MAX_FOUND: usize = 64;

/// The text as one line: white space is one space, so that messages are found
/// however they were wrapped.
#[must_use]
pub fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// The numbers of the first places where `pattern` is in `text`. In a pattern `{}` is a
/// number (`117328`, `117,328`, `-1.05`), `{*}` anything short; other words are found as they are.
#[must_use]
pub fn all(text: &str, pattern: &str) -> Vec<Vec<f64>> {
    let Some((first, _)) = pattern.split_once('{') else { return Vec::new() };
    let mut found = Vec::new();
    let mut from = 0;
    while found.len() < MAX_FOUND
        && let Some(at) = text.get(from..).and_then(|rest| rest.find(first))
    {
        if let Some(numbers) = here(&text[from + at..], pattern) {
            found.push(numbers);
        }
        from += at + first.len().max(1);
    }
    found
}

/// The numbers of `pattern` at the start of `text`.
fn here(text: &str, pattern: &str) -> Option<Vec<f64>> {
    let (mut text, mut pattern) = (text, pattern);
    let mut numbers = Vec::new();
    loop {
        let (words, rest) = pattern.split_once('{').unwrap_or((pattern, ""));
        text = text.strip_prefix(words)?;
        if rest.is_empty() {
            return Some(numbers);
        }
        let (gap, rest) = rest.split_once('}')?;
        pattern = rest;
        if gap == "*" {
            let next = pattern.split('{').next().unwrap_or_default();
            // No further than it may skip: a text can begin a pattern at every word.
            let from_here = |at: &usize| text.get(*at..).is_some_and(|rest| rest.starts_with(next));
            text = &text[(0..=MAX_GAP).find(from_here)?..];
        } else {
            let (number, rest) = number(text)?;
            numbers.push(number);
            text = rest;
        }
    }
}

/// A number at the start of `text`, and what follows it.
fn number(text: &str) -> Option<(f64, &str)> {
    let text = text.strip_prefix(' ').unwrap_or(text);
    let end = text
        .char_indices()
        .find(|(at, c)| !(c.is_ascii_digit() || matches!(c, '.' | ',') || (*at == 0 && *c == '-')))
        .map_or(text.len(), |(at, _)| at);
    // A full stop or a comma after the number is the sentence's.
    let digits = text[..end].trim_end_matches(['.', ',']);
    let value: f64 = digits.replace(',', "").parse().ok()?;
    value.is_finite().then(|| (value, &text[digits.len()..]))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn numbers_are_taken_from_between_the_words() {
        let text = "INFO GPU KV cache size: 117,328 tokens. INFO GPU KV cache size: 16 tokens";
        assert_eq!(all(text, "GPU KV cache size: {} tokens"), [[117_328.0], [16.0]]);
        assert_eq!(all("took 1.5 GiB and 3 s", "took {} GiB{*}and {} s"), [[1.5, 3.0]]);
        assert_eq!(all("is -1.05GiB.", "is {}GiB"), [[-1.05]]);
        assert_eq!(all("length is 114432. Try", "length is {}"), [[114_432.0]]);
        assert!(all("took long GiB", "took {} GiB").is_empty());
        assert!(all("took", "took {}").is_empty());
    }

    #[test]
    fn a_text_that_repeats_itself_is_not_followed_for_ever() {
        assert_eq!(all(&"took 1 s, ".repeat(1000), "took {} s").len(), MAX_FOUND);
        let gap = |letters: usize| format!("took 1{}and 2", "é".repeat(letters));
        assert_eq!(all(&gap(MAX_GAP / 2), "took {}{*}and {}"), [[1.0, 2.0]]);
        assert!(all(&gap(MAX_GAP), "took {}{*}and {}").is_empty());
    }

    proptest! {
        #[test]
        fn no_text_is_too_odd(text in "\\PC{0,200}", pattern in "[a-z {}*]{0,20}") {
            let _ = all(&one_line(&text), &pattern);
        }
    }
}
