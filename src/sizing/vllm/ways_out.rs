//! What to do about a vLLM that does not start, with numbers: each way is sized
//! again with its change made, and the cheapest comes first.

use super::Pool;
use super::activation;
use crate::hardware::gpu_cards;
use crate::sizing::amount::Count;
use crate::sizing::answer::{Verdict, WayOut};
use crate::sizing::gpu::GpuMemory;
use crate::sizing::settings::{KvType, MaxModelLen, Question, Settings};
use crate::sizing::weights;

/// Sequences at once below which a sampler's rows are not worth saving.
const FEWER_SEQS: u64 = 64;
/// Times that a length is shortened before it is given up: it depends on itself in V0.
const ROUNDS: usize = 32;

/// Every way that changes something, the cheapest first.
pub(super) fn all(question: &Question<'_>, pool: &Pool) -> Vec<WayOut> {
    [
        shorter(question, pool),
        larger_share(question, pool),
        fewer_seqs(question, pool),
        kv_in_fp8(question, pool),
        quantized(question, pool),
        larger_gpu(question, pool),
    ]
    .into_iter()
    .flatten()
    .filter(|way| way.tokens.high > 0)
    .collect()
}

/// The way's outcome, and the pool that it leaves.
fn outcome(question: &Question<'_>, pool: &Pool) -> Option<(Verdict, Count)> {
    let changed = Pool::new(question, pool.rules).ok()?;
    let answer = changed.answer(question);
    Some((answer.starts, answer.tokens))
}

/// A length that fits as expected, and one that fits within all bounds.
fn shorter(question: &Question<'_>, pool: &Pool) -> Option<WayOut> {
    let fitting = |bound: fn(Count) -> u64| {
        let mut length = pool.max_model_len;
        for _ in 0..ROUNDS {
            let settings = with_len(question.settings, length);
            let changed = Pool::new(&Question { settings: &settings, ..*question }, pool.rules);
            let changed = changed.ok()?;
            let fits = changed.pages.longest(bound(changed.blocks), length);
            if fits == 0 || fits == length {
                return (fits > 0).then_some(length);
            }
            length = fits;
        }
        None
    };
    let safe = fitting(|blocks| blocks.low);
    let length = fitting(|blocks| blocks.expected).or(safe)?;
    let settings = with_len(question.settings, length);
    let (starts, tokens) = outcome(&Question { settings: &settings, ..*question }, pool)?;
    let cost = match safe.filter(|safe| *safe != length) {
        Some(safe) => format!("surely up to {safe}"),
        None => "longer ones are refused".to_owned(),
    };
    Some(WayOut { change: format!("--max-model-len {length}"), starts, tokens, cost })
}

fn with_len(settings: &Settings, length: u64) -> Settings {
    Settings { max_model_len: MaxModelLen::Tokens(length), ..settings.clone() }
}

/// The least share that holds the asked length, in hundredths.
fn larger_share(question: &Question<'_>, pool: &Pool) -> Option<WayOut> {
    if question.settings.kv_cache_memory_bytes.is_some() {
        return None;
    }
    let free = pool.total.minus(&activation::context());
    let most = (free.expected_bytes as f64 / pool.total.expected_bytes as f64 * 100.0) as u32;
    let now = (pool.utilization * 100.0).floor() as u32;
    let at = |hundredths: u32| {
        let share = f64::from(hundredths) / 100.0;
        let settings =
            Settings { gpu_memory_utilization: Some(share), ..question.settings.clone() };
        outcome(&Question { settings: &settings, ..*question }, pool)
    };
    let shares = || (now + 1)..=most;
    let found = shares().find(|share| at(*share).is_some_and(|(starts, _)| starts.is_expected()));
    let surely =
        shares().find(|share| at(*share).is_some_and(|(starts, _)| starts == Verdict::Yes));
    let share = found.or_else(|| shares().next_back())?;
    let (starts, tokens) = at(share)?;
    let left =
        pool.total.expected_bytes - pool.total.share(f64::from(share) / 100.0).expected_bytes;
    let graphs = if pool.rules.graphs_in_budget { "" } else { " also for graphs" };
    let mut cost = format!("{:.2} GiB left{graphs}", super::as_gib(left));
    match surely {
        Some(surely) if surely != share => {
            cost.push_str(&format!("; surely at {:.2}", f64::from(surely) / 100.0));
        }
        Some(_) => {}
        None if found.is_none() => cost.push_str("; more is not free"),
        None => {}
    }
    Some(WayOut {
        change: format!("--gpu-memory-utilization {:.2}", f64::from(share) / 100.0),
        starts,
        tokens,
        cost,
    })
}

/// Fewer rows for the sampler, fewer tokens a step, where that lowers the peak.
fn fewer_seqs(question: &Question<'_>, pool: &Pool) -> Option<WayOut> {
    if question.settings.activation_bytes.is_some() {
        return None;
    }
    let seqs = pool.batch.seqs.min(FEWER_SEQS);
    let tokens = pool.batch.tokens.min(2048);
    let settings = Settings {
        max_num_seqs: Some(seqs),
        max_num_batched_tokens: Some(tokens),
        ..question.settings.clone()
    };
    let (starts, held) = outcome(&Question { settings: &settings, ..*question }, pool)?;
    if held.expected <= pool.tokens().expected {
        return None;
    }
    let mut change = format!("--max-num-seqs {seqs}");
    if tokens < pool.batch.tokens {
        change.push_str(&format!(" --max-num-batched-tokens {tokens}"));
    }
    let cost = format!("at most {seqs} requests at once");
    Some(WayOut { change, starts, tokens: held, cost })
}

fn kv_in_fp8(question: &Question<'_>, pool: &Pool) -> Option<WayOut> {
    if pool.kv_type == KvType::Fp8 {
        return None;
    }
    let settings = Settings { kv_type: Some(KvType::Fp8), ..question.settings.clone() };
    let (starts, tokens) = outcome(&Question { settings: &settings, ..*question }, pool)?;
    let change = "--kv-cache-dtype fp8".to_owned();
    Some(WayOut { change, starts, tokens, cost: "K and V less precise".to_owned() })
}

fn quantized(question: &Question<'_>, pool: &Pool) -> Option<WayOut> {
    let shape = weights::as_awq(question.shape);
    if shape.stored == question.shape.stored {
        return None;
    }
    let settings = Settings { weights_bytes: None, dtype_bytes: None, ..question.settings.clone() };
    let changed = Question { shape: &shape, settings: &settings, ..*question };
    let (starts, tokens) = outcome(&changed, pool)?;
    if tokens.expected <= pool.tokens().expected {
        return None;
    }
    Some(WayOut {
        change: "weights in 4 bits (AWQ, GPTQ)".to_owned(),
        starts,
        tokens,
        cost: "another checkpoint".to_owned(),
    })
}

/// The smallest GPU of the cards on which it starts.
fn larger_gpu(question: &Question<'_>, pool: &Pool) -> Option<WayOut> {
    let mut gpus: Vec<GpuMemory> = gpu_cards().iter().filter_map(GpuMemory::of_card).collect();
    gpus.sort_by_key(|gpu| gpu.cuda_total.expected_bytes);
    gpus.into_iter()
        .filter(|gpu| gpu.cuda_total.expected_bytes > pool.total.expected_bytes)
        .find_map(|gpu| {
            let changed = Question { gpu: &gpu, ..*question };
            let (starts, tokens) = outcome(&changed, pool)?;
            (starts == Verdict::Yes).then(|| WayOut {
                change: format!("a larger GPU: {}", gpu.name),
                starts,
                tokens,
                cost: format!(
                    "{:.1} GiB instead of {:.1}",
                    super::as_gib(gpu.cuda_total.expected_bytes),
                    super::as_gib(pool.total.expected_bytes)
                ),
            })
        })
}
