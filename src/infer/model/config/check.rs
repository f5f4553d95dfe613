//! What numbers a model's shape may have. Files are hostile: everything that
//! sizes an allocation or divides something is bounded here, once.

use super::{ModelConfig, RopeScaling};

const MAX_VOCAB: usize = 1 << 22;
const MAX_WIDTH: usize = 1 << 18;
const MAX_LAYERS: usize = 1 << 10;
const MAX_HEADS: usize = 1 << 10;
const MAX_HEAD_DIM: usize = 1 << 12;
const MAX_POSITIONS: usize = 1 << 27;

impl ModelConfig {
    /// Refuses shapes that no model has: zeros, absurd sizes, heads that do
    /// not divide, rotary numbers that are not finite.
    ///
    /// # Errors
    /// A sentence naming the number and what it may be.
    pub fn check(&self) -> Result<(), String> {
        in_range("vocab_size", self.vocab_size, MAX_VOCAB)?;
        in_range("hidden_size", self.hidden_size, MAX_WIDTH)?;
        in_range("intermediate_size", self.intermediate_size, MAX_WIDTH)?;
        in_range("num_hidden_layers", self.num_hidden_layers, MAX_LAYERS)?;
        in_range("num_attention_heads", self.num_attention_heads, MAX_HEADS)?;
        in_range("num_key_value_heads", self.num_key_value_heads, MAX_HEADS)?;
        in_range("head_dim", self.head_dim, MAX_HEAD_DIM)?;
        in_range("max_position_embeddings", self.max_position_embeddings, MAX_POSITIONS)?;
        if !self.num_attention_heads.is_multiple_of(self.num_key_value_heads) {
            return Err(format!(
                "num_attention_heads {} is not divisible by num_key_value_heads {}",
                self.num_attention_heads, self.num_key_value_heads
            ));
        }
        if !self.head_dim.is_multiple_of(2) {
            return Err(format!(
                "head_dim {} is odd, rotary embedding turns pairs of elements",
                self.head_dim
            ));
        }
        in_range("num_attention_heads * head_dim", self.query_width(), MAX_WIDTH)?;
        if !(self.rms_norm_eps > 0.0 && self.rms_norm_eps < 1.0) {
            return Err(format!("rms_norm_eps {} is not between 0 and 1", self.rms_norm_eps));
        }
        if !(self.rope_theta >= 1.0 && self.rope_theta.is_finite()) {
            return Err(format!("rope_theta {} is not a finite number above 1", self.rope_theta));
        }
        self.check_token_ids()?;
        self.rope_scaling.as_ref().map_or(Ok(()), RopeScaling::check)
    }

    /// Output rows of the query projection: `num_attention_heads * head_dim`.
    #[must_use]
    pub const fn query_width(&self) -> usize {
        self.num_attention_heads * self.head_dim
    }

    /// Output rows of the key and the value projection: `num_key_value_heads * head_dim`.
    #[must_use]
    pub const fn key_value_width(&self) -> usize {
        self.num_key_value_heads * self.head_dim
    }

    fn check_token_ids(&self) -> Result<(), String> {
        for (what, id) in self
            .eos_token_ids
            .iter()
            .map(|id| ("eos_token_id", *id))
            .chain(self.bos_token_id.map(|id| ("bos_token_id", id)))
        {
            if id as usize >= self.vocab_size {
                return Err(format!(
                    "{what} {id} is outside the vocabulary of {} rows",
                    self.vocab_size
                ));
            }
        }
        Ok(())
    }
}

impl RopeScaling {
    fn check(&self) -> Result<(), String> {
        let finite = [self.factor, self.low_freq_factor, self.high_freq_factor]
            .iter()
            .all(|x| x.is_finite() && *x > 0.0);
        if !finite || self.factor < 1.0 || self.low_freq_factor >= self.high_freq_factor {
            return Err(format!(
                "rope scaling needs factor >= 1 and 0 < low_freq_factor < high_freq_factor, \
                 got factor {}, {} and {}",
                self.factor, self.low_freq_factor, self.high_freq_factor
            ));
        }
        in_range(
            "original_max_position_embeddings",
            self.original_max_position_embeddings,
            MAX_POSITIONS,
        )
    }
}

fn in_range(name: &str, value: usize, max: usize) -> Result<(), String> {
    if (1..=max).contains(&value) {
        Ok(())
    } else {
        Err(format!("{name} is {value}, expected 1 to {max}"))
    }
}
