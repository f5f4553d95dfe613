//! Which GPUs and utilizations go with a pool: what is left of the budget for
//! activations and the rest must be what these take.

use serde::Serialize;

use super::{Context, Facts, PoolRead, ROUNDING_GIB};
use crate::sizing::amount::{Amount, Source, gib};
use crate::sizing::gpu::GpuMemory;
use crate::sizing::settings::{MaxModelLen, Question, Settings, Version};
use crate::sizing::vllm::rules::Rules;
use crate::sizing::vllm::{STUDY, activation};
use crate::sizing::{Shape, weights};

/// Utilizations that people set, beside the defaults.
const UTILIZATIONS: [f64; 8] = [0.8, 0.85, 0.88, 0.9, 0.92, 0.95, 0.97, 0.98];
/// A V1 before CUDA graphs were counted.
const V1: Version = Version::new(0, 19);

/// What goes with a pool of one model.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Consistency {
    /// The model.
    pub model: String,
    /// Its weights.
    pub weights: Amount,
    /// What activations and the rest take, estimated.
    pub expected_residual: Amount,
    /// `total * utilization` of whatever GPU it was.
    pub budget: Amount,
    /// GPUs of the cards that go with it.
    pub combinations: Vec<Combination>,
    /// How many were tried and do not.
    pub num_excluded: u64,
}

/// A GPU at a utilization.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Combination {
    /// The GPU.
    pub gpu: String,
    /// Its memory as CUDA tells it.
    pub cuda_total: Amount,
    /// Share of it.
    pub utilization: f64,
    /// What is left of it for activations and the rest.
    pub residual: Amount,
}

/// Every GPU and utilization that goes with `pool`; `None` where its model is not
/// among those that are known.
pub(super) fn find(facts: &Facts, pool: &PoolRead, context: &Context<'_>) -> Option<Consistency> {
    let shape = context.models.iter().find(|shape| shape.name == pool.model)?;
    let said;
    let gpus = match facts.total_gib {
        Some(total) => {
            said = [as_said(total)?];
            &said[..]
        }
        None => context.gpus,
    };
    let utilizations = match facts.utilization.or(context.settings.gpu_memory_utilization) {
        Some(one) => vec![one],
        None => UTILIZATIONS.to_vec(),
    };
    let weights = weights_of(facts, shape, context.settings);
    let expected_residual = residual_of(facts, shape, context);
    let budget = pool.kv.plus(&weights).plus(&expected_residual);
    let mut combinations = Vec::new();
    let mut num_excluded = 0;
    for gpu in gpus {
        for utilization in &utilizations {
            let allowed = gpu.cuda_total.share(*utilization);
            let residual = allowed.minus(&weights).minus(&pool.kv);
            let meets = residual.low_bytes <= expected_residual.high_bytes
                && expected_residual.low_bytes <= residual.high_bytes;
            if meets {
                combinations.push(Combination {
                    gpu: gpu.name.clone(),
                    cuda_total: gpu.cuda_total.clone(),
                    utilization: *utilization,
                    residual,
                });
            } else {
                num_excluded += 1;
            }
        }
    }
    // Most people set none: the default first, then what is near it.
    let default = Rules::of(if facts.v1 { V1 } else { STUDY }).utilization;
    combinations.sort_by(|a, b| {
        let far = |one: &Combination| (one.utilization - default).abs();
        far(a).total_cmp(&far(b))
    });
    Some(Consistency {
        model: pool.model.clone(),
        weights,
        expected_residual,
        budget,
        combinations,
        num_excluded,
    })
}

/// A GPU whose memory was printed.
fn as_said(total: f64) -> Option<GpuMemory> {
    let bytes = [gib(total - ROUNDING_GIB)?, gib(total)?, gib(total + ROUNDING_GIB)?];
    Some(GpuMemory {
        name: "the GPU of the log".to_owned(),
        cuda_total: Amount::between(bytes, Source::Given, "as logged"),
        nvml_bytes: None,
        is_a100: false,
    })
}

fn weights_of(facts: &Facts, shape: &Shape, settings: &Settings) -> Amount {
    let logged = facts.weights_gib.and_then(|value| {
        let bytes = [gib(value - ROUNDING_GIB)?, gib(value)?, gib(value + ROUNDING_GIB)?];
        Some(Amount::between(bytes, Source::Given, "as logged"))
    });
    logged.unwrap_or_else(|| {
        let gpu = GpuMemory::given(0);
        weights::in_vllm(&Question { shape, gpu: &gpu, settings })
    })
}

/// What activations, memory beside the allocator, and in V1 maybe CUDA graphs take.
fn residual_of(facts: &Facts, shape: &Shape, context: &Context<'_>) -> Amount {
    let settings = Settings { max_model_len: MaxModelLen::Unset, ..context.settings.clone() };
    let length = facts.max_model_len.unwrap_or(shape.max_position_embeddings);
    let rules = Rules::of(if facts.v1 { V1 } else { STUDY });
    let batch = rules.profiled(&GpuMemory::given(0), &settings, length);
    let dtype_bytes = settings.dtype_bytes.unwrap_or(2);
    let given = |bytes: Option<u64>, estimate: Amount| match bytes {
        Some(bytes) => Amount::exact(bytes, Source::Given, "as given"),
        None => estimate,
    };
    let peak = activation::peak(shape, dtype_bytes, batch, rules.v1);
    let beside = given(settings.non_torch_bytes, activation::non_torch());
    let both = given(settings.activation_bytes, peak).plus(&beside);
    if !facts.v1 {
        return both.because("activations and memory beside the allocator");
    }
    let graphs = given(settings.cuda_graph_bytes, activation::cuda_graphs());
    let graphs = Amount { low_bytes: 0, expected_bytes: 0, ..graphs };
    both.plus(&graphs).because("activations, memory beside the allocator, maybe CUDA graphs")
}
