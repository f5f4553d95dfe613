//! The Prometheus text format, as far as gauges and counters need it. Pure and
//! linear in its text, which whoever fetched it has bounded. Lines that do not
//! parse are passed over: one exotic metric must not hide the others.

/// One sample: `name{labels} value`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Sample<'a> {
    pub(super) name: &'a str,
    /// What stands between the braces.
    labels: &'a str,
    pub(super) value: f64,
}

/// The samples of a page in their order.
pub(super) fn samples(text: &str) -> impl Iterator<Item = Sample<'_>> {
    text.lines().filter_map(sample)
}

fn sample(line: &str) -> Option<Sample<'_>> {
    let line = line.trim();
    if line.is_empty() || line.starts_with('#') {
        return None;
    }
    let (name, labels, rest) = match line.find('{') {
        Some(open) => {
            let close = open + 1 + closing_brace(&line[open + 1..])?;
            (&line[..open], &line[open + 1..close], &line[close + 1..])
        }
        None => {
            let end = line.find(char::is_whitespace)?;
            (&line[..end], "", &line[end..])
        }
    };
    // A timestamp may follow the value.
    let value = rest.split_ascii_whitespace().next()?.parse().ok()?;
    let name = name.trim_end();
    (!name.is_empty()).then_some(Sample { name, labels, value })
}

/// Where the labels end: at the first `}` outside quotes.
fn closing_brace(text: &str) -> Option<usize> {
    let mut in_quotes = false;
    let mut escaped = false;
    for (at, byte) in text.bytes().enumerate() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if in_quotes => escaped = true,
            b'"' => in_quotes = !in_quotes,
            b'}' if !in_quotes => return Some(at),
            _ => {}
        }
    }
    None
}

impl<'a> Sample<'a> {
    /// The value of a label, as it stands between its quotes.
    pub(super) fn label(&self, key: &str) -> Option<&'a str> {
        let mut rest = self.labels;
        loop {
            let (name, after) = rest.split_once('=')?;
            let after = after.trim_start().strip_prefix('"')?;
            let end = closing_quote(after)?;
            if name.trim_matches([',', ' ']) == key {
                return Some(&after[..end]);
            }
            rest = &after[end + 1..];
        }
    }

    /// The value as a count; absent if it is none.
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "checked to lie between 0 and 2^53 first"
    )]
    pub(super) fn count(&self) -> Option<u64> {
        (0.0..9_007_199_254_740_992.0).contains(&self.value).then_some(self.value as u64)
    }
}

fn closing_quote(text: &str) -> Option<usize> {
    let mut escaped = false;
    for (at, byte) in text.bytes().enumerate() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = true,
            b'"' => return Some(at),
            _ => {}
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn samples_are_read_with_and_without_labels() {
        let text = "# HELP a b\n# TYPE a gauge\na 3\nb{x=\"1\",y=\"q}\\\"r\"} 4.5e1 1700000000\nc{} NaN\n\
                    broken{x=\"1 7\nd nothing\n";
        let found: Vec<_> = samples(text).collect();
        assert_eq!(found.len(), 3, "{found:?}");
        assert_eq!((found[0].name, found[0].count()), ("a", Some(3)));
        assert_eq!((found[1].name, found[1].value), ("b", 45.0));
        assert_eq!((found[1].label("x"), found[1].label("y")), (Some("1"), Some("q}\\\"r")));
        assert_eq!(found[1].label("z"), None);
        assert_eq!(found[2].count(), None, "not a number is no count");
    }

    #[test]
    fn counts_are_whole_and_not_negative() {
        let count = |text: &str| sample(text).unwrap().count();
        assert_eq!(count("a -1"), None);
        assert_eq!(count("a +Inf"), None);
        assert_eq!(count("a 1e300"), None);
        assert_eq!(count("a 12.0"), Some(12));
    }

    proptest! {
        #[test]
        fn no_text_brings_the_parser_down(text in "[a-z{}=\", \\\\\\n0-9.éa-]{0,200}") {
            for sample in samples(&text) {
                let _ = (sample.label("a"), sample.count());
            }
        }
    }
}
