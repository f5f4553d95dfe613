//! Latencies of one request, from its record alone. Absent where the record
//! cannot tell; nothing here is an average over requests.

use crate::record::RequestRecord;

/// Nanoseconds in a millisecond.
pub const NS_PER_MS: f64 = 1e6;

/// Nanoseconds as milliseconds.
#[must_use]
#[expect(clippy::cast_precision_loss, reason = "below 2^52 ns, which is 52 days, nothing is lost")]
pub fn ms(nanos: u64) -> f64 {
    nanos as f64 / NS_PER_MS
}

/// Offsets of the events that carry at least one generated token, in ns since
/// `sent_at`, in order of arrival.
pub fn token_offsets(request: &RequestRecord) -> impl DoubleEndedIterator<Item = u64> + '_ {
    request.events.iter().filter(|event| event.1.is_token()).map(|event| event.0)
}

/// TTFT: the first event with content or reasoning, since `sent_at`. A
/// role-only first chunk carries no token.
#[must_use]
pub fn ttft_ms(request: &RequestRecord) -> Option<f64> {
    token_offsets(request).next().map(ms)
}

/// TPOT: (last token event - first token event) / (output tokens - 1). Absent
/// below two tokens, without a count, where all tokens came at one instant,
/// and where events were dropped, since the last one is then not known.
#[must_use]
pub fn tpot_ms(request: &RequestRecord) -> Option<f64> {
    let tokens = request.num_output_tokens.filter(|tokens| *tokens >= 2)?;
    let first = token_offsets(request).next()?;
    let last = token_offsets(request).next_back()?;
    let apart = last > first && request.num_events_dropped == 0;
    apart.then(|| ms(last - first) / f64::from(tokens - 1))
}

/// ITL: gaps between consecutive token-bearing events.
pub fn itl_ms(request: &RequestRecord) -> impl Iterator<Item = f64> + '_ {
    token_offsets(request)
        .zip(token_offsets(request).skip(1))
        .map(|(before, after)| ms(after.saturating_sub(before)))
}

/// E2EL: the end of the response, since `sent_at`.
#[must_use]
pub fn e2el_ms(request: &RequestRecord) -> Option<f64> {
    request.sent_at_ns.map(|_| ms(request.done_ns))
}

/// Tokens in the first token-bearing event, where the engine says.
#[must_use]
pub fn first_chunk_tokens(request: &RequestRecord) -> Option<u32> {
    request.events.iter().find(|event| event.1.is_token()).and_then(|event| event.2)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::EventKind;
    use crate::record::EventRecord;
    use crate::stats::case::tests::request;

    #[test]
    fn role_chunk_is_no_token_and_reasoning_is() {
        let mut request = request(0, 0, &[]);
        request.events = vec![
            EventRecord(1_000_000, EventKind::Empty, None),
            EventRecord(20_000_000, EventKind::Reasoning, None),
            EventRecord(25_000_000, EventKind::Content, None),
            EventRecord(26_000_000, EventKind::Finish, None),
            EventRecord(27_000_000, EventKind::Usage, None),
        ];
        assert_eq!(ttft_ms(&request), Some(20.0));
        assert_eq!(itl_ms(&request).collect::<Vec<_>>(), [5.0]);
    }

    #[test]
    fn tpot_divides_by_tokens_not_by_events() {
        let mut request = request(0, 0, &[20, 40, 60]);
        request.num_output_tokens = Some(9);
        assert_eq!(tpot_ms(&request), Some(5.0));
        request.num_output_tokens = None;
        assert_eq!(tpot_ms(&request), None);
        request.num_output_tokens = Some(1);
        assert_eq!(tpot_ms(&request), None);
    }

    #[test]
    fn tokens_of_one_instant_have_no_rate() {
        let mut request = request(0, 0, &[20]);
        request.num_output_tokens = Some(9);
        assert_eq!(tpot_ms(&request), None);
    }

    #[test]
    fn dropped_events_leave_no_tpot() {
        let mut request = request(0, 0, &[20, 25]);
        assert!(tpot_ms(&request).is_some());
        request.num_events_dropped = 1;
        assert_eq!(tpot_ms(&request), None);
    }
}
