//! vLLM's arithmetic, V0 and V1: what a share of the GPU leaves for K and V, how
//! many blocks that is, and whether it starts. Facts and their sources are in
//! docs/SIZING.md.

pub mod activation;
pub mod pages;
pub mod rules;
mod ways_out;
mod words;

use std::collections::BTreeMap;

use self::pages::Pages;
use self::rules::Rules;
use super::amount::{Amount, Count, Source, as_gib};
use super::answer::{Concurrency, EngineAnswer, Part, Verdict, request_lengths};
use super::settings::{KvType, MaxModelLen, Question, Version};
use super::weights;

/// The last version with V0 by default, that of the study.
pub const STUDY: Version = Version::new(0, 7);
/// The newest version whose rules are known.
pub const CURRENT: Version = Version::new(0, 21);

/// Block sizes that vLLM takes.
const BLOCK_SIZES: [u64; 6] = [1, 8, 16, 32, 64, 128];
const DEFAULT_BLOCK_SIZE: u64 = 16;

/// What vLLM of `version` makes of `question`.
///
/// # Errors
/// A sentence, for settings that this version does not take.
pub fn size(question: &Question<'_>, version: Version) -> Result<EngineAnswer, String> {
    let rules = Rules::of(version);
    let pool = Pool::new(question, rules)?;
    let mut answer = pool.answer(question);
    answer.ways_out = ways_out::all(question, &pool, answer.starts);
    if answer.ways_out.is_empty() && !answer.starts.is_expected() {
        answer.notes.push("no change alone makes it start".to_owned());
    }
    Ok(answer)
}

/// The pool, and everything that it follows from.
struct Pool {
    rules: Rules,
    utilization: f64,
    kv_type: KvType,
    pages: Pages,
    batch: activation::ProfiledBatch,
    /// Asked for; for `auto` what fits.
    max_model_len: u64,
    /// Tokens without which it does not start: for `auto` a single one.
    least_len: u64,
    total: Amount,
    budget: Amount,
    /// What the budget pays for beside K and V, in the order of the page.
    parts: Vec<Part>,
    kv: Amount,
    blocks: Count,
}

impl Pool {
    fn new(question: &Question<'_>, rules: Rules) -> Result<Self, String> {
        let Question { shape, gpu, settings } = *question;
        let block_size = settings.block_size.unwrap_or(DEFAULT_BLOCK_SIZE);
        if !BLOCK_SIZES.contains(&block_size) {
            let known = BLOCK_SIZES.map(|size| size.to_string()).join(", ");
            return Err(format!("block_size is {block_size}: vLLM takes {known}"));
        }
        let dtype_bytes = settings.dtype_bytes.unwrap_or(2);
        let kv_type = kv_type(question)?;
        let asked = match settings.max_model_len {
            MaxModelLen::Tokens(tokens) if tokens > shape.max_position_embeddings => {
                return Err(format!(
                    "max_model_len {tokens} is above the model's {}: vLLM refuses it",
                    shape.max_position_embeddings
                ));
            }
            MaxModelLen::Tokens(tokens) => tokens,
            MaxModelLen::Auto if !rules.v1 => {
                return Err("max_model_len auto is there from V1 on, vLLM 0.8".to_owned());
            }
            MaxModelLen::Unset | MaxModelLen::Auto => shape.max_position_embeddings,
        };
        let batch = rules.profiled(gpu, settings, asked);
        let utilization = settings.gpu_memory_utilization.unwrap_or(rules.utilization);
        let total = gpu.cuda_total.clone();
        let budget = total.share(utilization).because(format!("{utilization} of what CUDA sees"));
        let parts = parts(question, rules, batch, dtype_bytes);
        let kv = match settings.kv_cache_memory_bytes {
            Some(_) if !rules.takes_kv_memory => {
                return Err("kv_cache_memory_bytes is there from vLLM 0.10.2 on".to_owned());
            }
            Some(bytes) => Amount::exact(bytes, Source::Given, "--kv-cache-memory-bytes"),
            None => parts
                .iter()
                .filter(|part| part.in_budget)
                .fold(budget.clone(), |left, part| left.minus(&part.amount)),
        };
        let pages = Pages::new(shape, kv_type, block_size, batch.tokens, rules.v1);
        let blocks = kv.count(pages.block_bytes);
        let (max_model_len, least_len) = match settings.max_model_len {
            MaxModelLen::Auto => (pages.longest(blocks.expected, asked), 1),
            MaxModelLen::Unset | MaxModelLen::Tokens(_) => (asked, asked),
        };
        Ok(Self {
            rules,
            utilization,
            kv_type,
            pages,
            batch,
            max_model_len,
            least_len,
            total,
            budget,
            parts,
            kv: kv.because("what is left of the budget"),
            blocks,
        })
    }

    /// Blocks without which it does not start.
    fn needed(&self) -> u64 {
        self.pages.of_request(self.least_len).max(1)
    }

    fn tokens(&self) -> Count {
        self.blocks.map(|blocks| self.pages.tokens(blocks))
    }

    /// What is free when vLLM looks first.
    fn free(&self) -> Amount {
        self.total.minus(&activation::context())
    }

    /// Whether the share is free when vLLM looks, which V0 does not do.
    fn is_free(&self) -> Verdict {
        if !self.rules.v1 {
            return Verdict::Yes;
        }
        // Of the same total, whose bounds must not be counted twice.
        let rest = self.total.share(1.0 - self.utilization);
        Verdict::of_rest(&rest.minus(&activation::context()))
    }

    /// Whether it starts, and if not for sure, what it says.
    fn verdict(&self, weights: &Amount) -> (Verdict, Option<String>) {
        if weights.low_bytes > self.total.high_bytes {
            return (Verdict::No, Some(words::out_of_memory(self.total.expected_bytes)));
        }
        let (free, holds) = (self.is_free(), Verdict::at_least(self.blocks, self.needed()));
        let starts = free.max(holds);
        // It looks at its share before it sizes the pool.
        let said = || if free == starts { self.not_free(free) } else { self.refusal(holds) };
        (starts, (starts != Verdict::Yes).then(said))
    }

    /// Its words where the share is not free, in the case that [`Pool::refusal`] takes.
    fn not_free(&self, free: Verdict) -> String {
        let Amount { low_bytes, expected_bytes, .. } = self.free();
        words::not_free(
            if free.is_expected() { low_bytes } else { expected_bytes },
            self.total.expected_bytes,
            self.utilization,
            self.budget.expected_bytes,
        )
    }

    /// Its words: as expected, or where it is expected to start, in the worst case.
    fn refusal(&self, starts: Verdict) -> String {
        let (blocks, kv) = if starts.is_expected() {
            (self.blocks.low, self.kv.low_bytes)
        } else {
            (self.blocks.expected, self.kv.expected_bytes)
        };
        if blocks == 0 {
            return words::no_blocks();
        }
        if !self.rules.v1 {
            return words::v0_too_long(self.max_model_len, self.pages.tokens(blocks));
        }
        let needed = self.needed().saturating_mul(self.pages.block_bytes);
        let estimated = self.pages.longest(blocks, self.max_model_len);
        let needed = i64::try_from(needed).unwrap_or(i64::MAX);
        words::v1_too_long(self.rules, self.max_model_len, needed, kv, estimated)
    }

    fn answer(&self, question: &Question<'_>) -> EngineAnswer {
        let kind = if self.rules.v1 { "V1" } else { "V0" };
        let weights = self.parts.iter().find(|part| part.name == "weights");
        let (starts, error) = match weights {
            Some(part) => self.verdict(&part.amount),
            None => (Verdict::No, None),
        };
        let mut parts = self.parts.clone();
        let at = parts.iter().position(|part| !part.in_budget).unwrap_or(parts.len());
        parts.insert(at, Part::inside("KV cache", self.kv.clone()));
        EngineAnswer {
            engine: "vllm",
            title: format!("vLLM {} ({kind})", self.rules.version),
            settings: self.settings(),
            total: Some(self.total.clone()),
            budget: Some(self.budget.clone()),
            parts,
            kv_bytes_per_token: question.shape.kv_bytes_per_token(self.kv_type),
            block_size: Some(self.pages.block_size),
            blocks: Some(self.blocks),
            tokens: self.tokens(),
            max_model_len: self.max_model_len,
            longest_request: self
                .blocks
                .map(|blocks| self.pages.longest(blocks, question.shape.max_position_embeddings)),
            concurrency: self.concurrency(question),
            starts,
            error,
            ways_out: Vec::new(),
            notes: self.notes(question),
        }
    }

    fn settings(&self) -> BTreeMap<&'static str, String> {
        BTreeMap::from([
            ("gpu_memory_utilization", self.utilization.to_string()),
            ("max_model_len", self.max_model_len.to_string()),
            ("block_size", self.pages.block_size.to_string()),
            ("kv_cache_dtype", self.kv_type.to_string()),
            ("max_num_batched_tokens", self.batch.tokens.to_string()),
            ("max_num_seqs", self.batch.seqs.to_string()),
        ])
    }

    /// `blocks / blocks of a request`, as vLLM logs it.
    fn concurrency(&self, question: &Question<'_>) -> Vec<Concurrency> {
        let of = |tokens| Concurrency::of(tokens, self.blocks, self.pages.of_request(tokens));
        request_lengths(question.settings, self.max_model_len).into_iter().map(of).collect()
    }

    fn notes(&self, question: &Question<'_>) -> Vec<String> {
        let mut notes = Vec::new();
        if matches!(question.settings.max_model_len, MaxModelLen::Auto) {
            notes.push(format!(
                "Auto-fit max_model_len: reduced from {} to {} to fit in available GPU memory \
                 ({:.2} GiB available for KV cache); a concurrency of 1.00x is then no finding",
                question.shape.max_position_embeddings,
                self.max_model_len,
                as_gib(self.kv.expected_bytes)
            ));
        }
        if !self.rules.v1 && question.shape.sliding.is_some() {
            notes.push("V0 keeps everything of layers that have a window".to_owned());
        }
        notes
    }
}

fn kv_type(question: &Question<'_>) -> Result<KvType, String> {
    match (question.settings.kv_type, question.settings.dtype_bytes) {
        (Some(kv @ (KvType::Q8_0 | KvType::Q4_0)), _) => {
            Err(format!("vLLM has no KV type {kv}: expected auto, bf16, f16, f32 or fp8"))
        }
        (Some(kv), _) => Ok(kv),
        (None, Some(4)) => Ok(KvType::F32),
        (None, _) => Ok(KvType::Bf16),
    }
}

fn parts(
    question: &Question<'_>,
    rules: Rules,
    batch: activation::ProfiledBatch,
    dtype_bytes: u64,
) -> Vec<Part> {
    let settings = question.settings;
    let given = |bytes: Option<u64>, option: &str, estimate: Amount| match bytes {
        Some(bytes) => Amount::exact(bytes, Source::Given, option),
        None => estimate,
    };
    let activation = activation::peak(question.shape, dtype_bytes, batch, rules.v1);
    let graphs = given(settings.cuda_graph_bytes, "--cuda-graph-gib", activation::cuda_graphs());
    let mut parts = vec![
        Part::inside("weights", weights::in_vllm(question)),
        Part::inside(
            "activations",
            given(settings.activation_bytes, "--activation-gib", activation),
        ),
        Part::inside(
            "non-torch",
            given(settings.non_torch_bytes, "--non-torch-gib", activation::non_torch()),
        ),
    ];
    parts.push(if rules.graphs_in_budget {
        Part::inside("CUDA graphs", graphs)
    } else {
        Part::outside("CUDA graphs", graphs)
    });
    parts
}

#[cfg(test)]
mod tests;
