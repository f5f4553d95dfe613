//! How cases were conducted, in sentences under an experiment's tables: how
//! engines were warmed up, and what ended before its last request.

use crate::stats::summary::CaseSummary;

/// The notes of an experiment's cases.
#[must_use]
pub fn notes(cases: &[&CaseSummary]) -> Vec<String> {
    let mut notes = Vec::new();
    notes.extend(warm_up(cases));
    for case in cases {
        let Some(reason) = &case.stopped_early else { continue };
        notes.push(format!("{} stopped early: {reason}", case.engine));
    }
    notes
}

/// `warm-up: embedded 5 bursts until flat; vllm 16 bursts, not flat`.
fn warm_up(cases: &[&CaseSummary]) -> Option<String> {
    let mut engines: Vec<&str> = Vec::new();
    for case in cases.iter().filter(|case| case.warm_up.is_some()) {
        if !engines.contains(&case.engine.as_str()) {
            engines.push(&case.engine);
        }
    }
    let told = engines.iter().map(|engine| {
        let of_engine = cases.iter().filter(|case| case.engine == *engine);
        let warm_ups: Vec<_> = of_engine.filter_map(|case| case.warm_up.as_ref()).collect();
        let bursts = || warm_ups.iter().map(|warm_up| warm_up.num_bursts);
        let (least, most) = (bursts().min().unwrap_or(0), bursts().max().unwrap_or(0));
        let span = if least == most { most.to_string() } else { format!("{least}–{most}") };
        let noun = if most == 1 { "burst" } else { "bursts" };
        let how = if warm_ups.iter().any(|warm_up| warm_up.settled == Some(false)) {
            ", not flat"
        } else if warm_ups.iter().all(|warm_up| warm_up.settled == Some(true)) {
            " until flat"
        } else {
            ""
        };
        format!("{engine} {span} {noun}{how}")
    });
    let told: Vec<String> = told.collect();
    (!told.is_empty()).then(|| format!("warm-up: {}", told.join("; ")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stats::case::{self, tests::*};
    use crate::stats::summary::WarmUpSummary;

    fn case(engine: &str, num_bursts: u32, settled: Option<bool>) -> CaseSummary {
        let requests = [request(0, 0, &[20, 25])];
        let record = record(engine, "concurrent-warm", 1);
        let warm_up =
            WarmUpSummary { num_bursts, num_requests: 9, took_ms: 1.0, settled, reason: None };
        CaseSummary { warm_up: Some(warm_up), ..case::summarise(&group(&record, &requests), &[]) }
    }

    #[test]
    fn warm_ups_are_one_sentence() {
        let mut cases = [
            case("a", 5, Some(true)),
            case("b", 16, Some(false)),
            case("a", 7, Some(true)),
            case("c", 1, None),
        ];
        let told = |cases: &[CaseSummary]| notes(&cases.iter().collect::<Vec<_>>());
        assert_eq!(
            told(&cases),
            ["warm-up: a 5–7 bursts until flat; b 16 bursts, not flat; c 1 burst"]
        );
        for case in &mut cases {
            case.warm_up = None;
        }
        assert!(told(&cases).is_empty());
        cases[1].stopped_early = Some("enough".to_owned());
        assert_eq!(told(&cases), ["b stopped early: enough"]);
    }
}
