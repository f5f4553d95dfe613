//! From what the driver observed to a line of `requests.jsonl`.

use crate::clock::Timestamp;
use crate::load::Completed;
use crate::record::{CountSource, EventRecord, Outcome, RequestRecord};
use crate::units;

/// What the record says beside what was observed.
pub(super) struct Setting {
    pub case: u32,
    pub warmup: bool,
    pub cold: bool,
    pub requested_prompt_tokens: Option<u32>,
    pub max_tokens: u32,
    pub prompt_sha256: String,
    pub turn: Option<u32>,
}

pub(super) fn record(completed: Completed, setting: Setting) -> RequestRecord {
    let Completed { index, intended_at, held, exchange } = completed;
    let origin = exchange.sent_at.unwrap_or(intended_at);
    let offset = |at: Timestamp| units::nanos(at.since(origin));
    let usage = exchange.usage.unwrap_or_default();
    let count_source = match usage.num_output_tokens {
        Some(_) => CountSource::Server,
        None => CountSource::None,
    };
    let outcome = match exchange.outcome {
        Ok(()) => Outcome::Ok,
        Err(error) => Outcome::Error { class: error.class, message: error.message },
    };
    RequestRecord {
        case: setting.case,
        index: u32::try_from(index).unwrap_or(u32::MAX),
        warmup: setting.warmup,
        cold: setting.cold,
        requested_prompt_tokens: setting.requested_prompt_tokens,
        max_tokens: setting.max_tokens,
        prompt_sha256: setting.prompt_sha256,
        intended_at_ns: intended_at,
        held,
        turn: setting.turn,
        sent_at_ns: exchange.sent_at,
        headers_ns: exchange.headers_at.map(offset),
        first_byte_ns: exchange.first_byte_at.map(offset),
        done_ns: offset(exchange.done_at),
        events: exchange
            .events
            .iter()
            .map(|event| EventRecord(offset(event.at), event.kind, event.num_tokens))
            .collect(),
        num_events_dropped: exchange.num_events_dropped,
        num_prompt_tokens: usage.num_prompt_tokens,
        num_output_tokens: usage.num_output_tokens,
        count_source,
        num_cached_tokens: usage.num_cached_tokens,
        finish_reason: exchange.finish_reason,
        outcome,
        server: exchange.server,
        text: exchange.text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::{EngineError, ErrorClass, EventKind, Exchange, TokenEvent};

    fn setting() -> Setting {
        Setting {
            case: 3,
            warmup: false,
            cold: true,
            requested_prompt_tokens: None,
            max_tokens: 8,
            prompt_sha256: String::new(),
            turn: None,
        }
    }

    #[test]
    fn offsets_count_from_the_send_and_not_from_the_intention() {
        let at = Timestamp::from_nanos;
        let mut exchange = Exchange::begun(at(90));
        exchange.sent_at = Some(at(100));
        exchange.push(TokenEvent { at: at(150), kind: EventKind::Content, num_tokens: None });
        exchange.done_at = at(180);
        let record =
            record(Completed { index: 2, intended_at: at(90), held: false, exchange }, setting());
        assert_eq!(record.events, [EventRecord(50, EventKind::Content, None)]);
        assert_eq!((record.done_ns, record.intended_at_ns), (80, at(90)));
        assert_eq!(record.count_source, CountSource::None);
    }

    #[test]
    fn failure_keeps_its_class_and_what_came_before() {
        let error = EngineError::new(ErrorClass::Truncated, "stream ended early");
        let mut exchange = Exchange::failed(Timestamp::from_nanos(9), error);
        exchange.text.push_str("half");
        let intended_at = Timestamp::from_nanos(1);
        let completed = Completed { index: 0, intended_at, held: false, exchange };
        let record = record(completed, setting());
        assert!(matches!(record.outcome, Outcome::Error { class: ErrorClass::Truncated, .. }));
        assert_eq!(record.text, "half");
        assert_eq!(record.sent_at_ns, None);
    }
}
