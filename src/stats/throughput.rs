//! Tokens and requests over a stated window: the whole case, and the steady
//! window in which every stream was generating.

use crate::record::RequestRecord;

use super::latency::token_offsets;

/// Nanoseconds in a second.
const NS_PER_S: f64 = 1e9;

/// A window with fewer token events than this for each stream says more about
/// its edges than about the engine.
const MIN_EVENTS_PER_STREAM: usize = 2;

/// Output tokens of the completed requests over the time from the first send
/// of any request to the last token of a completed one. Absent where a
/// completed request has no count, since the rest would be too low.
#[must_use]
#[expect(clippy::cast_precision_loss, reason = "token counts and spans are far below 2^52")]
pub fn output_tokens_per_s(requests: &[&RequestRecord]) -> Option<f64> {
    let start = first_sent(requests)?;
    let mut tokens = 0_u64;
    let mut end = 0;
    for request in completed(requests) {
        tokens += u64::from(request.num_output_tokens?);
        if let Some(last) = token_offsets(request).next_back() {
            end = end.max(absolute(request, last)?);
        }
    }
    let span = end.saturating_sub(start);
    (span > 0 && tokens > 0).then(|| tokens as f64 / span as f64 * NS_PER_S)
}

/// Completed requests over the time from the first send to the last completion.
#[must_use]
#[expect(clippy::cast_precision_loss, reason = "request counts and spans are far below 2^52")]
pub fn requests_per_s(requests: &[&RequestRecord]) -> Option<f64> {
    let start = first_sent(requests)?;
    let end = completed(requests).filter_map(|r| absolute(r, r.done_ns)).max()?;
    let count = completed(requests).count();
    let span = end.saturating_sub(start);
    (span > 0).then(|| count as f64 / span as f64 * NS_PER_S)
}

/// Output tokens a second while `concurrency` streams at once were between
/// their first and their last token; events of the window's opening instant
/// are outside, those of its end inside, so that one stream alone gives 1 / TPOT.
///
/// # Errors
/// The reason why there is no such window.
#[expect(clippy::cast_precision_loss, reason = "spans are far below 2^52 ns")]
pub fn steady_tokens_per_s(requests: &[&RequestRecord], concurrency: u32) -> Result<f64, String> {
    let mut streams = Vec::new();
    for request in completed(requests) {
        let events = token_weights(request)
            .ok_or("a completed request has no token count: tokens cannot be placed in time")?;
        if let (Some(first), Some(last)) = (events.first(), events.last()) {
            streams.push((first.0, last.0, events));
        }
    }
    let windows = windows(streams.iter().map(|s| (s.0, s.1)), concurrency)?;
    let span: u64 = windows.iter().map(|(start, end)| end - start).sum();
    let (mut tokens, mut count) = (0.0, 0_usize);
    for (at, weight) in streams.iter().flat_map(|stream| &stream.2) {
        let next = windows.partition_point(|(start, _)| start < at);
        if next.checked_sub(1).is_some_and(|before| *at <= windows[before].1) {
            tokens += weight;
            count += 1;
        }
    }
    let needed = MIN_EVENTS_PER_STREAM * concurrency as usize;
    if count < needed {
        return Err(format!(
            "the window in which all {concurrency} streams were generating holds {count} token \
             events, fewer than {MIN_EVENTS_PER_STREAM} a stream"
        ));
    }
    Ok(tokens / span as f64 * NS_PER_S)
}

/// Spans in which at least `concurrency` of the streams overlap, in order.
fn windows(
    streams: impl Iterator<Item = (u64, u64)>,
    concurrency: u32,
) -> Result<Vec<(u64, u64)>, String> {
    // An end sorts before a start of the same instant: streams that only touch do not overlap.
    let mut edges: Vec<(u64, i32)> =
        streams.flat_map(|(first, last)| [(first, 1), (last, -1)]).collect();
    edges.sort_unstable();
    let needed = i32::try_from(concurrency).unwrap_or(i32::MAX);
    let (mut active, mut most, mut opened) = (0, 0, None);
    let mut windows = Vec::new();
    for (at, change) in edges {
        active += change;
        most = most.max(active);
        if active >= needed && opened.is_none() {
            opened = Some(at);
        } else if active < needed
            && let Some(start) = opened.take()
            && at > start
        {
            windows.push((start, at));
        }
    }
    if windows.is_empty() {
        return Err(if concurrency == 1 {
            "no stream had two token events".to_owned()
        } else {
            format!("at most {most} of {concurrency} streams were generating at once")
        });
    }
    Ok(windows)
}

/// Token events as (instant, tokens): the engine's own count per event where
/// every event has one, else the request's tokens spread evenly over its
/// events. `None` where neither is known.
#[expect(clippy::cast_precision_loss, reason = "event counts are far below 2^52")]
pub(super) fn token_weights(request: &RequestRecord) -> Option<Vec<(u64, f64)>> {
    let sent = request.sent_at_ns?.as_nanos();
    let events: Vec<_> = request.events.iter().filter(|event| event.1.is_token()).collect();
    let known = events.iter().all(|event| event.2.is_some());
    let even = match request.num_output_tokens {
        Some(tokens) => f64::from(tokens) / events.len().max(1) as f64,
        None if known => 0.0,
        None => return None,
    };
    let weight = |tokens: Option<u32>| match tokens {
        Some(tokens) if known => f64::from(tokens),
        _ => even,
    };
    Some(events.iter().map(|e| (sent.saturating_add(e.0), weight(e.2))).collect())
}

fn completed<'a>(requests: &[&'a RequestRecord]) -> impl Iterator<Item = &'a RequestRecord> {
    requests.iter().copied().filter(|request| request.outcome.is_ok())
}

fn first_sent(requests: &[&RequestRecord]) -> Option<u64> {
    requests.iter().filter_map(|r| r.sent_at_ns).map(crate::clock::Timestamp::as_nanos).min()
}

fn absolute(request: &RequestRecord, offset: u64) -> Option<u64> {
    Some(request.sent_at_ns?.as_nanos().saturating_add(offset))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stats::case::tests::{failed, request};

    fn refs(requests: &[RequestRecord]) -> Vec<&RequestRecord> {
        requests.iter().collect()
    }

    #[test]
    fn whole_case_runs_from_first_send_to_last_token() {
        // Two requests sent at 0 and 100 ms; last token at 100 + 300 ms; 3 + 3 tokens.
        let requests = [request(0, 0, &[100, 200, 300]), request(1, 100, &[100, 200, 300])];
        assert!((output_tokens_per_s(&refs(&requests)).unwrap() - 15.0).abs() < 1e-9);
    }

    #[test]
    fn a_missing_count_leaves_no_throughput() {
        let mut requests = [request(0, 0, &[100, 200]), request(1, 0, &[100, 200])];
        requests[1].num_output_tokens = None;
        for event in &mut requests[1].events {
            event.2 = None;
        }
        assert_eq!(output_tokens_per_s(&refs(&requests)), None);
        assert!(steady_tokens_per_s(&refs(&requests), 2).unwrap_err().contains("no token count"));
    }

    #[test]
    fn steady_window_is_where_all_streams_overlap() {
        // Overlap 200..=500 ms; inside are 300, 400, 500 of the first and 300, 400, 500 of the second.
        let requests =
            [request(0, 0, &[100, 200, 300, 400, 500]), request(1, 0, &[200, 300, 400, 500, 600])];
        let rate = steady_tokens_per_s(&refs(&requests), 2).unwrap();
        assert!((rate - 20.0).abs() < 1e-9, "{rate}");
    }

    #[test]
    fn one_stream_alone_gives_its_decode_rate() {
        let requests = [request(0, 0, &[100, 150, 200, 250])];
        assert!((steady_tokens_per_s(&refs(&requests), 1).unwrap() - 20.0).abs() < 1e-9);
    }

    #[test]
    fn tokens_are_spread_over_events_where_events_do_not_say() {
        let mut requests = [request(0, 0, &[100, 200, 300])];
        requests[0].num_output_tokens = Some(12);
        for event in &mut requests[0].events {
            event.2 = None;
        }
        assert!((steady_tokens_per_s(&refs(&requests), 1).unwrap() - 40.0).abs() < 1e-9);
    }

    #[test]
    fn queued_streams_leave_no_steady_window_and_say_so() {
        let requests = [request(0, 0, &[10, 20, 30]), request(1, 0, &[40, 50, 60])];
        assert_eq!(
            steady_tokens_per_s(&refs(&requests), 2).unwrap_err(),
            "at most 1 of 2 streams were generating at once"
        );
    }

    #[test]
    fn failed_requests_give_no_tokens_but_their_time_counts() {
        let requests = [failed(0, 0), request(1, 100, &[100, 200])];
        // 2 tokens over 0..300 ms.
        let rate = output_tokens_per_s(&refs(&requests)).unwrap();
        assert!((rate - 2.0 / 0.3).abs() < 1e-9);
        assert!((requests_per_s(&refs(&requests)).unwrap() - 1.0 / 0.301).abs() < 1e-9);
    }
}
