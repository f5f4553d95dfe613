//! The run that never was, repeated: every case over several rounds, each a
//! little slower or faster than the one before.

use yardstick::record::{JournalEvent, RunData};

/// The same run over `rounds` rounds. Nothing but cases and requests is repeated.
pub fn repeat(mut run: RunData, rounds: u32) -> RunData {
    let (cases, requests) = (run.manifest.cases.clone(), run.requests.clone());
    // What ended early in the first round would be left out of all of them.
    run.journal.retain(|entry| {
        !matches!(entry.event, JournalEvent::CaseStarted { .. } | JournalEvent::CaseFinished { .. })
    });
    run.manifest.cases.clear();
    run.requests.clear();
    for round in 0..rounds {
        let offset = u32::try_from(cases.len()).unwrap() * round;
        for mut case in cases.clone() {
            case.round = round;
            run.manifest.cases.push(case);
        }
        for mut request in requests.clone() {
            // From 0.97 to 1.03 times as long, in no order, the engines alike.
            let pace = 1.0 + (f64::from((round * 5 + request.case) % 7) - 3.0) / 100.0;
            let paced = |ns: u64| (ns as f64 * pace) as u64;
            request.case += offset;
            request.done_ns = paced(request.done_ns);
            for event in &mut request.events {
                event.0 = paced(event.0);
            }
            run.requests.push(request);
        }
    }
    run
}
