//! Typed access to GGUF metadata, with errors that name the key.

use std::collections::BTreeMap;

use super::header::Value;

/// Metadata of one file.
pub(super) struct Metadata<'a>(pub(super) &'a BTreeMap<String, Value>);

impl<'a> Metadata<'a> {
    pub(super) fn str(&self, key: &str) -> Result<Option<&'a str>, String> {
        match self.0.get(key) {
            None => Ok(None),
            Some(Value::Str(text)) => Ok(Some(text)),
            Some(other) => Err(unexpected(key, "text", other)),
        }
    }

    pub(super) fn strs(&self, key: &str) -> Result<Option<&'a [String]>, String> {
        match self.0.get(key) {
            None => Ok(None),
            Some(Value::Strs(texts)) => Ok(Some(texts)),
            Some(other) => Err(unexpected(key, "a list of texts", other)),
        }
    }

    pub(super) fn ints(&self, key: &str) -> Result<Option<&'a [i64]>, String> {
        match self.0.get(key) {
            None => Ok(None),
            Some(Value::Ints(numbers)) => Ok(Some(numbers)),
            Some(other) => Err(unexpected(key, "a list of whole numbers", other)),
        }
    }

    pub(super) fn bool(&self, key: &str) -> Result<Option<bool>, String> {
        match self.0.get(key) {
            None => Ok(None),
            Some(Value::Bool(truth)) => Ok(Some(*truth)),
            Some(other) => Err(unexpected(key, "a truth value", other)),
        }
    }

    /// A whole number that is not negative.
    pub(super) fn int<T: TryFrom<u64>>(&self, key: &str) -> Result<Option<T>, String> {
        let number = match self.0.get(key) {
            None => return Ok(None),
            Some(Value::UInt(n)) => Some(*n),
            Some(Value::Int(n)) => u64::try_from(*n).ok(),
            Some(other) => return Err(unexpected(key, "a whole number", other)),
        };
        match number.and_then(|n| T::try_from(n).ok()) {
            Some(n) => Ok(Some(n)),
            None => Err(format!("`{key}` is out of range")),
        }
    }

    pub(super) fn float(&self, key: &str) -> Result<Option<f64>, String> {
        match self.0.get(key) {
            None => Ok(None),
            // 1e-5 was written as f32; its shortest decimal is the number that was meant.
            Some(Value::F32(x)) => Ok(x.to_string().parse().ok()),
            Some(Value::F64(x)) => Ok(Some(*x)),
            Some(other) => Err(unexpected(key, "a number", other)),
        }
    }
}

/// The value, or an error that names what is missing.
pub(super) fn required<T>(key: &str, value: Option<T>) -> Result<T, String> {
    value.ok_or_else(|| format!("metadata `{key}` is missing"))
}

fn unexpected(key: &str, expected: &str, got: &Value) -> String {
    let got = match got {
        Value::Int(n) => n.to_string(),
        Value::UInt(n) => n.to_string(),
        Value::F32(x) => x.to_string(),
        Value::F64(x) => x.to_string(),
        Value::Bool(truth) => truth.to_string(),
        Value::Str(_) => "text".to_owned(),
        Value::Strs(_) | Value::Ints(_) | Value::Floats(_) | Value::Skipped => "a list".to_owned(),
    };
    format!("metadata `{key}` should be {expected}, got {got}")
}
