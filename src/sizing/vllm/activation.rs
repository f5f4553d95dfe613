//! What a forward pass of vLLM's profiling run takes beside the weights. vLLM
//! measures it; here it is an estimate whose bounds hold the published peaks.

use crate::sizing::amount::{Amount, Source, truncated};
use crate::sizing::shape::Shape;
use crate::units::MIB;

/// Copies of the logits in f32 that the sampler holds at its peak, least, expected and most.
/// V0: peaks of 1.26 GiB (vocabulary 128256, vLLM #10511), 1.39 and 1.42 GiB
/// (151936 and 152064, #12529 and #13882) over 256 rows are 10.3, 9.6 and 9.8.
const V0_COPIES: [f64; 3] = [9.5, 9.9, 10.4];
/// V1: 0.90 GiB (128256, 256 rows, #8185) are 7.4; samplers differ by version.
const V1_COPIES: [f64; 3] = [4.0, 7.4, 10.4];
/// How far the MLP's peak may be from its formula.
const MLP_MARGIN: f64 = 0.05;

/// The batch that is profiled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProfiledBatch {
    /// Tokens that are run.
    pub tokens: u64,
    /// Rows that are sampled.
    pub seqs: u64,
}

/// The peak: that of an MLP over all tokens, or that of the sampler over all rows,
/// whichever is larger, since neither is there while the other is.
///
/// An MLP holds `tokens * (matrices * intermediate + 3 * hidden)` elements: gate and up side by
/// side, their product, and residual, input and output. With 20,000 and 29,000
/// tokens of Llama 3.1 8B that is 2.06 and 2.99 GiB; vLLM measured 2.07 and 2.99 (#10517).
#[must_use]
pub fn peak(shape: &Shape, dtype_bytes: u64, batch: ProfiledBatch, v1: bool) -> Amount {
    let width = shape.family.mlp_matrices() * shape.intermediate_size + 3 * shape.hidden_size;
    let mlp = (batch.tokens as f64) * (width * dtype_bytes) as f64;
    let rows = batch.seqs.min(batch.tokens) as f64;
    let logits = rows * (shape.vocab_size * 4) as f64;
    let copies = if v1 { V1_COPIES } else { V0_COPIES };
    let margins = [1.0 - MLP_MARGIN, 1.0, 1.0 + MLP_MARGIN];
    let bytes = std::array::from_fn(|bound| {
        let peak = (mlp * margins[bound]).max(logits * copies[bound]);
        u64::try_from(truncated(peak)).unwrap_or(0)
    });
    let basis = if mlp > logits * copies[1] {
        format!("an MLP over {} tokens", batch.tokens)
    } else {
        format!("the sampler over {rows} rows of logits, {:.1} copies", copies[1])
    };
    Amount::between(bytes, Source::Estimated, basis)
}

/// Memory beside the allocator: from 0.03 to 0.35 GiB in published logs on one GPU.
#[must_use]
pub fn non_torch() -> Amount {
    Amount::between(
        [30 * MIB, 70 * MIB, 358 * MIB],
        Source::Estimated,
        "0.03 to 0.35 GiB in published logs on one GPU",
    )
}

/// CUDA graphs: from 0.13 to 1.58 GiB in published logs.
#[must_use]
pub fn cuda_graphs() -> Amount {
    Amount::between(
        [133 * MIB, 410 * MIB, 1618 * MIB],
        Source::Estimated,
        "0.13 to 1.58 GiB in published logs",
    )
}

/// The CUDA context, which is there before anything is measured.
#[must_use]
pub fn context() -> Amount {
    Amount::between(
        [200 * MIB, 350 * MIB, 600 * MIB],
        Source::Estimated,
        "a CUDA context with its libraries",
    )
}
