//! What is asked of an engine: the prompts of a run, by load and index, the
//! same for every engine and distinct from each other unless the plan wants
//! them equal. Knows no engine and sends nothing.

use rand::Rng;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use sha2::{Digest, Sha256};

use crate::engine::{GenerateRequest, Prompt, Sampling};
use crate::infer::{InferError, Tokenizer};
use crate::plan::{Plan, PromptPlan};
use crate::units;

/// Warm-up prompts come from a load that no case has, so that no measured
/// prompt was seen before.
const WARM_UP_LOAD: u32 = u32::MAX;

/// Makes the requests of one run.
pub struct Workload {
    prompt: PromptPlan,
    same_prompt: bool,
    max_tokens: u32,
    temperature: f64,
    ignore_eos: bool,
    seed: u64,
    tokenizer: Option<Tokenizer>,
}

impl Workload {
    /// The workload of `plan` under `seed`. Without the model's tokenizer,
    /// synthetic prompts have about the asked-for length, see
    /// [`Workload::is_token_exact`].
    #[must_use]
    pub fn new(plan: &Plan, seed: u64, tokenizer: Option<Tokenizer>) -> Self {
        Self {
            prompt: plan.prompt.clone(),
            same_prompt: plan.same_prompt,
            max_tokens: plan.max_tokens,
            temperature: plan.temperature,
            ignore_eos: !plan.stop_at_eos,
            seed,
            tokenizer,
        }
    }

    /// Whether prompts have exactly the asked-for number of tokens under the
    /// model's own tokenizer. Questions have no asked-for number.
    #[must_use]
    pub const fn is_token_exact(&self) -> bool {
        matches!(self.prompt, PromptPlan::Question(_)) || self.tokenizer.is_some()
    }

    /// Asked-for prompt length, where the prompts are synthetic.
    #[must_use]
    pub const fn requested_prompt_tokens(&self) -> Option<u32> {
        match self.prompt {
            PromptPlan::Question(_) => None,
            PromptPlan::Synthetic { num_tokens } => Some(num_tokens),
        }
    }

    /// Request `index` of a case whose load is `load`.
    ///
    /// # Errors
    /// When the tokenizer cannot make a prompt of the asked-for length.
    pub fn request(&self, load: u32, index: u32) -> Result<GenerateRequest, InferError> {
        let number = if self.same_prompt { 0 } else { (u64::from(load) << 32) | u64::from(index) };
        let prompt = match &self.prompt {
            PromptPlan::Question(text) if self.same_prompt => Prompt::Chat(text.clone()),
            // The tag comes first: what follows an equal beginning could come from a prefix cache.
            PromptPlan::Question(text) => {
                let tag: u32 = self.generator(number).random();
                Prompt::Chat(format!("[{tag:08x}] {text}"))
            }
            PromptPlan::Synthetic { num_tokens } => match &self.tokenizer {
                Some(tokenizer) => {
                    let (ids, text) =
                        tokenizer.exact_prompt(*num_tokens as usize, self.seed, number)?;
                    Prompt::Tokens { ids, text }
                }
                None => Prompt::Raw(self.words(*num_tokens, number)),
            },
        };
        Ok(GenerateRequest {
            prompt,
            max_tokens: self.max_tokens,
            sampling: Sampling {
                temperature: self.temperature,
                seed: self.seed,
                ..Sampling::default()
            },
            ignore_eos: self.ignore_eos,
        })
    }

    /// Warm-up request `index`: short, and with a prompt that is never measured.
    ///
    /// # Errors
    /// As [`Workload::request`].
    pub fn warm_up(&self, index: u32) -> Result<GenerateRequest, InferError> {
        let request = self.request(WARM_UP_LOAD, index)?;
        Ok(GenerateRequest { max_tokens: self.max_tokens.min(8), ..request })
    }

    fn generator(&self, number: u64) -> ChaCha8Rng {
        let mut generator = ChaCha8Rng::seed_from_u64(self.seed);
        generator.set_stream(number);
        generator
    }

    /// About one token a word in every common vocabulary.
    fn words(&self, num_words: u32, number: u64) -> String {
        const WORDS: [&str; 16] = [
            "time", "year", "people", "way", "day", "man", "thing", "woman", "life", "child",
            "world", "school", "state", "family", "group", "country",
        ];
        let mut generator = self.generator(number);
        let mut text = String::new();
        for _ in 0..num_words {
            text.push(' ');
            text.push_str(WORDS[generator.random_range(0..WORDS.len())]);
        }
        text
    }
}

/// SHA-256 in hex of a prompt as it is sent.
#[must_use]
pub fn prompt_sha256(prompt: &Prompt) -> String {
    let text = match prompt {
        Prompt::Chat(text) | Prompt::Raw(text) | Prompt::Tokens { text, .. } => text,
    };
    sha256_hex(text.as_bytes())
}

/// SHA-256 in hex.
#[must_use]
pub fn sha256_hex(bytes: &[u8]) -> String {
    units::hex(&Sha256::digest(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(plan: &Plan) -> Vec<String> {
        let workload = Workload::new(plan, 1, None);
        let mut texts = Vec::new();
        for load in 0..4 {
            for index in 0..10 {
                texts.push(prompt_sha256(&workload.request(load, index).unwrap().prompt));
            }
        }
        texts.push(prompt_sha256(&workload.warm_up(0).unwrap().prompt));
        texts.sort();
        texts.dedup();
        texts
    }

    #[test]
    fn every_prompt_of_a_run_is_distinct_unless_the_study_is_repeated() {
        let plan = Plan::default();
        assert_eq!(texts(&plan).len(), 41);
        assert_eq!(texts(&Plan { same_prompt: true, ..plan.clone() }).len(), 1);
        let prompt = PromptPlan::Synthetic { num_tokens: 32 };
        assert_eq!(texts(&Plan { prompt, ..plan }).len(), 41);
    }

    #[test]
    fn same_seed_makes_the_same_prompts() {
        let request = |seed| Workload::new(&Plan::default(), seed, None).request(2, 3).unwrap();
        assert_eq!(request(5), request(5));
        assert_ne!(request(5), request(6));
    }

    #[test]
    fn study_prompt_is_untouched() {
        let plan = Plan { same_prompt: true, ..Plan::default() };
        let request = Workload::new(&plan, 1, None).request(0, 0).unwrap();
        assert_eq!(request.prompt, Prompt::Chat("why is the sky blue?".to_owned()));
    }
}
