//! A super-block as a GGUF file has it: where its fields are, and how they
//! spell codes, scales and minima. Does not know how a panel has them.

use super::block_format::BlockFormat;
use super::rounded::BLOCK;

/// Words of four codes in a block.
pub const GROUPS: usize = BLOCK / 4;

/// Offsets of the fields of a super-block in bytes; zero for those that it lacks.
struct Fields {
    /// Bytes of all of them.
    size: usize,
    scale: usize,
    min: usize,
    /// Of its blocks, six bits each in three bytes for four, or whole bytes.
    factors: usize,
    /// The low bits of the codes.
    low: usize,
    /// The bits above them.
    high: usize,
}

impl Fields {
    const fn of(format: BlockFormat) -> Self {
        let (size, scale, min, factors, low, high) = match format {
            BlockFormat::Q8_0 => (34, 0, 0, 0, 2, 0),
            BlockFormat::Q5_0 => (22, 0, 0, 0, 6, 2),
            BlockFormat::Q5_1 => (24, 0, 2, 0, 8, 4),
            BlockFormat::Q4_0 => (18, 0, 0, 0, 2, 0),
            BlockFormat::Q4_1 => (20, 0, 2, 0, 4, 0),
            BlockFormat::Q2K => (84, 80, 82, 0, 16, 0),
            BlockFormat::Q3K => (110, 108, 0, 96, 32, 0),
            BlockFormat::Q4K => (144, 0, 2, 4, 16, 0),
            BlockFormat::Q5K => (176, 0, 2, 4, 48, 16),
            BlockFormat::Q6K => (210, 208, 0, 192, 0, 128),
        };
        Self { size, scale, min, factors, low, high }
    }
}

/// The bytes of one super-block, of the format of a number.
pub struct StoredBlock<'a, const FORMAT: usize>(&'a [u8]);

impl<'a, const FORMAT: usize> StoredBlock<'a, FORMAT> {
    const FORMAT: BlockFormat = BlockFormat::ALL[FORMAT];
    const FIELDS: Fields = Fields::of(Self::FORMAT);

    /// The super-blocks of a row.
    pub fn all(row: &'a [u8]) -> impl Iterator<Item = Self> {
        row.chunks_exact(Self::FIELDS.size).map(Self)
    }

    /// The scale, and the minimum that is added, as bits of half floats.
    pub fn scale_and_min(&self) -> (u16, u16) {
        let half = |at: usize| u16::from_le_bytes([self.0[at], self.0[at + 1]]);
        let min = if Self::FORMAT.has_min() { half(Self::FIELDS.min) } else { 0 };
        // K-quants subtract theirs.
        let negated = if Self::FORMAT.num_blocks() > 1 { 0x8000 } else { 0 };
        (half(Self::FIELDS.scale), min ^ negated)
    }

    /// The factors of a block, in the two bytes of [`super::block_format::Factors`].
    pub fn factors(&self, block: usize) -> [u8; 2] {
        let factor = |index: usize| self.0[Self::FIELDS.factors + index];
        match Self::FORMAT {
            BlockFormat::Q8_0
            | BlockFormat::Q5_0
            | BlockFormat::Q5_1
            | BlockFormat::Q4_0
            | BlockFormat::Q4_1 => [0, 0],
            BlockFormat::Q2K | BlockFormat::Q6K => [factor(2 * block), factor(2 * block + 1)],
            // Sixteen of six bits around 32: the low four of all, then the high
            // two, both with the earlier ones in lower bits.
            BlockFormat::Q3K => [2 * block, 2 * block + 1].map(|index| {
                let low = (factor(index % 8) >> (4 * (index / 8))) & 15;
                let high = (factor(8 + index % 4) >> (2 * (index / 4))) & 3;
                (low | (high << 4)).wrapping_sub(32)
            }),
            // Scales and minima of the first four blocks in six bits of a byte,
            // whose upper two are the upper two of the others'.
            BlockFormat::Q4K | BlockFormat::Q5K => {
                if block < 4 {
                    [factor(block) & 63, factor(block + 4) & 63]
                } else {
                    let low = factor(block + 4);
                    [
                        (low & 15) | (factor(block - 4) >> 6 << 4),
                        (low >> 4) | (factor(block) >> 6 << 4),
                    ]
                }
            }
        }
    }

    /// The codes of a block, four to a word, the first lowest.
    pub fn codes(&self, block: usize) -> [u32; GROUPS] {
        const ONES: u32 = 0x0101_0101;
        // What lets the compiler see that every index is in bounds.
        assert!(self.0.len() == Self::FIELDS.size && block < Self::FORMAT.num_blocks());
        let word = |field: usize, index: usize| {
            let at = field + 4 * index;
            u32::from_le_bytes([self.0[at], self.0[at + 1], self.0[at + 2], self.0[at + 3]])
        };
        let low = |index: usize| word(Self::FIELDS.low, index);
        let high = |index: usize| word(Self::FIELDS.high, index);
        let nibbles = |word: u32, upper: bool| (word >> if upper { 4 } else { 0 }) & (15 * ONES);
        // Two blocks of a K-quant share 32 bytes of four bits, four share 32 of two.
        let fours = |group: usize| nibbles(low(8 * (block / 2) + group), block % 2 == 1);
        let twos = |word: u32| (word >> (2 * (block % 4))) & (3 * ONES);
        let one = |group: usize| (high(group) >> block) & ONES;
        let mut codes = [0; GROUPS];
        for (group, code) in codes.iter_mut().enumerate() {
            *code = match Self::FORMAT {
                BlockFormat::Q8_0 => low(group) ^ (128 * ONES),
                BlockFormat::Q4_0 | BlockFormat::Q4_1 => nibbles(low(group % 4), group >= 4),
                BlockFormat::Q5_0 | BlockFormat::Q5_1 => {
                    nibbles(low(group % 4), group >= 4) | (spread(high(0) >> (4 * group)) << 4)
                }
                BlockFormat::Q2K => twos(low(8 * (block / 4) + group)),
                BlockFormat::Q3K => twos(low(8 * (block / 4) + group)) | (one(group) << 2),
                BlockFormat::Q4K => fours(group),
                BlockFormat::Q5K => fours(group) | (one(group) << 4),
                BlockFormat::Q6K => {
                    let index = 16 * (block / 4) + 8 * (block % 2) + group;
                    nibbles(low(index), block % 4 >= 2) | (twos(high(8 * (block / 4) + group)) << 4)
                }
            };
        }
        codes
    }
}

/// The low four bits, each at the bottom of a byte.
const fn spread(bits: u32) -> u32 {
    // Bit i arrives at bit 8i by its shift of 7i, and no other bit does.
    ((bits & 15) * 0x0020_4081) & 0x0101_0101
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;
    use crate::infer::ops::linear::block_format::DTYPES;
    use crate::infer::ops::linear::blocks::BlockPanels;
    use crate::infer::weights::QuantizedRows;

    #[test]
    fn blocks_of_any_bits_are_read_as_candle_reads_them() {
        for (format, dtype) in BlockFormat::ALL.into_iter().zip(DTYPES) {
            let fields = Fields::of(format);
            assert_eq!(fields.size, dtype.type_size(), "{dtype:?}");
            let mut bytes: Vec<u8> = (0..6 * fields.size as u32)
                .map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8)
                .collect();
            for block in bytes.chunks_exact_mut(fields.size) {
                block[fields.scale..fields.scale + 2].copy_from_slice(&[0x34, 0x1a]);
                if format.has_min() {
                    block[fields.min..fields.min + 2].copy_from_slice(&[0x12, 0x9b]);
                }
            }
            let shape = [3, 2 * dtype.block_size()];
            let stored = QuantizedRows::new(dtype, bytes, shape).unwrap();
            let exact = stored.to_qtensor().unwrap().dequantize(&Device::Cpu).unwrap();
            let ours = BlockPanels::pack(&[&stored]).unwrap().rows(&[0, 1, 2]).unwrap();
            let values =
                |t: candle_core::Tensor| t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
            for (at, (a, b)) in values(ours).into_iter().zip(values(exact)).enumerate() {
                assert!((a - b).abs() <= 1e-6 * b.abs().max(0.1), "{dtype:?} {at}: {a} and {b}");
            }
        }
    }
}
