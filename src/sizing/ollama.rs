//! Ollama's arithmetic: the context that it chooses by the GPU's memory, the slots
//! that share nothing, and its own estimate of what it takes. Facts and their
//! sources are in docs/SIZING.md.

use std::collections::BTreeMap;

use super::amount::{Amount, Count, Source, as_gib};
use super::answer::{Concurrency, EngineAnswer, Part, Verdict, WayOut, request_lengths};
use super::settings::{KvType, MaxModelLen, Question, Settings, Version};
use super::shape::Shape;
use super::vllm::activation;
use super::weights;
use crate::units::{GIB, MIB, format_bytes};

/// The newest version whose rules are known: the main branch of August 2026.
pub const CURRENT: Version = Version::new(0, 24);
/// From here on the context depends on the GPU's memory (#13946; the release is that of
/// #14116).
const TIERS_FROM: Version = Version { major: 0, minor: 15, patch: 5 };
/// Until here the context is 2048 and there are up to four slots: so logs of early 2025;
/// that it was so up to here is assumed.
const OF_2024_BELOW: Version = Version::new(0, 6);

/// Least GPU memory of each tier and the context that goes with it.
const TIERS: [(u64, u64); 3] = [(47 * GIB, 262_144), (23 * GIB, 32_768), (0, 4_096)];

/// What Ollama of `version` makes of `question`.
///
/// # Errors
/// A sentence, for settings that it does not take and versions whose defaults are not known.
pub fn size(question: &Question<'_>, version: Version) -> Result<EngineAnswer, String> {
    let load = Load::new(question, version)?;
    let Load { kv_type, num_ctx, slots, .. } = load;
    Ok(EngineAnswer {
        engine: "ollama",
        title: format!("Ollama {}", load.name),
        settings: BTreeMap::from([
            ("num_ctx", num_ctx.to_string()),
            ("num_parallel", slots.to_string()),
            ("kv_cache_type", kv_type.to_string()),
        ]),
        total: Some(question.gpu.cuda_total.clone()),
        budget: None,
        kv_bytes_per_token: question.shape.kv_bytes_per_token(kv_type),
        block_size: None,
        blocks: None,
        tokens: Count::exact(num_ctx * slots),
        max_model_len: num_ctx,
        longest_request: Count::exact(num_ctx),
        concurrency: request_lengths(question.settings, num_ctx)
            .into_iter()
            .map(|tokens| Concurrency::of(tokens, Count::exact(slots), 1))
            .collect(),
        starts: Verdict::Yes,
        error: None,
        ways_out: load.ways_out(question),
        notes: load.notes(question),
        parts: vec![
            Part::inside("weights", load.file),
            Part::inside("compute graph", load.graph),
            Part::inside("CUDA context", load.context),
            Part::inside("KV cache", load.kv),
        ],
    })
}

/// A model as Ollama loads it.
#[derive(Clone)]
struct Load {
    name: String,
    kv_type: KvType,
    num_ctx: u64,
    slots: u64,
    file: Amount,
    graph: Amount,
    context: Amount,
    kv: Amount,
}

impl Load {
    fn new(question: &Question<'_>, version: Version) -> Result<Self, String> {
        let Question { shape, settings, .. } = *question;
        let kv_type = kv_type(settings)?;
        let Defaults { name, num_ctx, slots } = Defaults::of(version, question)?;
        let num_ctx = match settings.max_model_len {
            MaxModelLen::Tokens(tokens) => tokens,
            MaxModelLen::Unset | MaxModelLen::Auto => num_ctx,
        }
        .min(shape.max_position_embeddings);
        let slots = settings.num_parallel.unwrap_or(slots);
        let kv = kv_amount(shape, kv_type, num_ctx, slots);
        let (file, graph) = (weights::in_ollama(shape), compute_graph());
        let context = activation::context();
        Ok(Self { name, kv_type, num_ctx, slots, file, graph, context, kv })
    }

    /// What K and V may take before a layer has to go.
    fn room(&self, question: &Question<'_>) -> Amount {
        question.gpu.cuda_total.minus(&self.file.plus(&self.graph).plus(&self.context))
    }

    /// Whether all of it stays on the GPU.
    fn stays(&self, question: &Question<'_>) -> Verdict {
        Verdict::of_rest(&self.room(question).minus(&self.kv))
    }

    /// The same with K and V stored as `kv_type`.
    fn with_kv_type(&self, question: &Question<'_>, kv_type: KvType) -> Self {
        let kv = kv_amount(question.shape, kv_type, self.num_ctx, self.slots);
        Self { kv_type, kv, ..self.clone() }
    }

    /// The longest context of a slot with which all of it stays on the GPU.
    fn longest(&self, question: &Question<'_>) -> Count {
        let (many, shape) = (1 << 20, question.shape);
        let per_token = kv_bytes(shape, self.kv_type, many, self.slots).div_ceil(many).max(1);
        let fits = self.room(question).count(per_token);
        fits.map(|tokens| tokens.min(shape.max_position_embeddings) / 256 * 256)
    }

    fn notes(&self, question: &Question<'_>) -> Vec<String> {
        let f16 = question.shape.kv_bytes_per_token(KvType::F16);
        let in_f16 =
            Amount::exact((self.num_ctx * self.slots).saturating_mul(f16), Source::Computed, "");
        let predicted = as_gib(self.file.plus(&in_f16).expected_bytes);
        let slots = self.slots;
        let mut notes = vec![
            format!("its own estimate: {predicted:.2} GiB, file and f16 K and V"),
            format!("cuts longer prompts; {slots} at once, the next waits for a whole answer"),
        ];
        if self.stays(question) != Verdict::Yes {
            notes.push(
                "what does not fit runs on the CPU, layer by layer: it starts all the same"
                    .to_owned(),
            );
        }
        notes
    }

    fn ways_out(&self, question: &Question<'_>) -> Vec<WayOut> {
        let (shape, longest) = (question.shape, self.longest(question).low);
        let (stays, mut ways) = (self.stays(question), Vec::new());
        if longest > 0 && (longest > self.num_ctx || stays != Verdict::Yes) {
            ways.push(WayOut {
                change: format!("OLLAMA_CONTEXT_LENGTH={longest}"),
                starts: Verdict::Yes,
                tokens: Count::exact(longest * self.slots),
                cost: "longest wholly on the GPU".to_owned(),
            });
        }
        let in_q8 = self.with_kv_type(question, KvType::Q8_0).stays(question);
        if self.kv_type == KvType::F16 && in_q8.is_way_out_of(stays) {
            let [q8, f16] = [KvType::Q8_0, KvType::F16].map(|kv| shape.kv_bytes_per_token(kv));
            ways.push(WayOut {
                change: "OLLAMA_KV_CACHE_TYPE=q8_0".to_owned(),
                starts: in_q8,
                tokens: Count::exact(self.num_ctx * self.slots),
                cost: format!(
                    "{} a token instead of {}; needs flash attention",
                    format_bytes(q8),
                    format_bytes(f16)
                ),
            });
        }
        ways
    }
}

struct Defaults {
    name: String,
    num_ctx: u64,
    slots: u64,
}

impl Defaults {
    fn of(version: Version, question: &Question<'_>) -> Result<Self, String> {
        let settings = question.settings;
        if version >= TIERS_FROM {
            let total = u64::try_from(question.gpu.cuda_total.expected_bytes).unwrap_or(0);
            let tier = TIERS.iter().find(|(least, _)| total >= *least);
            let num_ctx = tier.map_or(4_096, |(_, num_ctx)| *num_ctx);
            return Ok(Self { name: "(2026)".to_owned(), num_ctx, slots: 1 });
        }
        if version < OF_2024_BELOW {
            return Ok(Self { name: version.to_string(), num_ctx: 2_048, slots: 4 });
        }
        match (settings.max_model_len, settings.num_parallel) {
            (MaxModelLen::Tokens(num_ctx), Some(slots)) => {
                Ok(Self { name: version.to_string(), num_ctx, slots })
            }
            _ => Err(format!(
                "the defaults of Ollama {version} are not known here: give --max-model-len and \
                 --num-parallel, or a version below {OF_2024_BELOW} or from {TIERS_FROM} on"
            )),
        }
    }
}

fn kv_type(settings: &Settings) -> Result<KvType, String> {
    match settings.kv_type {
        None | Some(KvType::Bf16 | KvType::F16) => Ok(KvType::F16),
        Some(kv @ (KvType::Q8_0 | KvType::Q4_0)) => Ok(kv),
        Some(other) => Err(format!("Ollama has no KV type {other}: expected f16, q8_0 or q4_0")),
    }
}

/// Each slot keeps `num_ctx` tokens in every layer, and a window and a batch in a
/// layer with a window.
fn kv_bytes(shape: &Shape, kv: KvType, num_ctx: u64, slots: u64) -> u64 {
    /// Tokens of a batch that llama.cpp keeps beside the window.
    const BATCH: u64 = 512;
    let full = shape.num_full_layers() * num_ctx;
    let sliding = shape
        .sliding
        .map_or(0, |sliding| sliding.num_layers * num_ctx.min(sliding.window_tokens + BATCH));
    slots.saturating_mul(full + sliding).saturating_mul(shape.kv_bytes_per_token_and_layer(kv))
}

fn kv_amount(shape: &Shape, kv: KvType, num_ctx: u64, slots: u64) -> Amount {
    let basis = format!("{slots} x {num_ctx} tokens of {kv}");
    Amount::exact(kv_bytes(shape, kv, num_ctx, slots), Source::Computed, basis)
}

fn compute_graph() -> Amount {
    Amount::between(
        [128 * MIB, 300 * MIB, 800 * MIB],
        Source::Estimated,
        "0.5 to 0.7 GiB in logs of 14B to 32B models, less for small ones",
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::find_card;
    use crate::hardware::find_gpu_card_named;
    use crate::sizing::gpu::GpuMemory;

    fn answer(gpu: &str, settings: &Settings, version: Version) -> Result<EngineAnswer, String> {
        let card = find_card("llama-3.2-3b-instruct").unwrap();
        let shape = Shape::of_config(&card.name, &card.config);
        let gpu = GpuMemory::of_card(find_gpu_card_named(gpu).unwrap()).unwrap();
        size(&Question { shape: &shape, gpu: &gpu, settings }, version)
    }

    fn kv_gib(answer: &EngineAnswer) -> f64 {
        let kv = answer.parts.iter().find(|part| part.name == "KV cache").unwrap();
        as_gib(kv.amount.expected_bytes)
    }

    #[test]
    fn context_follows_the_gpus_memory() {
        let default = Settings::default();
        let ctx = |gpu| answer(gpu, &default, CURRENT).unwrap().max_model_len;
        assert_eq!(ctx("L4"), 4_096);
        assert_eq!(ctx("A10G"), 4_096);
        assert_eq!(ctx("RTX-4090"), 32_768);
        // 262144, cut to what the model was made for.
        assert_eq!(ctx("H100-SXM"), 131_072);
        assert!((kv_gib(&answer("H100-SXM", &default, CURRENT).unwrap()) - 14.0).abs() < 1e-9);
    }

    /// 2.02 GB and 0.47 GB.
    #[test]
    fn its_own_estimate_of_3b_at_4096_on_an_l4_is_two_and_a_half_gigabytes() {
        let answer = answer("L4", &Settings::default(), CURRENT).unwrap();
        let kv = answer.parts.iter().find(|part| part.name == "KV cache").unwrap();
        assert_eq!(kv.amount.expected_bytes, 469_762_048);
        assert!(answer.notes[0].contains("its own estimate: 2.32 GiB"), "{}", answer.notes[0]);
    }

    #[test]
    fn in_january_2025_there_were_four_slots_of_2048() {
        let of_2025 = answer("L4", &Settings::default(), Version::new(0, 5)).unwrap();
        assert_eq!((of_2025.max_model_len, of_2025.concurrency[0].expected), (2_048, 4.0));
        assert_eq!(of_2025.tokens, Count::exact(8_192));
        let unknown = answer("L4", &Settings::default(), Version::new(0, 9)).unwrap_err();
        assert!(unknown.contains("--num-parallel"));
    }

    #[test]
    fn what_does_not_fit_is_named_with_the_context_that_does() {
        let settings = Settings {
            max_model_len: MaxModelLen::Tokens(131_072),
            num_parallel: Some(4),
            ..Settings::default()
        };
        let large = answer("L4", &settings, CURRENT).unwrap();
        assert!(large.notes.iter().any(|note| note.contains("runs on the CPU")));
        let fits = large.ways_out[0].tokens;
        assert!(fits.low > 4 * 4_096 && fits.high < 4 * 131_072, "{fits:?}");
        let again = Settings { max_model_len: MaxModelLen::Tokens(fits.low / 4), ..settings };
        assert!(!answer("L4", &again, CURRENT).unwrap().notes.iter().any(|n| n.contains("CPU")));
    }

    #[test]
    fn every_way_out_keeps_all_of_it_on_the_gpu_alone() {
        let mut found = [0, 0];
        for gpu in ["L4", "A100-40GB-SXM", "H100-SXM", "RTX-4090"] {
            for (slots, length) in
                [(1, 131_072), (2, 131_072), (3, 131_072), (4, 40_000), (64, 4_096)]
            {
                let settings = Settings {
                    max_model_len: MaxModelLen::Tokens(length),
                    num_parallel: Some(slots),
                    ..Settings::default()
                };
                for way in answer(gpu, &settings, CURRENT).unwrap().ways_out {
                    let mut settings = settings.clone();
                    match way.change.split_once('=').unwrap() {
                        ("OLLAMA_CONTEXT_LENGTH", length) => {
                            settings.max_model_len = MaxModelLen::Tokens(length.parse().unwrap());
                            found[0] += 1;
                        }
                        (_, kv) => {
                            settings.kv_type = Some(kv.parse().unwrap());
                            found[1] += 1;
                        }
                    }
                    let then = answer(gpu, &settings, CURRENT).unwrap();
                    let leaves = then.notes.iter().any(|note| note.contains("runs on the CPU"));
                    assert_eq!(leaves, way.starts != Verdict::Yes, "{way:?}: {then:?}");
                    assert!(way.starts.is_expected(), "{way:?}");
                    assert_eq!(then.tokens, way.tokens, "{way:?}");
                }
            }
        }
        assert!(found[0] > 5 && found[1] > 2, "{found:?}");
    }

    #[test]
    fn quantized_k_and_v_take_less_and_types_it_lacks_are_refused() {
        let of = |kv| {
            let settings = Settings { kv_type: Some(kv), ..Settings::default() };
            answer("L4", &settings, CURRENT)
        };
        let ratio = kv_gib(&of(KvType::Q8_0).unwrap()) / kv_gib(&of(KvType::F16).unwrap());
        assert!((ratio - 34.0 / 64.0).abs() < 1e-6);
        assert!(of(KvType::Fp8).unwrap_err().contains("q8_0"));
    }

    /// Published: `KV self size = 2048.00 MiB` of 4 slots of 2048 tokens over 64 layers,
    /// github.com/ollama/ollama/issues/8903.
    #[test]
    fn k_and_v_are_what_llama_cpp_logs() {
        let card = find_card("llama-3.2-3b-instruct").unwrap();
        let shape = Shape { num_layers: 64, ..Shape::of_config("qwen2.5 32b", &card.config) };
        assert_eq!(kv_bytes(&shape, KvType::F16, 2048, 4), 2048 * MIB);
    }
}
