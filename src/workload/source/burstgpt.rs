//! BurstGPT's traces: CSV with the columns `Timestamp` (s), `Request tokens`
//! and `Response tokens`, found by their names; other columns are not heeded.
//! Rows without an answer are requests that failed, and are left out.

use std::path::Path;

use super::{Conversation, MAX_CONVERSATIONS, SourceError, Turn, lines, seconds, tokens};

const COLUMNS: [&str; 3] = ["Timestamp", "Request tokens", "Response tokens"];

pub(super) fn read(path: &Path) -> Result<Vec<Conversation>, SourceError> {
    let mut columns = None;
    let mut found = Vec::new();
    lines(path, |_, text| {
        let fields = fields(text)?;
        let Some(columns) = columns else {
            columns = Some(locate(&fields)?);
            return Ok(true);
        };
        found.extend(conversation(&fields, columns)?);
        Ok(found.len() < MAX_CONVERSATIONS)
    })?;
    Ok(found)
}

/// The fields of one line. No field of these traces holds a line break.
fn fields(text: &str) -> Result<Vec<String>, String> {
    let mut reader =
        csv::ReaderBuilder::new().has_headers(false).flexible(true).from_reader(text.as_bytes());
    let mut record = csv::StringRecord::new();
    reader.read_record(&mut record).map_err(|error| error.to_string())?;
    Ok(record.iter().map(|field| field.trim().to_owned()).collect())
}

fn locate(header: &[String]) -> Result<[usize; 3], String> {
    let mut at = [0; 3];
    for (place, name) in at.iter_mut().zip(COLUMNS) {
        *place = header.iter().position(|field| field == name).ok_or_else(|| {
            format!("no column `{name}`: expected a header with {}", COLUMNS.join(", "))
        })?;
    }
    Ok(at)
}

fn conversation(fields: &[String], columns: [usize; 3]) -> Result<Option<Conversation>, String> {
    let mut values = [0.0; 3];
    for ((value, column), name) in values.iter_mut().zip(columns).zip(COLUMNS) {
        let field = fields.get(column).map_or("", String::as_str);
        *value = field
            .parse::<f64>()
            .map_err(|_| format!("`{name}` is `{field}`: expected a number"))?;
    }
    let [at, request, response] = values;
    if response == 0.0 {
        return Ok(None);
    }
    let turn = Turn::Lengths {
        prompt_tokens: tokens(COLUMNS[1], whole(request))?,
        output_tokens: tokens(COLUMNS[2], whole(response))?,
        blocks: Vec::new(),
    };
    Ok(Some(Conversation { at: seconds(COLUMNS[0], at)?, turns: vec![turn] }))
}

/// Some versions write counts as `472.0`.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "saturates, and what is out of range is refused afterwards"
)]
fn whole(value: f64) -> u64 {
    value as u64
}
