//! Our own `requests.jsonl`, or the run directory that holds it: instants of
//! arrival and lengths of one case, the first unless `#N` at the end of the
//! path names another. Warm-up requests are left out.

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::{Conversation, MAX_CONVERSATIONS, SourceError, Turn, lines};
use crate::record::RequestRecord;

pub(super) fn read(path: &Path) -> Result<Vec<Conversation>, SourceError> {
    let (file, mut case) = locate(path);
    let mut found = Vec::new();
    lines(&file, |_, text| {
        let record: RequestRecord =
            serde_json::from_str(text).map_err(|error| error.to_string())?;
        if record.warmup || case.is_some_and(|case| case != record.case) {
            return Ok(true);
        }
        case = Some(record.case);
        found.extend(conversation(&record));
        Ok(found.len() < MAX_CONVERSATIONS)
    })?;
    Ok(found)
}

/// The file, and the case that `#N` names.
fn locate(path: &Path) -> (PathBuf, Option<u32>) {
    let text = path.to_string_lossy();
    let named = text
        .rsplit_once('#')
        .and_then(|(path, case)| Some((PathBuf::from(path), case.parse::<u32>().ok()?)));
    let (path, case) = match named {
        Some((path, case)) => (path, Some(case)),
        None => (path.to_owned(), None),
    };
    if path.is_dir() { (path.join("requests.jsonl"), case) } else { (path, case) }
}

fn conversation(record: &RequestRecord) -> Option<Conversation> {
    let turn = Turn::Lengths {
        prompt_tokens: record.requested_prompt_tokens.or(record.num_prompt_tokens)?.max(1),
        output_tokens: record.num_output_tokens.unwrap_or(record.max_tokens).max(1),
        blocks: Vec::new(),
    };
    let at = Duration::from_nanos(record.intended_at_ns.as_nanos());
    Some(Conversation { at, turns: vec![turn] })
}
