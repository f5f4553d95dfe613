//! What to do about a vLLM that does not start, with numbers: each way is one change,
//! sized again with it made. What does not start it alone is no way out; the
//! cheapest comes first.

use super::Pool;
use crate::hardware::gpu_cards;
use crate::sizing::amount::{Count, as_gib};
use crate::sizing::answer::{Verdict, WayOut};
use crate::sizing::gpu::GpuMemory;
use crate::sizing::settings::{KvType, MaxModelLen, Question, Settings};
use crate::sizing::weights;

/// Sequences at once below which a sampler's rows are not worth saving.
const FEWER_SEQS: u64 = 64;
/// Tokens of a step that V1 takes on most GPUs.
const SMALLER_STEP: u64 = 2048;
/// Times that a length is shortened before it is given up: it depends on itself in V0.
const ROUNDS: usize = 32;

/// Every change that makes `question`, whose `pool` starts as `starts` says, start more surely.
pub(super) fn all(question: &Question<'_>, pool: &Pool, starts: Verdict) -> Vec<WayOut> {
    if starts == Verdict::Yes {
        return Vec::new();
    }
    let search = Search { question, pool, now: starts };
    [
        search.shorter(),
        search.other_share(),
        search.fewer_seqs(),
        search.smaller_steps(),
        search.kv_in_fp8(),
        search.quantized(),
        search.larger_gpu(),
    ]
    .into_iter()
    .flatten()
    .filter(|way| way.starts.is_way_out_of(starts))
    .collect()
}

struct Search<'a> {
    question: &'a Question<'a>,
    pool: &'a Pool,
    now: Verdict,
}

impl Search<'_> {
    /// Whether `changed` starts, and the tokens that its pool holds.
    fn outcome(&self, changed: &Question<'_>) -> Option<(Verdict, Count)> {
        let answer = Pool::new(changed, self.pool.rules).ok()?.answer(changed);
        Some((answer.starts, answer.tokens))
    }

    /// The outcome under other settings.
    fn under(&self, settings: &Settings) -> Option<(Verdict, Count)> {
        self.outcome(&Question { settings, ..*self.question })
    }

    /// A length that fits as expected, and one that fits within all bounds.
    fn shorter(&self) -> Option<WayOut> {
        let safe = self.fitting(|blocks| blocks.low);
        let likely =
            if self.now.is_expected() { None } else { self.fitting(|blocks| blocks.expected) };
        let length = likely.or(safe)?;
        let (starts, tokens) = self.under(&with_len(self.question.settings, length))?;
        let cost = match safe.filter(|safe| *safe != length) {
            Some(safe) => format!("surely up to {safe}"),
            None => "longer ones are refused".to_owned(),
        };
        Some(WayOut { change: format!("--max-model-len {length}"), starts, tokens, cost })
    }

    /// The longest length that fits into a bound of the blocks that it leaves.
    fn fitting(&self, bound: fn(Count) -> u64) -> Option<u64> {
        let mut length = self.pool.max_model_len;
        for _ in 0..ROUNDS {
            let settings = with_len(self.question.settings, length);
            let changed = Question { settings: &settings, ..*self.question };
            let changed = Pool::new(&changed, self.pool.rules).ok()?;
            let fits = changed.pages.longest(bound(changed.blocks), length);
            if fits == 0 || fits == length {
                return (fits > 0).then_some(length);
            }
            length = fits;
        }
        None
    }

    /// The least share that does, or where more is asked for than is free, the
    /// largest; in hundredths.
    fn other_share(&self) -> Option<WayOut> {
        let Self { question, pool, now } = self;
        if question.settings.kv_cache_memory_bytes.is_some() {
            return None;
        }
        let total = pool.total.expected_bytes;
        let most = (pool.free().expected_bytes as f64 / total as f64 * 100.0) as u32;
        let present = (pool.utilization * 100.0).floor() as u32;
        let shares: Vec<u32> = if pool.is_free() == Verdict::Yes {
            (present + 1..=most).collect()
        } else {
            (1..=present.min(most)).rev().collect()
        };
        let at = |hundredths: u32| {
            let gpu_memory_utilization = Some(f64::from(hundredths) / 100.0);
            self.under(&Settings { gpu_memory_utilization, ..question.settings.clone() })
        };
        let first = |does: &dyn Fn(Verdict) -> bool| {
            shares.iter().copied().find(|share| at(*share).is_some_and(|(starts, _)| does(starts)))
        };
        let share = first(&|starts| starts.is_way_out_of(*now))?;
        let (starts, tokens) = at(share)?;
        let left = total - pool.total.share(f64::from(share) / 100.0).expected_bytes;
        let graphs = if pool.rules.graphs_in_budget { "" } else { " for graphs" };
        let mut cost = format!("{:.2} GiB left{graphs}", as_gib(left));
        if let Some(surely) = first(&|starts| starts == Verdict::Yes).filter(|one| *one != share) {
            cost.push_str(&format!("; surely at {:.2}", f64::from(surely) / 100.0));
        }
        let change = format!("--gpu-memory-utilization {:.2}", f64::from(share) / 100.0);
        Some(WayOut { change, starts, tokens, cost })
    }

    /// Fewer rows for the sampler, where these are the peak.
    fn fewer_seqs(&self) -> Option<WayOut> {
        let settings = self.question.settings;
        let seqs = self.pool.batch.seqs.min(FEWER_SEQS);
        let (starts, tokens) =
            self.under(&Settings { max_num_seqs: Some(seqs), ..settings.clone() })?;
        let cost = format!("{seqs} requests at once");
        Some(WayOut { change: format!("--max-num-seqs {seqs}"), starts, tokens, cost })
    }

    /// Prompts in chunks, where an MLP over all tokens of a step is the peak. V0 refuses
    /// steps that are shorter than the longest prompt, unless it may split prompts.
    fn smaller_steps(&self) -> Option<WayOut> {
        let Self { question, pool, .. } = self;
        let (step, change) = match question.settings.max_num_batched_tokens {
            _ if pool.rules.v1 => {
                (SMALLER_STEP, format!("--max-num-batched-tokens {SMALLER_STEP}"))
            }
            None => (pool.rules.v0_chunk_tokens(), "--enable-chunked-prefill".to_owned()),
            Some(_) => return None,
        };
        let max_num_batched_tokens = Some(step).filter(|step| *step < pool.batch.tokens)?;
        let (starts, tokens) = self.under(&Settings {
            max_num_batched_tokens: Some(max_num_batched_tokens),
            ..question.settings.clone()
        })?;
        Some(WayOut { change, starts, tokens, cost: format!("prompts in chunks of {step}") })
    }

    fn kv_in_fp8(&self) -> Option<WayOut> {
        let kv_type = Some(KvType::Fp8);
        let (starts, tokens) =
            self.under(&Settings { kv_type, ..self.question.settings.clone() })?;
        let change = "--kv-cache-dtype fp8".to_owned();
        Some(WayOut { change, starts, tokens, cost: "K and V less precise".to_owned() })
    }

    fn quantized(&self) -> Option<WayOut> {
        let shape = weights::as_awq(self.question.shape);
        let settings =
            Settings { weights_bytes: None, dtype_bytes: None, ..self.question.settings.clone() };
        let changed = Question { shape: &shape, settings: &settings, ..*self.question };
        let (starts, tokens) = self.outcome(&changed)?;
        let change = "weights in 4 bits (AWQ, GPTQ)".to_owned();
        Some(WayOut { change, starts, tokens, cost: "another checkpoint".to_owned() })
    }

    /// The smallest GPU of the cards on which it surely starts.
    fn larger_gpu(&self) -> Option<WayOut> {
        let total = self.pool.total.expected_bytes;
        let mut gpus: Vec<GpuMemory> = gpu_cards().iter().filter_map(GpuMemory::of_card).collect();
        gpus.retain(|gpu| gpu.cuda_total.expected_bytes > total);
        gpus.sort_by_key(|gpu| gpu.cuda_total.expected_bytes);
        gpus.iter().find_map(|gpu| {
            let (starts, tokens) = self.outcome(&Question { gpu, ..*self.question })?;
            (starts == Verdict::Yes).then(|| WayOut {
                change: format!("a larger GPU: {}", gpu.name),
                starts,
                tokens,
                cost: format!(
                    "{:.1} GiB instead of {:.1}",
                    as_gib(gpu.cuda_total.expected_bytes),
                    as_gib(total)
                ),
            })
        })
    }
}

fn with_len(settings: &Settings, length: u64) -> Settings {
    Settings { max_model_len: MaxModelLen::Tokens(length), ..settings.clone() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hardware::find_gpu_card_named;
    use crate::sizing::EngineAnswer;
    use crate::sizing::settings::Version;
    use crate::sizing::shape::Shape;
    use crate::sizing::shape::tests::{llama_3b, llama_8b};
    use crate::sizing::vllm::{CURRENT, STUDY, size};
    use crate::units::GIB;

    /// `question`, answered after its reader did what the way says.
    fn followed(way: &WayOut, question: &Question<'_>, version: Version) -> EngineAnswer {
        let mut settings = question.settings.clone();
        let (mut shape, mut gpu) = (question.shape.clone(), question.gpu.clone());
        match way.change.split_once(' ') {
            Some(("--max-model-len", length)) => {
                settings.max_model_len = MaxModelLen::Tokens(length.parse().unwrap());
            }
            Some(("--gpu-memory-utilization", share)) => {
                settings.gpu_memory_utilization = Some(share.parse().unwrap());
            }
            Some(("--max-num-seqs", seqs)) => settings.max_num_seqs = Some(seqs.parse().unwrap()),
            Some(("--max-num-batched-tokens", tokens)) => {
                settings.max_num_batched_tokens = Some(tokens.parse().unwrap());
            }
            Some(("--kv-cache-dtype", kv)) => settings.kv_type = Some(kv.parse().unwrap()),
            Some(("weights", _)) => shape = weights::as_awq(&shape),
            Some(("a", other)) => {
                let name = other.strip_prefix("larger GPU: ").unwrap();
                gpu = GpuMemory::of_card(find_gpu_card_named(name).unwrap()).unwrap();
            }
            None if way.change == "--enable-chunked-prefill" => {
                settings.max_num_batched_tokens = Some(2048);
            }
            other => panic!("{other:?}"),
        }
        size(&Question { shape: &shape, gpu: &gpu, settings: &settings }, version).unwrap()
    }

    /// The ways of every question of a grid, each with the verdict that there was.
    fn every_way(mut each: impl FnMut(&Question<'_>, Version, Verdict, &WayOut)) {
        let wide = Shape { vocab_size: 1 << 20, ..llama_3b() };
        let given = [4, 6, 8, 16, 24, 40].map(|gib| GpuMemory::given(gib * GIB));
        let cards = gpu_cards().iter().filter_map(GpuMemory::of_card);
        let gpus: Vec<GpuMemory> = cards.chain(given).collect();
        for shape in [llama_3b(), llama_8b(), wide] {
            for gpu in &gpus {
                let large_steps = (Some(0.97), Some(1 << 15));
                for (share, step) in
                    [(None, None), (Some(0.5), None), (Some(1.0), None), large_steps]
                {
                    for length in [2048, 30_000, 131_072] {
                        let settings = Settings {
                            gpu_memory_utilization: share,
                            max_num_batched_tokens: step,
                            max_model_len: MaxModelLen::Tokens(length),
                            ..Settings::default()
                        };
                        let question = Question { shape: &shape, gpu, settings: &settings };
                        for version in [STUDY, Version::new(0, 12), CURRENT] {
                            let answer = size(&question, version).unwrap();
                            for way in &answer.ways_out {
                                each(&question, version, answer.starts, way);
                            }
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn every_way_out_starts_it_alone_and_as_surely_as_it_says() {
        let mut kinds = std::collections::BTreeSet::new();
        every_way(|question, version, now, way| {
            let then = followed(way, question, version);
            assert!(then.starts.is_way_out_of(now), "{way:?} of {question:?}: {then:?}");
            assert_eq!((then.starts, then.tokens), (way.starts, way.tokens), "{way:?}");
            kinds.insert(way.change.split([' ', ':']).next().map(str::to_owned));
        });
        // None of the ways went untested.
        assert_eq!(kinds.len(), 8, "{kinds:?}");
    }

    #[test]
    fn fewer_sequences_are_no_way_out_of_the_study_s_error() {
        let shape = llama_3b();
        let gpu = GpuMemory::of_card(find_gpu_card_named("L4").unwrap()).unwrap();
        for version in [STUDY, CURRENT] {
            let settings = Settings::default();
            let question = Question { shape: &shape, gpu: &gpu, settings: &settings };
            let answer = size(&question, version).unwrap();
            assert!(answer.ways_out.len() >= 5);
            assert!(answer.ways_out.iter().all(|way| !way.change.contains("--max-num-seqs")));
        }
    }

    #[test]
    fn a_share_that_is_not_free_is_lowered() {
        let (shape, gpu) = (llama_3b(), GpuMemory::given(22 * GIB));
        let settings = Settings {
            gpu_memory_utilization: Some(1.0),
            max_model_len: MaxModelLen::Tokens(8192),
            ..Settings::default()
        };
        let question = Question { shape: &shape, gpu: &gpu, settings: &settings };
        let answer = size(&question, CURRENT).unwrap();
        assert!(answer.error.unwrap().contains("Free memory on device"));
        assert_eq!(answer.ways_out[0].change, "--gpu-memory-utilization 0.98");
        assert_eq!(answer.ways_out[0].cost, "0.44 GiB left; surely at 0.97");
    }

    #[test]
    fn where_nothing_helps_alone_it_is_said() {
        let (shape, gpu) = (llama_8b(), GpuMemory::given(4 * GIB));
        let settings = Settings { gpu_memory_utilization: Some(1.0), ..Settings::default() };
        let question = Question { shape: &shape, gpu: &gpu, settings: &settings };
        let answer = size(&question, CURRENT).unwrap();
        assert_eq!((answer.starts, answer.ways_out.len()), (Verdict::No, 0));
        assert_eq!(answer.notes, ["no change alone makes it start"]);
    }
}
