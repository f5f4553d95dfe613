//! The storage types of GGML: which are read, how large their blocks are, and
//! what the others are called when they are refused.

use std::fmt;

use candle_core::quantized::GgmlDType;

use crate::infer::weights::StoredDtype;

/// How a tensor is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum TensorType {
    F32,
    F16,
    Bf16,
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q2K,
    Q3K,
    Q4K,
    Q5K,
    Q6K,
    /// A type that is not read, by its code.
    Other(u32),
}

impl TensorType {
    pub(super) const fn from_code(code: u32) -> Self {
        match code {
            0 => Self::F32,
            1 => Self::F16,
            2 => Self::Q4_0,
            3 => Self::Q4_1,
            6 => Self::Q5_0,
            7 => Self::Q5_1,
            8 => Self::Q8_0,
            10 => Self::Q2K,
            11 => Self::Q3K,
            12 => Self::Q4K,
            13 => Self::Q5K,
            14 => Self::Q6K,
            30 => Self::Bf16,
            other => Self::Other(other),
        }
    }

    /// Elements and bytes of a block; `None` for types that are not read.
    pub(crate) fn block(self) -> Option<(usize, usize)> {
        match self {
            Self::F32 => Some((1, 4)),
            Self::F16 | Self::Bf16 => Some((1, 2)),
            quantized => quantized.ggml().map(|dtype| (dtype.block_size(), dtype.type_size())),
        }
    }

    /// Where a block has its scales in half precision; nothing for types without blocks.
    pub(super) const fn scale_offsets(self) -> &'static [usize] {
        match self {
            Self::Q4_0 | Self::Q5_0 | Self::Q8_0 => &[0],
            Self::Q4_1 | Self::Q5_1 | Self::Q4K | Self::Q5K => &[0, 2],
            Self::Q2K => &[80, 82],
            Self::Q3K => &[108],
            Self::Q6K => &[208],
            Self::F32 | Self::F16 | Self::Bf16 | Self::Other(_) => &[],
        }
    }

    /// The block-quantized types as candle knows them.
    pub(super) const fn ggml(self) -> Option<GgmlDType> {
        match self {
            Self::Q4_0 => Some(GgmlDType::Q4_0),
            Self::Q4_1 => Some(GgmlDType::Q4_1),
            Self::Q5_0 => Some(GgmlDType::Q5_0),
            Self::Q5_1 => Some(GgmlDType::Q5_1),
            Self::Q8_0 => Some(GgmlDType::Q8_0),
            Self::Q2K => Some(GgmlDType::Q2K),
            Self::Q3K => Some(GgmlDType::Q3K),
            Self::Q4K => Some(GgmlDType::Q4K),
            Self::Q5K => Some(GgmlDType::Q5K),
            Self::Q6K => Some(GgmlDType::Q6K),
            Self::F32 | Self::F16 | Self::Bf16 | Self::Other(_) => None,
        }
    }
}

impl From<TensorType> for StoredDtype {
    fn from(dtype: TensorType) -> Self {
        match dtype {
            TensorType::F32 => Self::F32,
            TensorType::F16 => Self::F16,
            TensorType::Bf16 => Self::Bf16,
            blocks => Self::Blocks(blocks.to_string()),
        }
    }
}

impl fmt::Display for TensorType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::F32 => "F32",
            Self::F16 => "F16",
            Self::Bf16 => "BF16",
            Self::Q4_0 => "Q4_0",
            Self::Q4_1 => "Q4_1",
            Self::Q5_0 => "Q5_0",
            Self::Q5_1 => "Q5_1",
            Self::Q8_0 => "Q8_0",
            Self::Q2K => "Q2_K",
            Self::Q3K => "Q3_K",
            Self::Q4K => "Q4_K",
            Self::Q5K => "Q5_K",
            Self::Q6K => "Q6_K",
            Self::Other(16) => "IQ2_XXS",
            Self::Other(17) => "IQ2_XS",
            Self::Other(18) => "IQ3_XXS",
            Self::Other(19) => "IQ1_S",
            Self::Other(20) => "IQ4_NL",
            Self::Other(21) => "IQ3_S",
            Self::Other(22) => "IQ2_S",
            Self::Other(23) => "IQ4_XS",
            Self::Other(29) => "IQ1_M",
            Self::Other(34) => "TQ1_0",
            Self::Other(35) => "TQ2_0",
            Self::Other(39) => "MXFP4",
            Self::Other(code) => return write!(f, "GGML type {code}"),
        })
    }
}
