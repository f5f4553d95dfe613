//! What a GGUF file says about its model, whatever the architecture: for whoever
//! sizes memory and computes nothing.

use std::collections::BTreeMap;
use std::path::Path;

use super::header::{Header, Value};
use super::metadata::{Metadata, required};
use super::{MappedFile, load_error, majority};
use crate::infer::InferError;
use crate::infer::weights::StoredDtype;

/// Numbers of a GGUF file's header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GgufSummary {
    /// `general.architecture`.
    pub architecture: String,
    /// Metadata that are whole numbers; of lists, the largest.
    pub numbers: BTreeMap<String, u64>,
    /// Elements of all tensors but those of the rotary embedding.
    pub num_parameters: u64,
    /// Length of the file.
    pub file_bytes: u64,
    /// Rows of the token embedding.
    pub vocab_size: Option<u64>,
    /// Whether there is no output head beside the embedding.
    pub tied: bool,
    /// The type that holds most bytes.
    pub stored: StoredDtype,
}

impl GgufSummary {
    /// Reads the header of the file at `path`.
    ///
    /// # Errors
    /// [`InferError::Load`] for a file that is damaged, truncated or no GGUF.
    pub fn read(path: &Path) -> Result<Self, InferError> {
        let file = MappedFile::open(path)?;
        Self::of(file.bytes()).map_err(|reason| load_error(path, reason))
    }

    fn of(bytes: &[u8]) -> Result<Self, String> {
        let header = Header::parse(bytes)?;
        let metadata = Metadata(&header.metadata);
        let architecture =
            required("general.architecture", metadata.str("general.architecture")?)?.to_owned();
        if let Some(parts) = metadata.int::<u64>("split.count")?.filter(|parts| *parts > 1) {
            return Err(format!("one of {parts} parts of a split GGUF, which is not supported"));
        }
        let numbers = header.metadata.iter().filter_map(|(key, value)| {
            let number = match value {
                Value::UInt(n) => Some(*n),
                Value::Int(n) => u64::try_from(*n).ok(),
                // Some families give a number for each layer.
                Value::Ints(list) if !key.starts_with("tokenizer.") => {
                    list.iter().filter_map(|n| u64::try_from(*n).ok()).max()
                }
                _ => None,
            };
            Some((key.clone(), number?))
        });
        let weights = header.tensors.iter().filter(|(name, _)| !name.starts_with("rope_"));
        let elements =
            |shape: &[usize]| shape.iter().fold(1, |n: u64, dim| n.saturating_mul(*dim as u64));
        let embedding = header.tensors.get("token_embd.weight");
        Ok(Self {
            architecture,
            numbers: numbers.collect(),
            num_parameters: weights
                .map(|(_, info)| elements(&info.shape))
                .fold(0, u64::saturating_add),
            file_bytes: bytes.len() as u64,
            vocab_size: embedding.and_then(|info| info.shape.first()).map(|rows| *rows as u64),
            tied: !header.tensors.contains_key("output.weight"),
            stored: majority(
                header.tensors.values().map(|info| (info.dtype.into(), info.num_bytes as u64)),
            ),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_gguf_is_refused() {
        assert!(GgufSummary::of(b"GGUT").unwrap_err().contains("not a GGUF file"));
        assert!(GgufSummary::of(b"").is_err());
    }
}
