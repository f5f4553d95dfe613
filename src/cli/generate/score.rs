//! `generate --score`: how likely each token of a given text is, given all
//! before it.

use serde::Serialize;

use super::answer::{TopRow, top_rows};
use crate::cli::output;
use crate::infer::Tokenizer;
use crate::infer::host::TokenLogprobs;
use crate::units::{format_ms, format_significant};

/// Longest token text in the table; longer ones are cut.
const TOKEN_WIDTH: usize = 20;

/// The object of `--score --json`.
#[derive(Debug, Serialize)]
pub(super) struct Scored {
    pub(super) model: String,
    pub(super) origin: String,
    /// Precision that the weights are computed in.
    pub(super) weights: String,
    pub(super) dummy_weights: bool,
    /// The text's tokens; the first has no score, nothing is before it.
    pub(super) tokens: Vec<ScoredToken>,
    /// Tokens with a score.
    pub(super) num_scored: usize,
    /// Sum of their natural-log probabilities.
    pub(super) total_logprob: f64,
    /// e to the negative mean; absent where nothing is scored.
    pub(super) perplexity: Option<f64>,
    pub(super) load_ms: f64,
    /// Sent to last score.
    pub(super) score_ms: f64,
}

/// One token of the text.
#[derive(Debug, Serialize)]
pub(super) struct ScoredToken {
    id: u32,
    token: String,
    logprob: Option<f32>,
    /// The most likely tokens in its place, best first.
    top: Vec<TopRow>,
}

/// Joins a text's tokens with their scores, which begin at the second token.
pub(super) fn tokens(
    tokenizer: &Tokenizer,
    ids: &[u32],
    scores: &[TokenLogprobs],
) -> Vec<ScoredToken> {
    let scores = std::iter::once(None).chain(scores.iter().map(Some));
    ids.iter()
        .zip(scores)
        .map(|(id, score)| ScoredToken {
            id: *id,
            token: tokenizer.decode(&[*id]).unwrap_or_default(),
            logprob: score.map(|score| score.logprob),
            top: score.map_or_else(Vec::new, |score| top_rows(tokenizer, &score.top)),
        })
        .collect()
}

/// Sum of the log-probabilities, and the perplexity.
pub(super) fn total(scores: &[TokenLogprobs]) -> (f64, Option<f64>) {
    let total: f64 = scores.iter().map(|score| f64::from(score.logprob)).sum();
    let count = u32::try_from(scores.len()).ok().filter(|count| *count > 0);
    (total, count.map(|count| (-total / f64::from(count)).exp()))
}

impl Scored {
    /// A line a token, and the sum.
    pub(super) fn print(&self) -> anyhow::Result<()> {
        let mut text = format!(
            "{:>5} {:>7} {:<TOKEN_WIDTH$} {:>9}  most likely\n",
            "", "id", "token", "logprob"
        );
        for (position, token) in self.tokens.iter().enumerate() {
            let logprob =
                token.logprob.map_or_else(|| "-".to_owned(), |logprob| format!("{logprob:.4}"));
            let best = token.top.first().map_or_else(String::new, |best| {
                format!("{} {} {:.4}", best.id, quoted(&best.token), best.logprob)
            });
            let shown = quoted(&token.token);
            let line =
                format!("{position:>5} {:>7} {shown:<TOKEN_WIDTH$} {logprob:>9}  {best}", token.id);
            text.push_str(line.trim_end());
            text.push('\n');
        }
        let perplexity = self.perplexity.map_or_else(
            || "no token to score after the first".to_owned(),
            |perplexity| format!("perplexity {}", format_significant(perplexity)),
        );
        text.push_str(&format!(
            "total {:.4} over {} tokens, {perplexity}\n",
            self.total_logprob, self.num_scored
        ));
        output::print(&text)?;
        output::note(&format!(
            "{}, load {} ms, score {} ms",
            self.weights,
            format_ms(self.load_ms),
            format_ms(self.score_ms)
        ));
        Ok(())
    }
}

/// A token's text in quotes, with escapes, cut to the table's width.
fn quoted(text: &str) -> String {
    let quoted = format!("{text:?}");
    if quoted.chars().count() <= TOKEN_WIDTH {
        return quoted;
    }
    quoted.chars().take(TOKEN_WIDTH - 1).chain(['…']).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn score(logprob: f32) -> TokenLogprobs {
        TokenLogprobs { logprob, top: Vec::new() }
    }

    #[test]
    fn perplexity_is_e_to_the_negative_mean() {
        let (sum, perplexity) = total(&[score(-1.0), score(-3.0)]);
        assert!((sum + 4.0).abs() < 1e-9);
        assert!((perplexity.unwrap() - 2.0_f64.exp()).abs() < 1e-9);
        assert_eq!(total(&[]), (0.0, None));
    }

    #[test]
    fn token_texts_are_quoted_and_cut() {
        assert_eq!(quoted("\n"), "\"\\n\"");
        assert_eq!(quoted(&"é".repeat(30)).chars().count(), TOKEN_WIDTH);
    }
}
