//! A command line split into words as a POSIX shell would, without a shell:
//! quotes and backslashes, no expansion of any kind.

use super::lifecycle::LifecycleError;

/// Splits at white space. Single quotes keep everything as it stands; double
/// quotes and bare words know `\` before a character that is special there.
///
/// # Errors
/// When a quote is not closed or a backslash comes last.
pub fn split_words(line: &str) -> Result<Vec<String>, LifecycleError> {
    let wrong = |what| LifecycleError::CommandLine(line.to_owned(), what);
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut characters = line.chars();
    while let Some(character) = characters.next() {
        match character {
            c if c.is_whitespace() => words.extend(word.take()),
            '\'' => {
                let word = word.get_or_insert_default();
                loop {
                    match characters.next().ok_or_else(|| wrong("an open quote"))? {
                        '\'' => break,
                        c => word.push(c),
                    }
                }
            }
            '"' => {
                let word = word.get_or_insert_default();
                loop {
                    match characters.next().ok_or_else(|| wrong("an open quote"))? {
                        '"' => break,
                        '\\' => match characters.next().ok_or_else(|| wrong("an open quote"))? {
                            c @ ('"' | '\\' | '$' | '`') => word.push(c),
                            c => word.extend(['\\', c]),
                        },
                        c => word.push(c),
                    }
                }
            }
            '\\' => {
                let escaped = characters.next().ok_or_else(|| wrong("a backslash at its end"))?;
                word.get_or_insert_default().push(escaped);
            }
            c => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    Ok(words)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_those_of_a_shell() {
        let words = |line: &str| split_words(line).unwrap();
        assert_eq!(words("  a  'b c'\t\"d \\\" e\" f\\ g "), ["a", "b c", "d \" e", "f g"]);
        assert_eq!(words("--x='{\"a\": 1}'y ''"), ["--x={\"a\": 1}y", ""]);
        assert_eq!(words("'$HOME' \"\\n\""), ["$HOME", "\\n"]);
        assert!(words("").is_empty());
    }

    #[test]
    fn what_is_left_open_is_refused() {
        for line in ["a 'b", "a \"b", "a \"b\\", "a\\"] {
            assert!(split_words(line).is_err(), "{line}");
        }
    }
}
