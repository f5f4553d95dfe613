//! One weight as its file has it: f32 values, or bytes of the file that the
//! engine packs without widening them first.

use std::borrow::Cow;

use candle_core::quantized::{GgmlDType, QStorage, QTensor};
use candle_core::{Device, Result, Tensor, bail};
use half::{bf16, f16};

use super::dense::{widen_bf16, widen_parallel};

/// What the fields of the widest block need.
const BLOCK_ALIGN: usize = align_of::<f16>();
const _: () = assert!(align_of::<bf16>() == BLOCK_ALIGN);

/// One weight, dense or in the blocks of its file.
#[derive(Debug, Clone)]
pub enum Weight<'a> {
    /// Dense, f32, contiguous.
    Dense(Tensor),
    /// A matrix of bf16.
    Bf16(Bf16Rows<'a>),
    /// A matrix of GGML blocks.
    Quantized(QuantizedRows<'a>),
}

/// `[out, in]` of little-endian bf16.
#[derive(Debug, Clone)]
pub struct Bf16Rows<'a> {
    bytes: Cow<'a, [u8]>,
    shape: [usize; 2],
}

/// `[out, in]` in the blocks of a GGUF file; a block never spans rows.
#[derive(Debug, Clone)]
pub struct QuantizedRows<'a> {
    dtype: GgmlDType,
    bytes: Cow<'a, [u8]>,
    shape: [usize; 2],
}

impl Weight<'_> {
    /// Rows and columns.
    ///
    /// # Errors
    /// When it is no matrix.
    pub fn matrix_shape(&self) -> Result<(usize, usize)> {
        match self {
            Self::Dense(tensor) => tensor.dims2(),
            Self::Bf16(rows) => Ok(rows.shape.into()),
            Self::Quantized(rows) => Ok(rows.shape.into()),
        }
    }

    /// All values in f32.
    ///
    /// # Errors
    /// When blocks cannot be read.
    pub fn to_f32(&self) -> Result<Tensor> {
        match self {
            Self::Dense(tensor) => Ok(tensor.clone()),
            Self::Bf16(rows) => {
                let values = widen_parallel(&rows.bytes, 2, widen_bf16);
                Tensor::from_vec(values, &rows.shape, &Device::Cpu)
            }
            Self::Quantized(rows) => rows.to_qtensor()?.dequantize(&Device::Cpu),
        }
    }
}

impl<'a> Bf16Rows<'a> {
    /// Rows over `bytes`.
    ///
    /// # Errors
    /// When their number is not that of the shape.
    pub fn new(bytes: impl Into<Cow<'a, [u8]>>, shape: [usize; 2]) -> Result<Self> {
        let bytes = bytes.into();
        if shape[0].checked_mul(shape[1]).and_then(|n| n.checked_mul(2)) != Some(bytes.len()) {
            bail!("{} bytes are no bf16 of {shape:?}", bytes.len());
        }
        Ok(Self { bytes, shape })
    }

    /// All rows, little-endian.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// A row, two values to a word, the first in the low half; the last word of
    /// an odd row is half zero.
    pub fn pairs(&self, row: usize, words: &mut [u32]) {
        let row_bytes = 2 * self.shape[1];
        let (pairs, rest) = self.bytes[row * row_bytes..(row + 1) * row_bytes].as_chunks::<4>();
        for (word, pair) in words.iter_mut().zip(pairs) {
            *word = u32::from_le_bytes(*pair);
        }
        if let ([low, high], Some(word)) = (rest, words.last_mut()) {
            *word = u32::from(u16::from_le_bytes([*low, *high]));
        }
    }
}

impl<'a> QuantizedRows<'a> {
    /// Rows over `bytes`.
    ///
    /// # Errors
    /// When rows are no whole blocks, or the bytes are not those of the shape.
    pub fn new(
        dtype: GgmlDType,
        bytes: impl Into<Cow<'a, [u8]>>,
        shape: [usize; 2],
    ) -> Result<Self> {
        let bytes = bytes.into();
        let blocks = shape[1] / dtype.block_size();
        let expected = shape[0].checked_mul(blocks).and_then(|n| n.checked_mul(dtype.type_size()));
        if !shape[1].is_multiple_of(dtype.block_size()) || expected != Some(bytes.len()) {
            bail!("{} bytes are no {dtype:?} of {shape:?}", bytes.len());
        }
        Ok(Self { dtype, bytes, shape })
    }

    /// Rows and columns.
    #[must_use]
    pub const fn shape(&self) -> [usize; 2] {
        self.shape
    }

    /// The block type.
    #[must_use]
    pub const fn dtype(&self) -> GgmlDType {
        self.dtype
    }

    /// The blocks of a row.
    #[must_use]
    pub fn row(&self, row: usize) -> &[u8] {
        let row_bytes = self.bytes.len() / self.shape[0];
        &self.bytes[row * row_bytes..(row + 1) * row_bytes]
    }

    /// As candle's tensor.
    ///
    /// # Errors
    /// When candle does not take the shape.
    pub fn to_qtensor(&self) -> Result<QTensor> {
        let aligned = Aligned::of(&self.bytes);
        let storage = QStorage::Cpu(self.dtype.from_data(Cow::Borrowed(aligned.bytes())));
        QTensor::new(storage, (self.shape[0], self.shape[1]))
    }
}

/// Bytes that start where a block may: candle asserts it.
pub(super) struct Aligned<'a> {
    bytes: Cow<'a, [u8]>,
    start: usize,
}

impl<'a> Aligned<'a> {
    pub(super) fn of(bytes: &'a [u8]) -> Self {
        if bytes.as_ptr().addr().is_multiple_of(BLOCK_ALIGN) {
            return Self { bytes: Cow::Borrowed(bytes), start: 0 };
        }
        let mut copy: Vec<u8> = Vec::with_capacity(bytes.len() + BLOCK_ALIGN);
        let start = copy.as_ptr().addr() % BLOCK_ALIGN;
        copy.resize(start, 0);
        copy.extend_from_slice(bytes);
        Self { bytes: Cow::Owned(copy), start }
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes[self.start..]
    }
}
