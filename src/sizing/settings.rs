//! What an engine is told: the settings that decide over memory, checked once.

use std::fmt;
use std::str::FromStr;

use serde::Serialize;

use super::gpu::GpuMemory;
use super::shape::Shape;

/// What K and V are stored as.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum KvType {
    /// Four bytes.
    F32,
    /// Two bytes, of bf16.
    Bf16,
    /// Two bytes, of IEEE's half precision.
    F16,
    /// One byte; vLLM.
    Fp8,
    /// GGML blocks of 32 in 34 bytes; Ollama.
    #[serde(rename = "q8_0")]
    Q8_0,
    /// GGML blocks of 32 in 18 bytes; Ollama.
    #[serde(rename = "q4_0")]
    Q4_0,
}

impl KvType {
    /// Bits that 32 elements take.
    #[must_use]
    pub const fn bits_per_32(self) -> u64 {
        match self {
            Self::F32 => 1024,
            Self::Bf16 | Self::F16 => 512,
            Self::Fp8 => 256,
            Self::Q8_0 => 272,
            Self::Q4_0 => 144,
        }
    }

    /// As engines call it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
            Self::F16 => "f16",
            Self::Fp8 => "fp8",
            Self::Q8_0 => "q8_0",
            Self::Q4_0 => "q4_0",
        }
    }
}

impl fmt::Display for KvType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for KvType {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "f32" | "float32" => Ok(Self::F32),
            "bf16" | "bfloat16" => Ok(Self::Bf16),
            "f16" | "fp16" | "float16" => Ok(Self::F16),
            "fp8" | "fp8_e4m3" | "fp8_e5m2" => Ok(Self::Fp8),
            "q8_0" => Ok(Self::Q8_0),
            "q4_0" => Ok(Self::Q4_0),
            _ => Err(format!(
                "`{text}` is no KV type: expected auto, f32, bf16, f16, fp8, fp8_e4m3, fp8_e5m2, \
                 q8_0 or q4_0"
            )),
        }
    }
}

/// The longest sequence that is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum MaxModelLen {
    /// Not set: the model's own, or the engine's default.
    #[default]
    Unset,
    /// `auto`: as long as fits (vLLM).
    Auto,
    /// So many tokens.
    Tokens(u64),
}

/// Release numbers, such as 0.7.3.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version {
    /// First number.
    pub major: u32,
    /// Second number.
    pub minor: u32,
    /// Third number, 0 where it is not said.
    pub patch: u32,
}

impl Version {
    /// `major.minor.0`.
    #[must_use]
    pub const fn new(major: u32, minor: u32) -> Self {
        Self { major, minor, patch: 0 }
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)?;
        if self.patch > 0 { write!(f, ".{}", self.patch) } else { Ok(()) }
    }
}

impl FromStr for Version {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("`{text}` is no version: expected numbers such as 0.7 or 0.21.1");
        let mut numbers = text.strip_prefix('v').unwrap_or(text).splitn(3, '.');
        let mut whole = || numbers.next().map(str::parse::<u32>);
        let (Some(Ok(major)), Some(Ok(minor))) = (whole(), whole()) else { return Err(wrong()) };
        // `3.post1`, `2rc1`, `1+cu128`: what follows the number changes no rule.
        let patch = match numbers.next() {
            None => 0,
            Some(rest) => {
                let end = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
                rest[..end].parse().map_err(|_| wrong())?
            }
        };
        Ok(Self { major, minor, patch })
    }
}

/// Lengths of the requests that are to be served.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Lengths {
    /// Tokens of a prompt.
    pub prompt_tokens: u64,
    /// Tokens of an answer.
    pub output_tokens: u64,
}

/// Settings and known parts; what is `None` is the engine's default or estimated.
#[derive(Debug, Clone, Default)]
pub struct Settings {
    /// Share of the GPU's memory.
    pub gpu_memory_utilization: Option<f64>,
    /// Longest sequence.
    pub max_model_len: MaxModelLen,
    /// Tokens in a block.
    pub block_size: Option<u64>,
    /// Bytes of a weight and an activation, where another than the model's is asked for.
    pub dtype_bytes: Option<u64>,
    /// What K and V are stored as.
    pub kv_type: Option<KvType>,
    /// Sequences in one step.
    pub max_num_seqs: Option<u64>,
    /// Tokens in one step.
    pub max_num_batched_tokens: Option<u64>,
    /// Ollama's slots.
    pub num_parallel: Option<u64>,
    /// Bytes of the weights.
    pub weights_bytes: Option<u64>,
    /// Bytes of the activation peak.
    pub activation_bytes: Option<u64>,
    /// Bytes that are taken beside the allocator.
    pub non_torch_bytes: Option<u64>,
    /// Bytes of CUDA graphs.
    pub cuda_graph_bytes: Option<u64>,
    /// The pool itself.
    pub kv_cache_memory_bytes: Option<u64>,
    /// Lengths for which concurrency is asked.
    pub lengths: Option<Lengths>,
}

impl Settings {
    /// Refuses what no engine takes.
    ///
    /// # Errors
    /// A sentence naming the setting and what it may be.
    pub fn check(&self) -> Result<(), String> {
        if let Some(share) = self.gpu_memory_utilization
            && !(share > 0.0 && share <= 1.0)
        {
            return Err(format!("gpu_memory_utilization is {share}: expected above 0, up to 1"));
        }
        let max_model_len = match self.max_model_len {
            MaxModelLen::Tokens(tokens) => Some(tokens),
            MaxModelLen::Unset | MaxModelLen::Auto => None,
        };
        let lengths = self.lengths.map(|l| l.prompt_tokens.saturating_add(l.output_tokens));
        let numbers = [
            ("max_model_len", max_model_len, 1 << 27),
            ("block_size", self.block_size, 1 << 16),
            ("max_num_seqs", self.max_num_seqs, 1 << 16),
            ("max_num_batched_tokens", self.max_num_batched_tokens, 1 << 24),
            ("num_parallel", self.num_parallel, 1 << 12),
            ("prompt and output tokens", lengths, 1 << 27),
        ];
        for (name, value, max) in numbers {
            if let Some(value) = value.filter(|value| !(1..=max).contains(value)) {
                return Err(format!("{name} is {value}: expected 1 to {max}"));
            }
        }
        Ok(())
    }
}

/// A model on a GPU under settings: what sizing is asked.
#[derive(Debug, Clone, Copy)]
pub struct Question<'a> {
    /// The model.
    pub shape: &'a Shape,
    /// The GPU.
    pub gpu: &'a GpuMemory,
    /// The settings.
    pub settings: &'a Settings,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_numbers_whatever_follows_them() {
        let parse = |text: &str| text.parse::<Version>();
        assert_eq!(parse("0.7"), Ok(Version::new(0, 7)));
        assert_eq!(parse("v0.6.4.post1"), Ok(Version { major: 0, minor: 6, patch: 4 }));
        assert_eq!(parse("0.18.2rc1.dev73+g"), Ok(Version { major: 0, minor: 18, patch: 2 }));
        assert!(Version::new(0, 21) > Version::new(0, 7));
        for wrong in ["", "seven", "1", "0.x", "-0.7", "0.7."] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn what_no_engine_takes_is_named() {
        let refused = |settings: Settings| settings.check().unwrap_err();
        for share in [0.0, -0.5, 1.01, f64::NAN] {
            let settings = Settings { gpu_memory_utilization: Some(share), ..Settings::default() };
            assert!(refused(settings).contains("expected above 0, up to 1"));
        }
        let zero = Settings { block_size: Some(0), ..Settings::default() };
        assert!(refused(zero).starts_with("block_size is 0"));
        let huge = Settings { max_model_len: MaxModelLen::Tokens(u64::MAX), ..Settings::default() };
        assert!(refused(huge).starts_with("max_model_len is"));
        assert!("int4".parse::<KvType>().unwrap_err().contains("q8_0"));
    }
}
