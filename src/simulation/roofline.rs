//! The duration of a step from a GPU card: each part takes what its bytes take
//! at the card's bandwidth or its operations at the card's peak, whichever is
//! longer; parts run one after another (Williams, Waterman, Patterson 2009).

use super::step_time::StepTimeSource;
use crate::hardware::GpuCard;
use crate::infer::ModelConfig;
use crate::infer::scheduler::StepWork;

/// Share of the peak bandwidth that is assumed: a long read reaches about 90 %,
/// decode attention 70 to 80 %. By `docs/PERFORMANCE.md`, measured nowhere.
pub const BANDWIDTH_EFFICIENCY: f64 = 0.8;
/// Share of the peak throughput that is assumed: products of many rows reach 50
/// to 70 %, prefill attention 25 to 40 %. By the same page.
pub const COMPUTE_EFFICIENCY: f64 = 0.5;
/// Seconds of a step that are neither: launches and the host between two steps.
pub const OVERHEAD_S: f64 = 1e-3;

/// What is assumed of a card beside its peaks.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Efficiency {
    /// Share of the peak bandwidth, above 0 and up to 1.
    pub bandwidth: f64,
    /// Share of the peak throughput, above 0 and up to 1.
    pub compute: f64,
    /// Seconds of every step beside reading and multiplying.
    pub overhead_s: f64,
}

impl Default for Efficiency {
    fn default() -> Self {
        Self {
            bandwidth: BANDWIDTH_EFFICIENCY,
            compute: COMPUTE_EFFICIENCY,
            overhead_s: OVERHEAD_S,
        }
    }
}

/// A model on a card.
#[derive(Debug, Clone, PartialEq)]
pub struct Roofline {
    card: GpuCard,
    efficiency: Efficiency,
    /// Parameters of the matrices of all layers: each token is multiplied with them.
    layer_parameters: f64,
    /// Parameters of the output head: each drawn token is.
    head_parameters: f64,
    /// Operations of attention for a pair of query and key, over all heads and layers.
    flops_per_pair: f64,
    weight_bytes_each: f64,
    kv_bytes_per_token: u64,
}

impl Roofline {
    /// `model` on `card`, with weights of `weight_bytes` each and K and V of
    /// `kv_bytes` an element.
    #[must_use]
    pub fn new(
        card: &GpuCard,
        model: &ModelConfig,
        weight_bytes: usize,
        kv_bytes: usize,
        efficiency: Efficiency,
    ) -> Self {
        let width = model.query_width() * 2 + model.key_value_width() * 2;
        let layer = model.hidden_size * (width + 3 * model.intermediate_size);
        let queries = model.num_hidden_layers * model.num_attention_heads * model.head_dim;
        Self {
            card: card.clone(),
            efficiency,
            layer_parameters: float(model.num_hidden_layers * layer),
            head_parameters: float(model.vocab_size * model.hidden_size),
            // A product and a sum for the score, and the same for the value.
            flops_per_pair: 4.0 * float(queries),
            weight_bytes_each: float(weight_bytes),
            kv_bytes_per_token: model.kv_bytes_per_token(kv_bytes) as u64,
        }
    }

    /// Seconds that a step of `work` takes.
    #[must_use]
    pub fn seconds(&self, work: &StepWork) -> f64 {
        let tokens = float(work.num_tokens());
        let drawn = float(work.num_drawn);
        let kv = self.kv_bytes_per_token as f64;
        let head_bytes =
            if work.num_drawn > 0 { self.head_parameters * self.weight_bytes_each } else { 0.0 };
        let parts = [
            // Layers: weights read once, K and V of the tokens written.
            (
                self.layer_parameters.mul_add(self.weight_bytes_each, kv * tokens),
                2.0 * self.layer_parameters * tokens,
            ),
            (head_bytes, 2.0 * self.head_parameters * drawn),
            (
                kv * float(work.num_decode_kv_tokens),
                self.flops_per_pair * float(work.num_decode_kv_tokens),
            ),
            (
                kv * float(work.num_prefill_kv_tokens),
                self.flops_per_pair * float(work.num_prefill_pairs),
            ),
        ];
        let bandwidth = self.card.bandwidth_gb_per_s * 1e9 * self.efficiency.bandwidth;
        let peak = self.card.bf16_tflop_per_s * 1e12 * self.efficiency.compute;
        let seconds = parts.map(|(bytes, flops)| (bytes / bandwidth).max(flops / peak));
        seconds.iter().sum::<f64>() + self.efficiency.overhead_s
    }

    /// What it assumes.
    #[must_use]
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a product of whole numbers far below 2^53"
    )]
    pub fn source(&self) -> StepTimeSource {
        let parameters = self.layer_parameters + self.head_parameters;
        StepTimeSource::Roofline {
            gpu: self.card.name.clone(),
            source: self.card.source.clone(),
            bandwidth_gb_per_s: self.card.bandwidth_gb_per_s,
            bandwidth_efficiency: self.efficiency.bandwidth,
            tflop_per_s: self.card.bf16_tflop_per_s,
            compute_efficiency: self.efficiency.compute,
            overhead_ms: self.efficiency.overhead_s * 1e3,
            weight_bytes: (parameters * self.weight_bytes_each) as u64,
            kv_bytes_per_token: self.kv_bytes_per_token,
        }
    }
}

#[expect(clippy::cast_precision_loss, reason = "parameters and tokens are far below 2^52")]
const fn float(count: usize) -> f64 {
    count as f64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::find_card;
    use crate::hardware::find_gpu_card;

    const IDEAL: Efficiency = Efficiency { bandwidth: 1.0, compute: 1.0, overhead_s: 0.0 };

    fn on_l4(efficiency: Efficiency) -> Roofline {
        let model = &find_card("llama-3.2-3b-instruct").unwrap().config;
        Roofline::new(find_gpu_card("NVIDIA L4").unwrap(), model, 2, 2, efficiency)
    }

    fn decode(num_decodes: usize, context: usize) -> StepWork {
        StepWork {
            num_decodes,
            num_drawn: num_decodes,
            num_decode_kv_tokens: num_decodes * context,
            ..StepWork::default()
        }
    }

    /// `docs/PERFORMANCE.md` sums the floors of all kernels: 21,616 us.
    #[test]
    fn floor_of_a_decode_step_is_that_of_the_kernels() {
        let micros = on_l4(IDEAL).seconds(&decode(1, 512)) * 1e6;
        assert!((micros / 21_616.0 - 1.0).abs() < 0.002, "{micros}");
        let micros = on_l4(IDEAL).seconds(&decode(32, 2048)) * 1e6;
        assert!((micros / 46_486.0 - 1.0).abs() < 0.002, "{micros}");
    }

    #[test]
    fn a_long_prompt_is_bound_by_operations_and_shares_stretch_it() {
        let work = StepWork {
            num_prefill_tokens: 2048,
            num_drawn: 1,
            num_prefill_kv_tokens: 2048,
            num_prefill_pairs: 2048 * 2049 / 2,
            ..StepWork::default()
        };
        let ideal = on_l4(IDEAL).seconds(&work);
        let flops = 2.0 * 2_818_572_288.0 * 2048.0 / 121e12;
        assert!(ideal > flops && ideal < 1.2 * flops, "{ideal} against {flops}");
        let half = on_l4(Efficiency { bandwidth: 0.5, compute: 0.5, overhead_s: 0.25 });
        assert!((half.seconds(&work) - 2.0 * ideal - 0.25).abs() < 1e-9);
    }
}
