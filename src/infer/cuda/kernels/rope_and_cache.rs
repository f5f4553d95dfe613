//! Rotation of q and k and the write to the cache; see
//! [`crate::infer::ops::rope_and_cache`], whose cache holds K in another order.

use crate::infer::cuda::launch::by_element;
use crate::infer::cuda::{Element, Launch, LaunchError, View};

/// `kRopeThreads` of the kernel.
const MAX_THREADS: usize = 512;

/// What a rotated batch and the cache that it goes to are made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RopeShape {
    /// Tokens of the batch, padding too.
    pub rows: usize,
    /// Heads of q.
    pub q_heads: usize,
    /// Heads of k, and of v.
    pub kv_heads: usize,
    /// Elements of a head, a multiple of 16.
    pub head_dim: usize,
    /// Tokens of a block.
    pub block_size: usize,
}

/// Adds `bias`, `[q_heads + 2 * kv_heads, head_dim]` of f32, where there is one,
/// and rotates q of `qkv`, `[rows, q_heads + 2 * kv_heads, head_dim]` of f32, f16 or
/// bf16, in place, and writes k, rotated, and v to their slots of a layer's K
/// and V, each `[num_blocks, kv_heads, block_size, head_dim]` of the same type;
/// k and v of `qkv` stay as they are. `angles` are those of
/// [`RopeTable::angles`](crate::infer::ops::RopeTable::angles), `positions` and
/// `slot_mapping` are `[rows]` of i32. A row of slot -1 is padding: nothing of
/// it is written. That positions lie in the table and slots in the cache is the
/// caller's to know.
///
/// # Errors
/// [`LaunchError`] when a view does not fit, or `head_dim` is no multiple of 16.
pub fn rope_and_cache(
    qkv: View,
    [k_cache, v_cache]: [View; 2],
    angles: View,
    bias: Option<View>,
    [positions, slot_mapping]: [View; 2],
    shape: RopeShape,
) -> Result<Launch, LaunchError> {
    let RopeShape { rows, q_heads, kv_heads, head_dim, block_size } = shape;
    if head_dim == 0 || !head_dim.is_multiple_of(16) {
        return Err(LaunchError(format!("rope: head_dim {head_dim} is no multiple of 16")));
    }
    let block = kv_heads * block_size * head_dim;
    if k_cache.len != v_cache.len || block == 0 || !k_cache.len.is_multiple_of(block) {
        return Err(LaunchError(format!(
            "k and v must be blocks of {block} elements, have {} and {}",
            k_cache.len, v_cache.len
        )));
    }
    let element = qkv.element;
    let function = by_element!("rope_and_cache", element)?;
    let heads = q_heads + 2 * kv_heads;
    let bias = match bias {
        Some(bias) => bias.expect("bias", Element::F32, heads * head_dim)?,
        None => 0,
    };
    let pairs = heads * (head_dim / 2 / (16 / element.num_bytes()));
    let threads = pairs.next_multiple_of(32).min(MAX_THREADS);
    Launch::new("rope_and_cache", function, [rows, 1, 1], [threads, 1, 1])?
        .arg(qkv.expect("qkv", element, rows * heads * head_dim)?)
        .arg(k_cache.expect("k_cache", element, block)?)
        .arg(v_cache.expect("v_cache", element, block)?)
        .arg(angles.expect("angles", Element::F32, head_dim)?)
        .arg(bias)
        .arg(positions.expect("positions", Element::I32, rows)?)
        .arg(slot_mapping.expect("slot_mapping", Element::I32, rows)?)
        .int(q_heads)?
        .int(kv_heads)?
        .int(head_dim)?
        .int(block_size)
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device, Tensor};
    use rand::seq::SliceRandom;
    use rand::{Rng, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    use super::*;
    use crate::infer::ModelConfig;
    use crate::infer::cuda::simt::{Values, assert_clean, every_order, survives};
    use crate::infer::ops;
    use crate::infer::ops::RopeTable;

    const MAX_LEN: usize = 512;

    fn table(head_dim: usize) -> RopeTable {
        let model = ModelConfig {
            head_dim,
            rope_theta: 500_000.0,
            max_position_embeddings: MAX_LEN,
            ..ModelConfig::tiny()
        };
        RopeTable::new(&model, MAX_LEN)
    }

    /// Rows at random positions and slots, some of them padding.
    struct Batch {
        shape: RopeShape,
        num_blocks: usize,
        positions: Vec<usize>,
        /// `None` is padding.
        slots: Vec<Option<usize>>,
        qkv: Values,
    }

    impl Batch {
        fn random(shape: RopeShape, num_blocks: usize, seed: u64) -> Self {
            let mut generator = ChaCha8Rng::seed_from_u64(seed);
            let mut slots: Vec<usize> = (0..num_blocks * shape.block_size).collect();
            slots.shuffle(&mut generator);
            let padding = |row: usize| row % 3 == 1;
            let slots =
                (0..shape.rows).map(|row| (!padding(row)).then(|| slots[row])).collect::<Vec<_>>();
            let width = (shape.q_heads + 2 * shape.kv_heads) * shape.head_dim;
            Self {
                shape,
                num_blocks,
                positions: (0..shape.rows).map(|_| generator.random_range(0..MAX_LEN)).collect(),
                slots,
                qkv: Values::noise(shape.rows * width, 2.0, seed),
            }
        }

        /// qkv, K and V in the kernel's order after the CPU op; NaN where
        /// nothing was written.
        fn twin(&self, qkv: &Values, bias: Option<&Values>) -> [Vec<f32>; 3] {
            let RopeShape { rows, kv_heads, head_dim, block_size, .. } = self.shape;
            let width = qkv.to_f32().len() / rows;
            let values = qkv.to_f32();
            let kept: Vec<usize> = (0..rows).filter(|row| self.slots[*row].is_some()).collect();
            let mut of_kept: Vec<f32> =
                kept.iter().flat_map(|row| values[row * width..][..width].to_vec()).collect();
            if let Some(bias) = bias.map(Values::to_f32) {
                of_kept.iter_mut().zip(bias.iter().cycle()).for_each(|(x, bias)| *x += bias);
            }
            let shape = (kept.len(), width / head_dim, head_dim);
            let rotated = Tensor::from_vec(of_kept, shape, &Device::Cpu).unwrap();
            let nan = |shape| Tensor::full(f32::NAN, shape, &Device::Cpu).unwrap();
            let k = nan((self.num_blocks, kv_heads, head_dim, block_size));
            let v = nan((self.num_blocks, kv_heads, block_size, head_dim));
            let positions: Vec<usize> = kept.iter().map(|row| self.positions[*row]).collect();
            let slots: Vec<usize> = kept.iter().filter_map(|row| self.slots[*row]).collect();
            let table = table(head_dim);
            ops::rope_and_cache(&rotated, (&k, &v), &positions, &slots, &table).unwrap();
            let flat = |tensor: &Tensor| -> Vec<f32> {
                assert_eq!(tensor.dtype(), DType::F32);
                tensor.flatten_all().unwrap().to_vec1().unwrap()
            };
            let rotated = flat(&rotated);
            let mut out = values;
            // Only q: k is not written back.
            let q = self.shape.q_heads * head_dim;
            for (index, row) in kept.iter().enumerate() {
                out[row * width..][..q].copy_from_slice(&rotated[index * width..][..q]);
            }
            let k = k.transpose(2, 3).unwrap().contiguous().unwrap();
            [out, flat(&k), flat(&v)]
        }

        fn check(&self, element: Element, tolerance: f32, bias: Option<&Values>) {
            let RopeShape { kv_heads, head_dim, block_size, .. } = self.shape;
            let ints = |values: Vec<i64>| {
                let narrow = values.into_iter().map(|value| i32::try_from(value).unwrap());
                Values::ints(&narrow.collect::<Vec<_>>())
            };
            let wide = |value: usize| i64::try_from(value).unwrap();
            let slots = ints(self.slots.iter().map(|slot| slot.map_or(-1, wide)).collect());
            // Of a padding row, the position is not read either.
            let positions = self.slots.iter().zip(&self.positions);
            let positions = ints(
                positions.map(|(slot, at)| slot.map_or(wide(MAX_LEN), |_| wide(*at))).collect(),
            );
            let angles = Values::of(table(head_dim).angles(), Element::F32);
            let qkv = self.qkv.rounded(element);
            let cache = Values::nan(self.num_blocks * kv_heads * block_size * head_dim, element);
            let buffers = [qkv.clone(), cache.clone(), cache];
            let found = every_order(buffers, |[qkv, k, v]| {
                let indices = [positions.view(), slots.view()];
                let bias = bias.map(Values::view);
                let angles = angles.view();
                vec![rope_and_cache(qkv, [k, v], angles, bias, indices, self.shape).unwrap()]
            });
            for (found, expected) in found.iter().zip(self.twin(&qkv, bias)) {
                let (found, written): (Vec<f32>, Vec<f32>) = found
                    .to_f32()
                    .iter()
                    .zip(expected)
                    .filter(|(found, expected)| !(found.is_nan() && expected.is_nan()))
                    .unzip();
                Values::of(&found, Element::F32).assert_close(&written, tolerance);
            }
        }
    }

    #[test]
    fn rows_land_as_the_cpu_op_has_them_and_nowhere_else() {
        let shapes = [
            // rows, q_heads, kv_heads, head_dim, block_size, num_blocks
            [1, 1, 1, 16, 8, 1],
            [7, 3, 1, 64, 24, 2],
            [5, 6, 2, 128, 8, 3],
            [3, 24, 8, 128, 16, 1],
            [4, 5, 5, 80, 256, 1],
            [2, 64, 8, 128, 32, 1],
        ];
        for (seed, [rows, q_heads, kv_heads, head_dim, block_size, num_blocks]) in
            shapes.into_iter().enumerate()
        {
            let shape = RopeShape { rows, q_heads, kv_heads, head_dim, block_size };
            let batch = Batch::random(shape, num_blocks, seed as u64);
            let bias = Values::noise((q_heads + 2 * kv_heads) * head_dim, 1.0, 9);
            let bias = (seed % 2 == 1).then_some(&bias);
            for (element, tolerance) in
                [(Element::F32, 1e-6), (Element::F16, 6e-4), (Element::Bf16, 4e-3)]
            {
                batch.check(element, tolerance, bias);
            }
        }
    }

    #[test]
    fn accesses_stay_inside_the_buffers() {
        let test = "rows_land_as_the_cpu_op_has_them_and_nowhere_else";
        assert_clean(&format!("infer::cuda::kernels::rope_and_cache::tests::{test}"));
    }

    #[test]
    fn planted_faults_are_noticed() {
        let test = rows_land_as_the_cpu_op_has_them_and_nowhere_else;
        let survives = |from, to| survives("rope_and_cache.cu", from, 0, to, test);
        assert!(
            !survives("head < q_heads + kv_heads ? angles", "head < q_heads ? angles"),
            "k as it was"
        );
        assert!(!survives("bias + head * head_dim", "bias"), "another head's bias");
        assert!(!survives("+= blockDim.x", "+= 100000"), "a row longer than its block");
        assert!(
            !survives("= slot_mapping[blockIdx.x]", "= max(slot_mapping[blockIdx.x], 0)"),
            "padding"
        );
        assert!(!survives("slot % block_size", "0"), "an offset");
    }

    #[test]
    fn views_that_do_not_fit_are_refused_by_name() {
        let view = |element, len| View { ptr: 0, len, element };
        let shape = RopeShape { rows: 2, q_heads: 2, kv_heads: 1, head_dim: 16, block_size: 8 };
        let refusal = |qkv, k, v, angles, positions, shape| {
            let caches = [view(Element::F16, k), view(Element::F16, v)];
            let indices = [view(Element::I32, positions), view(Element::I32, 2)];
            let angles = view(Element::F32, angles);
            let qkv = view(Element::F16, qkv);
            rope_and_cache(qkv, caches, angles, None, indices, shape).map_err(|e| e.0)
        };
        assert!(refusal(128, 256, 256, 16, 2, shape).is_ok());
        let contains = |result: Result<Launch, String>, text| result.unwrap_err().contains(text);
        assert!(contains(refusal(127, 256, 256, 16, 2, shape), "qkv must hold 128"));
        assert!(contains(refusal(128, 256, 128, 16, 2, shape), "have 256 and 128"));
        assert!(contains(refusal(128, 200, 200, 16, 2, shape), "blocks of 128"));
        assert!(contains(refusal(128, 256, 256, 15, 2, shape), "angles must hold 16"));
        assert!(contains(refusal(128, 256, 256, 16, 1, shape), "positions must hold 2"));
        let odd = RopeShape { head_dim: 24, ..shape };
        assert!(contains(refusal(256, 384, 384, 32, 2, odd), "multiple of 16"));
    }
}
