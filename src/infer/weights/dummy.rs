//! Seeded noise of a model's shapes: for measuring shapes whose weights are
//! not at hand. A weight depends on the seed and its name only, not on load
//! order, number of threads or platform.

use candle_core::{Device, Tensor};
use rand::{RngCore, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;
use sha2::{Digest, Sha256};

use super::{InferError, StoredDtype, Weight, WeightForm, WeightSource};
use crate::infer::ModelConfig;

/// Standard deviation of the weights, as models are initialised with.
const STD: f32 = 0.02;
/// Weights drawn from one stream of the generator.
const STREAM: usize = 1 << 16;
/// Standard deviation of the sum of four bytes: sqrt(4 * (256^2 - 1) / 12).
const BYTE_SUM_STD: f32 = 147.799;
/// Mean of the sum of four bytes.
const BYTE_SUM_MEAN: i32 = 510;

/// Noise in the shapes of a model.
pub(super) struct DummyWeights {
    config: ModelConfig,
    seed: u64,
}

impl DummyWeights {
    pub(super) const fn new(config: ModelConfig, seed: u64) -> Self {
        Self { config, seed }
    }

    /// A key of its own for each tensor.
    fn key(&self, name: &str) -> [u8; 32] {
        Sha256::new()
            .chain_update(b"yardstick dummy weights\0")
            .chain_update(self.seed.to_le_bytes())
            .chain_update(name.as_bytes())
            .finalize()
            .into()
    }
}

impl WeightSource for DummyWeights {
    /// Norms are one, biases zero, everything else close to normal with a
    /// standard deviation of 0.02: activations stay finite through any depth.
    fn load(&self, name: &str, shape: &[usize], _: WeightForm) -> Result<Weight<'_>, InferError> {
        let elements = shape.iter().product();
        let values = if name.ends_with("norm.weight") {
            vec![1.0; elements]
        } else if name.ends_with(".bias") {
            vec![0.0; elements]
        } else {
            noise(self.key(name), elements)
        };
        Ok(Weight::Dense(Tensor::from_vec(values, shape, &Device::Cpu)?))
    }

    fn stored_dtype(&self) -> StoredDtype {
        StoredDtype::Noise
    }

    fn stored_bytes(&self) -> u64 {
        self.config.num_parameters() * size_of::<f32>() as u64
    }
}

/// Sums of four random bytes are near enough to normal, cheap, and exact everywhere.
fn noise(key: [u8; 32], elements: usize) -> Vec<f32> {
    let mut values = vec![0.0; elements];
    values.par_chunks_mut(STREAM).enumerate().for_each(|(stream, values)| {
        let mut generator = ChaCha8Rng::from_seed(key);
        generator.set_stream(stream as u64);
        let mut bytes = [0_u8; 4096];
        for values in values.chunks_mut(bytes.len() / 4) {
            let bytes = &mut bytes[..values.len() * 4];
            generator.fill_bytes(bytes);
            for (value, four) in values.iter_mut().zip(bytes.as_chunks::<4>().0) {
                let sum = byte_sum(u32::from_le_bytes(*four)).cast_signed();
                *value = small_int(sum - BYTE_SUM_MEAN) * (STD / BYTE_SUM_STD);
            }
        }
    });
    values
}

/// The four bytes added, two at a time.
const fn byte_sum(bytes: u32) -> u32 {
    const ALTERNATE: u32 = 0x00ff_00ff;
    let pairs = (bytes & ALTERNATE) + ((bytes >> 8) & ALTERNATE);
    (pairs & 0xffff) + (pairs >> 16)
}

#[expect(clippy::cast_precision_loss, reason = "between -510 and 510")]
const fn small_int(sum: i32) -> f32 {
    sum as f32
}

#[cfg(test)]
#[expect(clippy::cast_precision_loss, reason = "counts of a test")]
mod tests {
    use super::*;

    fn config() -> ModelConfig {
        ModelConfig {
            vocab_size: 64,
            hidden_size: 16,
            intermediate_size: 32,
            num_hidden_layers: 1,
            num_attention_heads: 2,
            num_key_value_heads: 1,
            eos_token_ids: vec![0],
            ..ModelConfig::tiny()
        }
    }

    fn load(seed: u64, name: &str, shape: &[usize]) -> Vec<f32> {
        match DummyWeights::new(config(), seed).load(name, shape, WeightForm::Stored).unwrap() {
            Weight::Dense(tensor) => tensor.flatten_all().unwrap().to_vec1().unwrap(),
            other => panic!("noise is dense, not {other:?}"),
        }
    }

    #[test]
    fn noise_is_the_same_on_every_platform() {
        // Recorded once; a change would make old runs incomparable.
        let first: Vec<i32> =
            load(7, "w", &[4]).iter().map(|x| (x * BYTE_SUM_STD / STD).round() as i32).collect();
        assert_eq!(first, [-56, -162, 178, -127]);
    }

    #[test]
    fn noise_depends_on_seed_and_name_only() {
        assert_eq!(load(1, "a", &[300, 700]), load(1, "a", &[700, 300]));
        assert_ne!(load(1, "a", &[64]), load(2, "a", &[64]));
        assert_ne!(load(1, "a", &[64]), load(1, "b", &[64]));
        assert_eq!(load(1, "a", &[100_000])[..64], load(1, "a", &[64]));
    }

    #[test]
    fn noise_has_mean_zero_and_the_stated_deviation() {
        let values = load(3, "w", &[400, 1000]);
        let n = values.len() as f32;
        let mean = values.iter().sum::<f32>() / n;
        let std = (values.iter().map(|x| (x - mean).powi(2)).sum::<f32>() / n).sqrt();
        assert!(mean.abs() < 2e-4, "{mean}");
        assert!((std - STD).abs() < 2e-4, "{std}");
    }

    #[test]
    fn norms_are_one_and_biases_zero() {
        assert_eq!(load(1, "model.norm.weight", &[3]), [1.0; 3]);
        assert_eq!(load(1, "model.layers.0.input_layernorm.weight", &[2]), [1.0; 2]);
        assert_eq!(load(1, "model.layers.0.self_attn.q_proj.bias", &[2]), [0.0; 2]);
    }
}
