//! The block formats of GGML as their panels have them: how many bits a code
//! takes and how they lie, what stands for zero, and what multiplies a code.
//! Does not know how a file spells them: see [`super::stored_block`].
//!
//! Every format is super-blocks of one or eight blocks of 32 inputs. A panel's
//! super-block is its head, then its blocks. The head is a line of scales and,
//! if there are minima, a line of those, a half float a column. A block is its
//! codes, word after word of all columns, then, in a super-block of eight, a
//! line of factors: two bytes a column, the first of all columns first.

use candle_core::quantized::GgmlDType;

use super::panel::{LINE, PANEL};

/// A block format: `scale * (code - zero)`, or `scale * code + min`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BlockFormat {
    Q8_0,
    Q5_0,
    Q5_1,
    Q4_0,
    Q4_1,
    Q2K,
    Q3K,
    Q4K,
    Q5K,
    Q6K,
}

/// What a block of a super-block multiplies the super-block's scale and minimum with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Factors {
    /// Nothing: it is alone in its super-block.
    None,
    /// A byte with the scale, a byte with the minimum.
    ScaleAndMin,
    /// A signed byte with the scale, for each of its halves.
    Scales,
    /// The low four bits of a byte with the scale, the high ones with the
    /// minimum, for each of its halves.
    Nibbles,
}

impl BlockFormat {
    /// All of them, as they are numbered.
    pub const ALL: [Self; 10] = [
        Self::Q8_0,
        Self::Q5_0,
        Self::Q5_1,
        Self::Q4_0,
        Self::Q4_1,
        Self::Q2K,
        Self::Q3K,
        Self::Q4K,
        Self::Q5K,
        Self::Q6K,
    ];

    /// The format of a GGML type that is one.
    pub const fn of(dtype: GgmlDType) -> Option<Self> {
        match dtype {
            GgmlDType::Q8_0 => Some(Self::Q8_0),
            GgmlDType::Q5_0 => Some(Self::Q5_0),
            GgmlDType::Q5_1 => Some(Self::Q5_1),
            GgmlDType::Q4_0 => Some(Self::Q4_0),
            GgmlDType::Q4_1 => Some(Self::Q4_1),
            GgmlDType::Q2K => Some(Self::Q2K),
            GgmlDType::Q3K => Some(Self::Q3K),
            GgmlDType::Q4K => Some(Self::Q4K),
            GgmlDType::Q5K => Some(Self::Q5K),
            GgmlDType::Q6K => Some(Self::Q6K),
            GgmlDType::F32
            | GgmlDType::F16
            | GgmlDType::BF16
            | GgmlDType::Q8_1
            | GgmlDType::Q8K => None,
        }
    }

    /// Bits of a code; and, as a block has 32 of them, words of a column's codes in a block.
    pub const fn bits(self) -> usize {
        match self {
            Self::Q8_0 => 8,
            Self::Q6K => 6,
            Self::Q5_0 | Self::Q5_1 | Self::Q5K => 5,
            Self::Q4_0 | Self::Q4_1 | Self::Q4K => 4,
            Self::Q3K => 3,
            Self::Q2K => 2,
        }
    }

    /// The code that stands for zero.
    pub const fn zero(self) -> i32 {
        match self {
            Self::Q8_0 => 128,
            Self::Q6K => 32,
            Self::Q5_0 => 16,
            Self::Q4_0 => 8,
            Self::Q3K => 4,
            Self::Q5_1 | Self::Q4_1 | Self::Q2K | Self::Q4K | Self::Q5K => 0,
        }
    }

    /// Whether a minimum is added.
    pub const fn has_min(self) -> bool {
        self.zero() == 0
    }

    /// What its blocks have of their own.
    pub const fn factors(self) -> Factors {
        match self {
            Self::Q8_0 | Self::Q5_0 | Self::Q5_1 | Self::Q4_0 | Self::Q4_1 => Factors::None,
            Self::Q4K | Self::Q5K => Factors::ScaleAndMin,
            Self::Q3K | Self::Q6K => Factors::Scales,
            Self::Q2K => Factors::Nibbles,
        }
    }

    /// Blocks of a super-block.
    pub const fn num_blocks(self) -> usize {
        match self.factors() {
            Factors::None => 1,
            Factors::ScaleAndMin | Factors::Scales | Factors::Nibbles => 8,
        }
    }

    /// Stretches of a block that have each their scale: itself, or its halves.
    pub const fn num_stretches(self) -> usize {
        match self.factors() {
            Factors::None | Factors::ScaleAndMin => 1,
            Factors::Scales | Factors::Nibbles => 2,
        }
    }

    /// Cache lines of a super-block's head.
    pub const fn head_lines(self) -> usize {
        1 + self.has_min() as usize
    }

    /// Cache lines of a block's codes.
    pub const fn code_lines(self) -> usize {
        self.bits() * PANEL / LINE
    }

    /// Cache lines of a block.
    pub const fn block_lines(self) -> usize {
        self.code_lines() + (self.num_blocks() > 1) as usize
    }

    /// Cache lines of a super-block.
    pub const fn lines(self) -> usize {
        self.head_lines() + self.num_blocks() * self.block_lines()
    }

    /// The planes of which a code is put together: its low bits, and those above
    /// them, if they are not a power of two together.
    pub const fn planes(self) -> (Plane, Option<Plane>) {
        let low = 1 << self.bits().ilog2();
        let high = match self.bits() - low {
            0 => None,
            bits => Some(Plane { bits, first: low }),
        };
        (Plane { bits: low, first: 0 }, high)
    }
}

/// Some bits of all codes of a block: `bits` words a column, after those of the
/// plane below. Four neighbouring codes, a group, are the bytes of a word. Group
/// `g` is in word `g % bits`, shifted up by `bits * (g / bits)`.
#[derive(Debug, Clone, Copy)]
pub struct Plane {
    /// Bits of a code that it has: a power of two.
    bits: usize,
    /// Its first word, and its first bit of a code: the plane below has as many
    /// of either.
    pub first: usize,
}

impl Plane {
    /// The word that has a group's bits.
    pub const fn word(self, group: usize) -> usize {
        self.first + group % self.bits
    }

    /// How far they are shifted up in it.
    pub const fn shift(self, group: usize) -> usize {
        self.bits * (group / self.bits)
    }

    /// Its bits of four codes, at the bottom of their bytes.
    pub const fn mask(self) -> u32 {
        0x0101_0101 * ((1 << self.bits) - 1)
    }
}

/// Runs `$body` compiled for the format, whose number in [`BlockFormat::ALL`] it
/// knows as `$number`.
macro_rules! with_format {
    ($format:expr, $number:ident => $body:expr) => {
        with_format!(
            @ $format, $number, $body;
            Q8_0 Q5_0 Q5_1 Q4_0 Q4_1 Q2K Q3K Q4K Q5K Q6K
        )
    };
    (@ $format:expr, $number:ident, $body:expr; $($name:ident)*) => {
        match $format {
            $($crate::infer::ops::linear::block_format::BlockFormat::$name => {
                const $number: usize =
                    $crate::infer::ops::linear::block_format::BlockFormat::$name as usize;
                $body
            })*
        }
    };
}
pub(super) use with_format;

/// The GGML types of [`BlockFormat::ALL`].
#[cfg(test)]
pub const DTYPES: [GgmlDType; 10] = [
    GgmlDType::Q8_0,
    GgmlDType::Q5_0,
    GgmlDType::Q5_1,
    GgmlDType::Q4_0,
    GgmlDType::Q4_1,
    GgmlDType::Q2K,
    GgmlDType::Q3K,
    GgmlDType::Q4K,
    GgmlDType::Q5K,
    GgmlDType::Q6K,
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::infer::ops::linear::rounded::BLOCK;

    #[test]
    fn formats_are_numbered_as_they_are_listed() {
        for (index, (format, dtype)) in BlockFormat::ALL.into_iter().zip(DTYPES).enumerate() {
            assert_eq!(format as usize, index);
            assert_eq!(BlockFormat::of(dtype), Some(format));
            assert_eq!(format.num_blocks() * BLOCK, dtype.block_size(), "{format:?}");
        }
    }

    #[test]
    fn a_panel_takes_at_most_four_percent_more_than_the_file() {
        for (format, dtype) in BlockFormat::ALL.into_iter().zip(DTYPES) {
            let (ours, files) = (format.lines() * 64, dtype.type_size() * PANEL);
            assert!(ours >= files && ours * 100 <= files * 104, "{format:?}: {ours} and {files}");
        }
    }

    #[test]
    fn planes_have_every_bit_of_every_group_once() {
        for format in BlockFormat::ALL {
            let mut taken = vec![0_u32; format.bits()];
            let (low, high) = format.planes();
            let planes = [Some(low), high].into_iter().flatten();
            for (plane, group) in planes.flat_map(|p| (0..BLOCK / 4).map(move |g| (p, g))) {
                let bits = plane.mask() << plane.shift(group);
                assert_eq!(taken[plane.word(group)] & bits, 0, "{format:?}");
                taken[plane.word(group)] |= bits;
            }
            assert!(taken.iter().all(|word| *word == u32::MAX), "{format:?}");
        }
    }
}
