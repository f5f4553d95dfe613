//! Words on their way to a reader: made harmless, wrapped, listed. Strings of
//! engines and servers may hold anything.

/// A string on one line: control characters (escape sequences of a terminal
/// among them) and those that reorder text become U+FFFD, line breaks spaces.
#[must_use]
pub fn printable(text: &str) -> String {
    text.chars().map(harmless).collect()
}

fn harmless(c: char) -> char {
    match c {
        '\n' | '\r' | '\t' => ' ',
        '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2060}'..='\u{206f}' => '\u{fffd}',
        c if c.is_control() => '\u{fffd}',
        c => c,
    }
}

/// Lines of at most `width` characters, broken at spaces; a word that is longer
/// is broken where it must be.
#[must_use]
pub fn wrap(text: &str, width: usize) -> Vec<String> {
    let width = width.max(1);
    let mut lines = vec![String::new()];
    let mut used = 0;
    for word in text.split_whitespace() {
        let mut word: Vec<char> = word.chars().collect();
        if used > 0 && used + 1 + word.len() > width {
            lines.push(String::new());
            used = 0;
        }
        while used == 0 && word.len() > width {
            let rest = word.split_off(width);
            push(&mut lines, word.iter().copied());
            lines.push(String::new());
            word = rest;
        }
        if used > 0 {
            push(&mut lines, [' ']);
            used += 1;
        }
        used += word.len();
        push(&mut lines, word);
    }
    lines
}

fn push(lines: &mut [String], chars: impl IntoIterator<Item = char>) {
    if let Some(line) = lines.last_mut() {
        line.extend(chars);
    }
}

/// The text with its first letter in upper case.
#[must_use]
pub fn capitalise(text: &str) -> String {
    let mut letters = text.chars();
    let first = letters.next().map(char::to_uppercase).into_iter().flatten();
    first.chain(letters).collect()
}

/// `1`, `1 and 2`, `1, 2 and 3`.
#[must_use]
pub fn list(items: &[String]) -> String {
    match items {
        [] => String::new(),
        [one] => one.clone(),
        [head @ .., last] => format!("{} and {last}", head.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn escape_sequences_reach_no_terminal() {
        assert_eq!(printable("a\x1b[31mb\nc"), "a\u{fffd}[31mb c");
        assert_eq!(printable("x\u{202e}y"), "x\u{fffd}y");
    }

    #[test]
    fn items_are_listed_as_people_do() {
        let items: Vec<String> = ["a", "b", "c"].map(str::to_owned).to_vec();
        assert_eq!(list(&items), "a, b and c");
        assert_eq!(list(&items[..1]), "a");
    }

    proptest! {
        #[test]
        fn no_line_is_too_long_and_no_word_is_lost(
            text in "[a-zé ]{0,200}",
            width in 1_usize..40,
        ) {
            let lines = wrap(&text, width);
            prop_assert!(lines.iter().all(|line| line.chars().count() <= width));
            let without_spaces = |s: &str| s.split_whitespace().collect::<String>();
            prop_assert_eq!(without_spaces(&lines.join(" ")), without_spaces(&text));
        }
    }
}
