//! The engine on a GPU as `cuda_engine` and `cuda_scaling` drive it: dummy weights
//! of Llama 3.2 3B unless `YARDSTICK_BENCH_MODEL` names others, prompts that
//! share nothing, times by the engine's own clock, which waits for the device.

use yardstick::catalog::{self, LocateOptions};
use yardstick::clock::Clock;
use yardstick::infer::weights::{self, OpenModel};
use yardstick::infer::{
    ComputeDevice, ComputeDtype, EngineConfig, EngineCore, InferRequest, KvBudget, ModelConfig,
    ModelSource,
};

use super::gpu_bench::{Machine, Times, say};
use super::gpu_tables;

/// Tokens of one step at most: the engine's default.
pub const BUDGET: usize = 2048;

/// Steps before those that are timed.
const WARM_UP: usize = 4;

/// The model and the machine.
pub struct Bench {
    machine: Machine,
    model: OpenModel,
    clock: Clock,
}

impl Bench {
    /// Opens the model; on a device that is no device, a tiny one.
    pub fn open(machine: Machine) -> Self {
        let (source, what) = if machine.smoke { tiny() } else { chosen() };
        let model = weights::open(&source).unwrap_or_else(|error| panic!("{error}"));
        say(&format!("model: {what}; bf16, block size 16, {BUDGET} tokens a step"));
        Self { machine, model, clock: Clock::real() }
    }

    /// Whether nothing is to be timed.
    pub const fn smoke(&self) -> bool {
        self.machine.smoke
    }

    /// Shapes.
    pub const fn config(&self) -> &ModelConfig {
        &self.model.config
    }

    /// Time floors of the device; none where its peaks are not known.
    pub fn floor(&self, floor: impl Fn(&yardstick::hardware::GpuCard) -> f64) -> Option<f64> {
        self.machine.card.map(floor)
    }

    /// An engine with room for `max_len` tokens a sequence.
    pub fn core(&self, max_len: usize, cuda_graphs: bool) -> EngineCore {
        let max_model_len = max_len.min(self.config().max_position_embeddings);
        let config = EngineConfig {
            max_model_len: Some(max_model_len),
            dtype: Some(ComputeDtype::Bf16),
            device: Some(ComputeDevice::Cuda(0)),
            max_num_batched_tokens: BUDGET,
            // Every prompt is computed.
            enable_prefix_caching: false,
            cuda_graphs,
            kv: if self.smoke() { KvBudget::Blocks(64) } else { KvBudget::Auto },
            max_num_seqs: if self.smoke() { 4 } else { 64 },
            ..EngineConfig::default()
        };
        let core =
            EngineCore::new(&self.model.config, &*self.model.weights, &config, self.clock.clone())
                .unwrap_or_else(|error| panic!("{error}"));
        say(&format!(
            "graphs {}, KV pool {} tokens",
            if cuda_graphs { "on" } else { "off" },
            core.stats().num_blocks * config.block_size
        ));
        core
    }

    /// A prompt like no other.
    fn request(&self, nth: usize, prompt_len: usize, max_tokens: usize) -> InferRequest {
        let vocab = self.config().vocab_size;
        let id = |i: usize| u32::try_from((nth * 7919 + i * 104_729 + i / 7) % vocab).unwrap_or(0);
        let prompt = (0..prompt_len).map(id).collect();
        InferRequest { ignore_eos: true, ..InferRequest::new(prompt, max_tokens) }
    }

    /// Seconds of decode steps of `batch` sequences around `context` tokens each;
    /// none, with the reason, where the pool has no room for them.
    pub fn decode(
        &self,
        core: &mut EngineCore,
        batch: usize,
        context: usize,
        steps: usize,
    ) -> Result<Decode, String> {
        // Sequences whose prompts are done decode beside the others' prompts.
        let prefill = (batch * context).div_ceil(BUDGET - batch) + batch;
        let more = WARM_UP + steps + prefill;
        let blocks = (context + more).div_ceil(16) * batch;
        if blocks > core.stats().num_blocks {
            return Err(format!("needs {} tokens of KV", blocks * 16));
        }
        let started = self.clock.now();
        let ids: Vec<_> = (0..batch)
            .map(|nth| core.add_request(self.request(nth, context, 2 * more)))
            .collect::<Result<_, _>>()
            .map_err(|error| error.to_string())?;
        let step = |core: &mut EngineCore| core.step().map_err(|error| error.to_string());
        let mut tokens = 0;
        loop {
            let report = step(core)?;
            tokens += report.outputs.len();
            if report.num_prefill_tokens == 0 {
                break;
            }
        }
        for _ in 1..WARM_UP {
            tokens += step(core)?.outputs.len();
        }
        let mut seconds = Vec::with_capacity(steps);
        let mut ended = started;
        for _ in 0..steps {
            let report = step(core)?;
            assert_eq!(report.outputs.len(), batch, "a step of every sequence");
            tokens += report.outputs.len();
            ended = report.at;
            seconds.push(report.at.since(report.started_at).as_secs_f64());
        }
        for id in ids {
            core.abort(id).map_err(|error| error.to_string())?;
        }
        let in_all = ended.since(started).as_secs_f64();
        // What the middle one of the timed steps sees.
        let context = context + tokens / batch - steps / 2;
        Ok(Decode { steps: Times::new(seconds), context, with_prompts: tokens as f64 / in_all })
    }

    /// Seconds from a request to its first token in an idle engine.
    pub fn first_token(
        &self,
        core: &mut EngineCore,
        prompt_len: usize,
        repeats: usize,
    ) -> Result<Times, String> {
        // The first use of a shape chooses cuBLAS's kernels.
        let once = |nth| {
            let request = self.request(nth, prompt_len, 1);
            let start = self.clock.now();
            core.add_request(request).map_err(|error| error.to_string())?;
            loop {
                let report = core.step().map_err(|error| error.to_string())?;
                if !report.outputs.is_empty() {
                    break Ok(report.at.since(start).as_secs_f64());
                }
            }
        };
        let seconds: Vec<f64> = (0..=repeats).map(once).collect::<Result<_, String>>()?;
        Ok(Times::new(seconds[1..].to_vec()))
    }
}

/// What decoding took.
#[derive(Debug, Clone)]
pub struct Decode {
    /// The steps.
    pub steps: Times,
    /// Tokens that a sequence had in the middle of them.
    pub context: usize,
    /// Tokens a second from the first request to the last token, prompts included.
    pub with_prompts: f64,
}

/// What `YARDSTICK_BENCH_MODEL` names, or noise of the 3B shapes.
fn chosen() -> (ModelSource, String) {
    let named = std::env::var("YARDSTICK_BENCH_MODEL");
    let name = named.as_deref().unwrap_or(gpu_tables::MODEL);
    let dummy = if named.is_err() { Some(0) } else { None };
    let options = LocateOptions { dummy, ..LocateOptions::default() };
    let located = catalog::locate(name, &options, &mut |_| {});
    let located = located.unwrap_or_else(|error| panic!("{name} cannot be found: {error}"));
    (located.source, format!("{name} from {}", located.origin))
}

/// Two layers whose heads have tensor core kernels.
fn tiny() -> (ModelSource, String) {
    let config = ModelConfig {
        hidden_size: 128,
        num_attention_heads: 2,
        num_key_value_heads: 1,
        head_dim: 64,
        max_position_embeddings: 512,
        ..ModelConfig::tiny()
    };
    let source = ModelSource::Dummy { config: Box::new(config), seed: 0, tokenizer: None };
    (source, "two tiny layers of noise".to_owned())
}
