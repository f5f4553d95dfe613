//! What a step of the CUDA runner must move and multiply, kernel by kernel, and
//! the least time that a GPU card allows for it. Arithmetic over shapes: runs
//! nothing, and is checked by `tests/it/performance.rs`.

use yardstick::hardware::GpuCard;
use yardstick::infer::ModelConfig;

/// Most rows that are multiplied by our own kernels rather than by cuBLAS, and
/// with the gate in the same launch.
pub const GEMV_ROWS: usize = 4;

/// Keys of one split of decode attention.
pub const SPLIT: usize = 256;

const F32: usize = 4;

/// Bytes and FLOPs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Work {
    /// Bytes of weights read.
    pub weights: usize,
    /// Bytes of K and V read and written.
    pub kv: usize,
    /// Bytes of everything between two kernels, read and written: where they are
    /// few, L2 has them.
    pub activations: usize,
    /// Floating point operations of the products.
    pub flops: usize,
}

impl Work {
    /// Bytes that must come from memory, whatever L2 keeps.
    pub const fn compulsory(&self) -> usize {
        self.weights + self.kv
    }

    /// Bytes read and written.
    pub const fn bytes(&self) -> usize {
        self.compulsory() + self.activations
    }

    /// The least seconds: compulsory bytes over bandwidth, or FLOPs over peak.
    pub fn floor(&self, card: &GpuCard) -> f64 {
        bandwidth_time(self.compulsory(), card).max(compute_time(self.flops, card))
    }

    fn times(self, count: usize) -> Self {
        Self {
            weights: self.weights * count,
            kv: self.kv * count,
            activations: self.activations * count,
            flops: self.flops * count,
        }
    }
}

impl std::ops::Add for Work {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            weights: self.weights + other.weights,
            kv: self.kv + other.kv,
            activations: self.activations + other.activations,
            flops: self.flops + other.flops,
        }
    }
}

/// Seconds that the card takes to move so many bytes at its peak.
pub fn bandwidth_time(bytes: usize, card: &GpuCard) -> f64 {
    bytes as f64 / (card.bandwidth_gb_per_s * 1e9)
}

/// Seconds that the card takes for so many FLOPs at its bf16 peak.
pub fn compute_time(flops: usize, card: &GpuCard) -> f64 {
    flops as f64 / (card.bf16_tflop_per_s * 1e12)
}

/// What limits a kernel, for what is expected of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A product of few rows by our own kernel.
    Gemv,
    /// A product by cuBLAS.
    Gemm,
    /// Attention of single tokens.
    DecodeAttention,
    /// Attention of prompts.
    PrefillAttention,
    /// Reads and writes activations.
    Elementwise,
}

/// A kernel over a whole step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Part {
    /// What it does.
    pub name: &'static str,
    /// What limits it.
    pub kind: Kind,
    /// How often it is launched.
    pub launches: usize,
    /// All launches together.
    pub work: Work,
}

/// The shape of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Step {
    /// Tokens computed.
    pub rows: usize,
    /// Tokens whose logits are computed.
    pub logit_rows: usize,
    /// Keys that must be read: of each sequence once.
    pub keys: usize,
    /// Pairs of a token and a key that it sees.
    pub pairs: usize,
    /// Partial results of decode attention; none where prompts are computed.
    pub splits: Option<usize>,
}

impl Step {
    /// One token of each of `batch` sequences that sees `context` keys, its own counted.
    pub const fn decode(batch: usize, context: usize) -> Self {
        let splits = context.div_ceil(SPLIT);
        // A single split is the result.
        let partials = if splits > 1 { batch * splits } else { 0 };
        let keys = batch * context;
        Self { rows: batch, logit_rows: batch, keys, pairs: keys, splits: Some(partials) }
    }

    /// Tokens `past .. past + len` of one prompt, whose last draws a token if `is_last`.
    pub const fn chunk(past: usize, len: usize, is_last: bool) -> Self {
        let pairs = len * past + len * (len + 1) / 2;
        let logit_rows = if is_last { 1 } else { 0 };
        Self { rows: len, logit_rows, keys: past + len, pairs, splits: None }
    }

    /// A prompt of `len` tokens in chunks of at most `budget`.
    pub fn prompt(len: usize, budget: usize) -> Vec<Self> {
        let chunk = |past: usize| Self::chunk(past, budget.min(len - past), past + budget >= len);
        (0..len).step_by(budget.max(1)).map(chunk).collect()
    }

    /// The kernels of this step in the order of their first launch, matrices and
    /// activations of `size` bytes an element.
    pub fn parts(&self, config: &ModelConfig, size: usize) -> Vec<Part> {
        let ModelConfig { hidden_size: hidden, intermediate_size: inner, head_dim, .. } = *config;
        let (heads, kv_heads) = (config.num_attention_heads, config.num_key_value_heads);
        let (q, kv) = (heads * head_dim, kv_heads * head_dim);
        let qkv = q + 2 * kv;
        let layers = config.num_hidden_layers;
        let Self { rows, logit_rows, keys, pairs, splits } = *self;
        let few = rows <= GEMV_ROWS;
        let kind = |rows: usize| if rows <= GEMV_ROWS { Kind::Gemv } else { Kind::Gemm };
        // `[rows, k]` times `[n, k]`; `out` is what an element of the result moves.
        let product = |rows: usize, n: usize, k: usize, out: usize| Work {
            weights: n * k * size,
            activations: rows * (k * size + n * out),
            flops: 2 * rows * n * k,
            ..Work::default()
        };
        let norm = |rows: usize| Work {
            weights: hidden * F32,
            activations: rows * hidden * (F32 + size),
            ..Work::default()
        };
        let activations = |activations: usize| Work { activations, ..Work::default() };
        let mut parts = Vec::new();
        let mut push = |name, kind, launches, work: Work| {
            parts.push(Part { name, kind, launches, work: work.times(launches) });
        };
        let table = Work { weights: rows * hidden * size, ..activations(rows * hidden * F32) };
        push("embedding", Kind::Elementwise, 1, table);
        push("norm", Kind::Elementwise, 2 * layers, norm(rows));
        push("qkv", kind(rows), layers, product(rows, qkv, hidden, size));
        let rope = Work {
            kv: rows * 2 * kv * size,
            ..activations(rows * ((qkv + q) * size + head_dim * F32))
        };
        push("rope + KV write", Kind::Elementwise, layers, rope);
        let attention = Work {
            kv: keys * 2 * kv * size,
            flops: 4 * head_dim * heads * pairs,
            ..activations(rows * 2 * q * size)
        };
        match splits {
            Some(splits) => {
                push("attention", Kind::DecodeAttention, layers, attention);
                let partials = activations(splits * heads * (head_dim + 4) * F32 * 2);
                push("attention merge", Kind::Elementwise, layers, partials);
            }
            None => push("attention", Kind::PrefillAttention, layers, attention),
        }
        // Added to the residual stream, which is read and written.
        push("o", kind(rows), layers, product(rows, hidden, q, 2 * F32));
        if few {
            let gated = product(rows, 2 * inner, hidden, size);
            let saved = rows * inner * size;
            let gated = Work { activations: gated.activations - saved, ..gated };
            push("gate_up + silu", Kind::Gemv, layers, gated);
        } else {
            push("gate_up", Kind::Gemm, layers, product(rows, 2 * inner, hidden, size));
            push("silu", Kind::Elementwise, layers, activations(rows * 3 * inner * size));
        }
        push("down", kind(rows), layers, product(rows, hidden, inner, 2 * F32));
        if logit_rows > 0 {
            let vocab = config.vocab_size;
            push("last norm", Kind::Elementwise, 1, norm(logit_rows));
            push("head", kind(logit_rows), 1, product(logit_rows, vocab, hidden, F32));
            let draw = activations(logit_rows * (vocab * F32 + size_of::<u32>()));
            push("sampling", Kind::Elementwise, 1, draw);
        }
        parts
    }

    /// All of a step.
    pub fn work(&self, config: &ModelConfig, size: usize) -> Work {
        self.parts(config, size).iter().fold(Work::default(), |sum, part| sum + part.work)
    }

    /// Launches of a step.
    pub fn launches(&self, config: &ModelConfig) -> usize {
        self.parts(config, 2).iter().map(|part| part.launches).sum()
    }

    /// The least seconds: kernels run one after another, so the sum of theirs.
    pub fn floor(&self, config: &ModelConfig, size: usize, card: &GpuCard) -> f64 {
        self.parts(config, size).iter().map(|part| part.work.floor(card)).sum()
    }
}

/// The least seconds of several steps.
pub fn floor_of(steps: &[Step], config: &ModelConfig, size: usize, card: &GpuCard) -> f64 {
    steps.iter().map(|step| step.floor(config, size, card)).sum()
}

/// What a card is expected to reach, as shares of its peaks. Guesses with
/// reasons, which `docs/PERFORMANCE.md` gives; nothing here was measured.
#[derive(Debug, Clone, Copy)]
pub struct Expectation {
    /// Name of the card.
    pub card: &'static str,
    /// Of the bandwidth, by one long read.
    pub read: f64,
    /// Of the bandwidth, by cuBLAS with few rows.
    pub gemm_read: f64,
    /// Of the bandwidth, by decode attention.
    pub attention_read: f64,
    /// Of the FLOPs, by cuBLAS with many rows.
    pub gemm_flops: f64,
    /// Of the FLOPs, by attention of prompts.
    pub attention_flops: f64,
}

/// Seconds that a launch within a graph costs beyond its bytes: the gap to the
/// next, the trip to memory before the first byte, and the last blocks.
const LAUNCH: f64 = 2.5e-6;

/// Seconds that one split of decode attention takes, however few there are.
const SPLIT_TIME: f64 = 3e-6;

/// Seconds of the host between two steps, in which the device waits.
const HOST: f64 = 30e-6;

/// What is expected of the cards in the tables.
pub const EXPECTATIONS: [Expectation; 3] = [
    Expectation {
        card: "L4",
        read: 0.90,
        gemm_read: 0.85,
        attention_read: 0.80,
        gemm_flops: 0.50,
        attention_flops: 0.30,
    },
    Expectation {
        card: "A100-80GB-SXM",
        read: 0.88,
        gemm_read: 0.80,
        attention_read: 0.75,
        gemm_flops: 0.70,
        attention_flops: 0.40,
    },
    Expectation {
        card: "H100-SXM",
        read: 0.90,
        gemm_read: 0.75,
        attention_read: 0.70,
        gemm_flops: 0.60,
        attention_flops: 0.25,
    },
];

impl Expectation {
    /// Seconds expected of a step, graphs on.
    pub fn time(&self, step: &Step, config: &ModelConfig, size: usize, card: &GpuCard) -> f64 {
        let part = |part: &Part| {
            let (read, flops, least) = match part.kind {
                Kind::Gemv => (self.read, f64::INFINITY, 0.0),
                Kind::Gemm => (self.gemm_read, self.gemm_flops, 0.0),
                Kind::DecodeAttention => {
                    (self.attention_read, f64::INFINITY, SPLIT_TIME * part.launches as f64)
                }
                Kind::PrefillAttention => (self.read, self.attention_flops, 0.0),
                Kind::Elementwise => (self.read, f64::INFINITY, 0.0),
            };
            let bytes = bandwidth_time(part.work.bytes(), card) / read;
            let flops = compute_time(part.work.flops, card) / flops;
            bytes.max(flops).max(least) + LAUNCH * part.launches as f64
        };
        step.parts(config, size).iter().map(part).sum::<f64>() + HOST
    }
}
