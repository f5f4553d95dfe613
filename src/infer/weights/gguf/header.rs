//! The header of a GGUF file: metadata and the table of tensors, read from
//! untrusted bytes. Every count is held against the bytes that are left before
//! anything is allocated. Knows no architecture.
//!
//! Format: <https://github.com/ggml-org/ggml/blob/master/docs/gguf.md>

use std::collections::BTreeMap;

use super::reader::Reader;
use super::tensor_type::TensorType;

const MAGIC: &[u8] = b"GGUF";
const DEFAULT_ALIGNMENT: u64 = 32;
const MAX_ALIGNMENT: u64 = 1 << 20;
const MAX_DIMENSIONS: u32 = 4;
const MAX_ARRAY_DEPTH: usize = 4;
/// Shortest possible entries: key length, type, one byte; name length, rank, type, offset.
const MIN_METADATA_BYTES: u64 = 8 + 4 + 1;
const MIN_TENSOR_BYTES: u64 = 8 + 4 + 4 + 8;

/// A metadata value. Arrays keep what a model is described by; arrays of arrays are skipped.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Value {
    Int(i64),
    UInt(u64),
    F32(f32),
    F64(f64),
    Bool(bool),
    Str(String),
    Strs(Vec<String>),
    Ints(Vec<i64>),
    Floats(Vec<f64>),
    Skipped,
}

/// Where a tensor lies and what it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TensorInfo {
    pub(crate) dtype: TensorType,
    /// `[out, in]`, the reverse of the file's order.
    pub(crate) shape: Vec<usize>,
    /// Of its first byte, from the start of the file.
    pub(crate) start: usize,
    /// Bytes, 0 where the type's size is unknown.
    pub(crate) num_bytes: usize,
}

/// Everything before the tensors.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Header {
    pub(crate) metadata: BTreeMap<String, Value>,
    pub(crate) tensors: BTreeMap<String, TensorInfo>,
}

impl Header {
    /// Reads the header at the start of `bytes`, the whole file.
    pub(crate) fn parse(bytes: &[u8]) -> Result<Self, String> {
        let mut reader = Reader::new(bytes);
        if reader.take(4)? != MAGIC {
            return Err("not a GGUF file: it does not begin with `GGUF`".to_owned());
        }
        match reader.u32()? {
            2 | 3 => {}
            version if matches!(version.swap_bytes(), 2 | 3) => {
                return Err("big-endian GGUF is not supported".to_owned());
            }
            version => {
                return Err(format!("GGUF version {version} is not supported, expected 2 or 3"));
            }
        }
        let (num_tensors, num_metadata) = (reader.u64()?, reader.u64()?);
        reader.check_room("metadata entries", num_metadata, MIN_METADATA_BYTES)?;
        reader.check_room("tensors", num_tensors, MIN_TENSOR_BYTES)?;

        let mut metadata = BTreeMap::new();
        for _ in 0..num_metadata {
            let key = reader.string()?;
            let kind = reader.u32()?;
            let value = read_value(&mut reader, kind, 0).map_err(|e| format!("`{key}`: {e}"))?;
            if metadata.insert(key.clone(), value).is_some() {
                return Err(format!("metadata `{key}` occurs twice"));
            }
        }
        let alignment = alignment(&metadata)?;
        let mut tensors = Vec::new();
        for _ in 0..num_tensors {
            let name = reader.string()?;
            tensors.push(read_tensor(&mut reader, &name).map(|tensor| (name, tensor))?);
        }
        let data_start = (reader.position() as u64).next_multiple_of(alignment);
        let mut table = BTreeMap::new();
        for (name, raw) in tensors {
            let info = raw
                .place(data_start, alignment, bytes.len() as u64)
                .map_err(|e| format!("tensor `{name}`: {e}"))?;
            if table.insert(name.clone(), info).is_some() {
                return Err(format!("tensor `{name}` occurs twice"));
            }
        }
        refuse_overlap(&table)?;
        Ok(Self { metadata, tensors: table })
    }
}

/// Two tensors never share bytes: where they do, an offset is damaged.
fn refuse_overlap(tensors: &BTreeMap<String, TensorInfo>) -> Result<(), String> {
    let mut placed: Vec<_> = tensors.iter().filter(|(_, info)| info.num_bytes > 0).collect();
    placed.sort_by_key(|(_, info)| info.start);
    let overlap =
        placed.windows(2).find(|two| two[0].1.start + two[0].1.num_bytes > two[1].1.start);
    overlap.map_or(Ok(()), |two| {
        Err(format!("tensors `{}` and `{}` lie over each other, it is damaged", two[0].0, two[1].0))
    })
}

struct RawTensor {
    dtype: TensorType,
    shape: Vec<u64>,
    offset: u64,
}

fn read_tensor(reader: &mut Reader<'_>, name: &str) -> Result<RawTensor, String> {
    let rank = reader.u32()?;
    if rank > MAX_DIMENSIONS {
        return Err(format!(
            "tensor `{name}` has {rank} dimensions, at most {MAX_DIMENSIONS} may be"
        ));
    }
    let mut shape = (0..rank).map(|_| reader.u64()).collect::<Result<Vec<_>, _>>()?;
    shape.reverse();
    Ok(RawTensor { dtype: TensorType::from_code(reader.u32()?), shape, offset: reader.u64()? })
}

impl RawTensor {
    fn place(self, data_start: u64, alignment: u64, file_len: u64) -> Result<TensorInfo, String> {
        let elements = self
            .shape
            .iter()
            .try_fold(1_u64, |product, dim| product.checked_mul(*dim))
            .ok_or_else(|| format!("its shape {:?} is absurd", self.shape))?;
        let row = self.shape.last().copied().unwrap_or(1);
        let num_bytes = match self.dtype.block() {
            None => 0,
            Some((block, block_bytes)) => {
                if !row.is_multiple_of(block as u64) {
                    return Err(format!(
                        "rows of {row} elements are no whole {} blocks of {block}",
                        self.dtype
                    ));
                }
                (elements / block as u64)
                    .checked_mul(block_bytes as u64)
                    .ok_or_else(|| format!("its shape {:?} is absurd", self.shape))?
            }
        };
        if !self.offset.is_multiple_of(alignment) {
            return Err(format!("its offset {} is not aligned to {alignment}", self.offset));
        }
        let start = data_start.checked_add(self.offset);
        let end = start.and_then(|start| start.checked_add(num_bytes));
        let (Some(start), Some(_)) = (start, end.filter(|end| *end <= file_len)) else {
            return Err(format!(
                "needs {num_bytes} bytes at offset {} of the data, the file ends after {}; \
                 it is truncated or damaged",
                self.offset,
                file_len.saturating_sub(data_start)
            ));
        };
        let size = |n: u64| usize::try_from(n).map_err(|_| format!("{n} exceeds this machine"));
        Ok(TensorInfo {
            dtype: self.dtype,
            shape: self.shape.iter().map(|dim| size(*dim)).collect::<Result<_, _>>()?,
            start: size(start)?,
            num_bytes: size(num_bytes)?,
        })
    }
}

/// The spec asks for a multiple of 8; with it every block lies where its fields may.
fn alignment(metadata: &BTreeMap<String, Value>) -> Result<u64, String> {
    match metadata.get("general.alignment") {
        None => Ok(DEFAULT_ALIGNMENT),
        Some(Value::UInt(n)) if (8..=MAX_ALIGNMENT).contains(n) && n.is_multiple_of(8) => Ok(*n),
        Some(other) => Err(format!("general.alignment is {other:?}, expected a multiple of 8")),
    }
}

fn read_value(reader: &mut Reader<'_>, kind: u32, depth: usize) -> Result<Value, String> {
    Ok(match kind {
        0 => Value::UInt(u64::from(reader.u8()?)),
        1 => Value::Int(i64::from(reader.u8()?.cast_signed())),
        2 => Value::UInt(u64::from(reader.u16()?)),
        3 => Value::Int(i64::from(reader.u16()?.cast_signed())),
        4 => Value::UInt(u64::from(reader.u32()?)),
        5 => Value::Int(i64::from(reader.u32()?.cast_signed())),
        6 => Value::F32(f32::from_bits(reader.u32()?)),
        7 => match reader.u8()? {
            0 => Value::Bool(false),
            1 => Value::Bool(true),
            other => return Err(format!("a truth value is {other}, expected 0 or 1")),
        },
        8 => Value::Str(reader.string()?),
        9 => read_array(reader, depth)?,
        10 => Value::UInt(reader.u64()?),
        11 => Value::Int(reader.u64()?.cast_signed()),
        12 => Value::F64(f64::from_bits(reader.u64()?)),
        other => return Err(format!("value type {other} is unknown")),
    })
}

fn read_array(reader: &mut Reader<'_>, depth: usize) -> Result<Value, String> {
    if depth >= MAX_ARRAY_DEPTH {
        return Err(format!("arrays are nested deeper than {MAX_ARRAY_DEPTH}"));
    }
    let kind = reader.u32()?;
    let len = reader.u64()?;
    let smallest = match kind {
        0 | 1 | 7 => 1,
        2 | 3 => 2,
        4..=6 => 4,
        8 | 10..=12 => 8,
        9 => 12,
        other => return Err(format!("element type {other} is unknown")),
    };
    reader.check_room("array elements", len, smallest)?;
    let (mut strs, mut ints, mut floats) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..len {
        match read_value(reader, kind, depth + 1)? {
            Value::Str(text) => strs.push(text),
            Value::Int(n) => ints.push(n),
            Value::UInt(n) => {
                ints.push(i64::try_from(n).map_err(|_| format!("{n} is out of range"))?);
            }
            Value::Bool(truth) => ints.push(i64::from(truth)),
            Value::F32(x) => floats.push(f64::from(x)),
            Value::F64(x) => floats.push(x),
            Value::Strs(_) | Value::Ints(_) | Value::Floats(_) | Value::Skipped => {}
        }
    }
    Ok(match kind {
        6 | 12 => Value::Floats(floats),
        8 => Value::Strs(strs),
        9 => Value::Skipped,
        _ => Value::Ints(ints),
    })
}
