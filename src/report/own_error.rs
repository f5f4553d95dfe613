//! The client's own error in one sentence, for every format.

use crate::stats::client_error::{ClientError, ClientErrors};
use crate::stats::summary::Distribution;
use crate::units::{format_ms, format_significant};

/// What the client added, the worse of before and after the cases, or why that is not known.
#[must_use]
pub fn line(errors: &ClientErrors) -> String {
    let by_ttft = |error: &&ClientError| error.ttft_error_ms.p50.unwrap_or(f64::INFINITY);
    let worst = errors.measured.iter().max_by(|a, b| by_ttft(a).total_cmp(&by_ttft(b)));
    let mut parts: Vec<String> = worst.map(one).into_iter().collect();
    if errors.measured.len() > 1 {
        parts[0].push_str(", the worse of before and after");
    }
    // Both may be absent for the same reason, which is said once.
    let mut reasons: Vec<&String> = errors.absent.values().collect();
    reasons.dedup();
    for reason in reasons {
        let which: Vec<&str> = errors
            .absent
            .iter()
            .filter(|(_, other)| *other == reason)
            .map(|(part, _)| part.as_str())
            .collect();
        parts.push(format!("not measured {}: {reason}", which.join(" and ")));
    }
    parts.join("; ")
}

fn one(error: &ClientError) -> String {
    let mut text = format!("TTFT {}, ITL {}", of(&error.ttft_error_ms), of(&error.itl_error_ms),);
    if let Some(spread) = error.send_spread_us {
        text.push_str(&format!(", burst spread {} µs", format_significant(spread)));
    }
    if let Some(share) = error.cpu_share {
        text.push_str(&format!(", {:.0} % of a processor", share * 100.0));
    }
    text.push_str(&format!(" at C = {}", error.concurrency));
    if error.num_events_lost > 0 {
        text.push_str(&format!(", {} events lost", error.num_events_lost));
    }
    if error.num_failed > 0 {
        text.push_str(&format!(", {} of {} requests failed", error.num_failed, error.n));
    }
    text
}

/// `0.05 ms (p99 0.2)`, or the largest where n is too small for a p99.
fn of(error: &Distribution) -> String {
    let Some(median) = error.p50 else { return "unknown".to_owned() };
    let (name, tail) = match (error.p99, error.max) {
        (Some(p99), _) => ("p99", p99),
        (None, Some(max)) => ("at most", max),
        (None, None) => return format!("{} ms", format_ms(median)),
    };
    format!("{} ms ({name} {})", format_ms(median), format_ms(tail))
}
