//! How vLLM cuts its pool into blocks, and how many blocks a request needs. In V1
//! layers with a window keep their window only: layers are put into groups of
//! one kind and equal number, and a block holds a group's layers.

use crate::sizing::settings::KvType;
use crate::sizing::shape::Shape;

/// Blocks of a pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pages {
    /// Tokens in a block.
    pub block_size: u64,
    /// Bytes of a block.
    pub block_bytes: u64,
    full_groups: u64,
    sliding_groups: u64,
    /// Tokens that a layer with a window keeps at most.
    window_tokens: u64,
}

impl Pages {
    /// Blocks of `block_size` tokens. `batched_tokens` are the tokens of a step, which
    /// a layer with a window keeps beside its window. In V0 every layer keeps everything.
    #[must_use]
    pub fn new(shape: &Shape, kv: KvType, block_size: u64, batched_tokens: u64, v1: bool) -> Self {
        let of_a_layer = block_size * shape.kv_bytes_per_token_and_layer(kv);
        let full = shape.num_full_layers();
        match shape.sliding.filter(|_| v1) {
            None => Self {
                block_size,
                block_bytes: of_a_layer * shape.num_layers,
                full_groups: 1,
                sliding_groups: 0,
                window_tokens: 0,
            },
            Some(sliding) => {
                // Groups are as large as the kind that has fewer layers.
                let layers = match full {
                    0 => sliding.num_layers,
                    full => full.min(sliding.num_layers),
                };
                Self {
                    block_size,
                    block_bytes: of_a_layer * layers,
                    full_groups: full.div_ceil(layers),
                    sliding_groups: sliding.num_layers.div_ceil(layers),
                    window_tokens: sliding.window_tokens.saturating_sub(1) + batched_tokens,
                }
            }
        }
    }

    /// Blocks that a request of `tokens` needs.
    #[must_use]
    pub fn of_request(&self, tokens: u64) -> u64 {
        let all = tokens.div_ceil(self.block_size);
        // A window begins anywhere in a block.
        let kept = all.min(self.window_tokens.div_ceil(self.block_size) + 1);
        self.full_groups * all + self.sliding_groups * kept
    }

    /// Tokens of a pool of `blocks`, as vLLM logs them.
    #[must_use]
    pub const fn tokens(&self, blocks: u64) -> u64 {
        blocks / (self.full_groups + self.sliding_groups) * self.block_size
    }

    /// The longest request, up to `limit`, that fits into `blocks`.
    #[must_use]
    pub fn longest(&self, blocks: u64, limit: u64) -> u64 {
        let (mut fits, mut too_long) = (0, limit + 1);
        while too_long - fits > 1 {
            let middle = u64::midpoint(fits, too_long);
            if self.of_request(middle) <= blocks {
                fits = middle;
            } else {
                too_long = middle;
            }
        }
        fits
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::find_card;
    use crate::sizing::shape::Sliding;

    fn llama() -> Shape {
        let card = find_card("llama-3.2-3b-instruct").unwrap();
        Shape::of_config(&card.name, &card.config)
    }

    #[test]
    fn a_block_of_llama_3_2_3b_is_one_and_three_quarters_mib() {
        let pages = Pages::new(&llama(), KvType::Bf16, 16, 2048, true);
        assert_eq!(pages.block_bytes, 1_835_008);
        assert_eq!(pages.of_request(131_072), 8192);
        assert_eq!(pages.tokens(7333), 117_328);
        assert_eq!(pages.longest(7333, 131_072), 117_328);
        assert_eq!(pages.longest(8192, 131_072), 131_072);
        assert_eq!(pages.longest(0, 131_072), 0);
    }

    #[test]
    fn layers_with_a_window_keep_their_window_in_v1_and_everything_in_v0() {
        let sliding = Some(Sliding { window_tokens: 512, num_layers: 24 });
        let shape = Shape { sliding, ..llama() };
        let v1 = Pages::new(&shape, KvType::Bf16, 16, 2048, true);
        // Four layers see everything: groups of four, one of them full and six with a window.
        assert_eq!(v1.block_bytes, 1_835_008 / 28 * 4);
        assert_eq!(v1.of_request(16), 7);
        assert_eq!(v1.of_request(131_072), 8192 + 6 * 161);
        let v0 = Pages::new(&shape, KvType::Bf16, 16, 2048, false);
        assert_eq!(v0.of_request(131_072) * v0.block_bytes, 14 << 30);
    }
}
