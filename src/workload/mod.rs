//! What is asked of an engine: the prompts of a run, by load and index, the
//! same for every engine and distinct from each other unless the plan wants
//! them equal. Knows no engine and sends nothing.

pub mod lengths;
mod schedule;
pub mod source;
mod synthetic;

use rand::Rng;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use sha2::{Digest, Sha256};

use crate::engine::{GenerateRequest, Prompt, Sampling};
use crate::infer::{InferError, Tokenizer};
use crate::plan::{LoadPlan, Plan, PromptPlan};
use crate::units;

pub use schedule::Scheduled;

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
    loads: Vec<LoadPlan>,
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
            loads: plan.loads.clone(),
        }
    }

    /// Whether prompts have exactly the asked-for number of tokens under the
    /// model's own tokenizer. Questions have no asked-for number.
    #[must_use]
    pub fn is_token_exact(&self) -> bool {
        let counted = |load: &LoadPlan| {
            let content = &load.content;
            content.prompt_tokens.is_some() || load.is_trace()
        };
        let asked = matches!(self.prompt, PromptPlan::Synthetic { .. });
        self.tokenizer.is_some() || !(asked || self.loads.iter().any(counted))
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
        let number = self.number(load, index);
        let prompt = match &self.prompt {
            PromptPlan::Question(text) if self.same_prompt => Prompt::Chat(text.clone()),
            // The tag comes first: what follows an equal beginning could come from a prefix cache.
            PromptPlan::Question(text) => {
                let tag: u32 = self.generator(number).random();
                Prompt::Chat(format!("[{tag:08x}] {text}"))
            }
            PromptPlan::Synthetic { num_tokens } => self.synthetic(*num_tokens, number)?,
        };
        Ok(self.generate(prompt, self.max_tokens))
    }

    /// Which prompt is request `index` of load `load`. The highest two bits are
    /// never set: those numbers are of other draws.
    fn number(&self, load: u32, index: u32) -> u64 {
        if self.same_prompt {
            return 0;
        }
        ((u64::from(load) << 32) | u64::from(index)) & !(3 << 62)
    }

    fn generate(&self, prompt: Prompt, max_tokens: u32) -> GenerateRequest {
        GenerateRequest {
            prompt,
            max_tokens,
            sampling: Sampling {
                temperature: self.temperature,
                seed: self.seed,
                ..Sampling::default()
            },
            ignore_eos: self.ignore_eos,
        }
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
}

/// SHA-256 in hex of a prompt as it is sent.
#[must_use]
pub fn prompt_sha256(prompt: &Prompt) -> String {
    match prompt {
        Prompt::Chat(text) | Prompt::Raw(text) | Prompt::Tokens { text, .. } => {
            sha256_hex(text.as_bytes())
        }
        Prompt::Dialogue(messages) => {
            let mut bytes = Vec::new();
            for message in messages {
                // No text holds these bytes, so that no two conversations look alike.
                bytes.extend_from_slice(message.role.as_str().as_bytes());
                bytes.push(0xff);
                bytes.extend_from_slice(message.content.as_bytes());
                bytes.push(0xff);
            }
            sha256_hex(&bytes)
        }
    }
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
