//! What our own client adds to the times it reports, and what it costs: driver,
//! adapter and recorder as in a run, against the scripted server, which notes
//! when it really wrote. Both sides read one clock, and the records go to disk.
//! Beside it, in the same run, what the same streams are to a reader that does
//! nothing else: the floor under both.
//!
//! `cargo bench --bench client [-- STREAMS REQUESTS TTFT_MS GAP_MS]`; without
//! arguments at 10, 100 and 1,000 streams, and the cost of decoding alone.
#![expect(clippy::unwrap_used, reason = "a bench that cannot run has nothing to report")]

#[cfg(target_os = "linux")]
mod bare_reader;

use std::io::Write;
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use yardstick::clock::Clock;
use yardstick::engine::replay::{Wire, replay};
use yardstick::engine::scripted::Script;
use yardstick::experiment::calibration::{Bench, Trial};
use yardstick::hardware;
use yardstick::record::{Manifest, RecordWriter, Recorder, RunData, SCHEMA_VERSION};
use yardstick::stats::client_error::{ClientError, measure};
use yardstick::stats::latency;
use yardstick::stats::summary::Distribution;

/// Streams, requests, TTFT and gap in ms. The second and third are those of
/// the peers' table in docs/PERFORMANCE.md.
const LOADS: [(u32, u32, u64, u64); 3] =
    [(10, 1000, 20, 5), (100, 1000, 100, 20), (1000, 2000, 200, 50)];

fn main() {
    let numbers: Vec<u64> = std::env::args().filter_map(|argument| argument.parse().ok()).collect();
    let number = |at: usize, default: u64| numbers.get(at).copied().unwrap_or(default).max(1);
    if numbers.is_empty() {
        decoding();
        for (streams, requests, ttft, gap) in LOADS {
            load(streams, requests, ttft, gap);
        }
    } else {
        let streams = u32::try_from(number(0, 10)).unwrap();
        let requests = u32::try_from(number(1, 100)).unwrap();
        load(streams, requests, number(2, 20), number(3, 5));
    }
    let (trial, (_, error)) = measured(10, 1000, 20, 1, true);
    writeln!(
        std::io::stdout().lock(),
        "\n{} bursts of 10: send spread {:.0} us at the median",
        trial.num_bursts,
        error.send_spread_us.unwrap_or_default()
    )
    .unwrap();
}

fn load(streams: u32, requests: u32, ttft_ms: u64, gap_ms: u64) {
    hardware::allow_streams(u64::from(streams) * 2).unwrap();
    let (trial, (data, error)) = measured(streams, requests, ttft_ms, gap_ms, false);
    report(&trial, &data, &error);
    #[cfg(target_os = "linux")]
    {
        let bare = bare_reader::read(&trial.script, streams, trial.num_bursts);
        let mut out = std::io::stdout().lock();
        writeln!(out, "a bare reader of the same streams").unwrap();
        row(&mut out, "TTFT error", &bare.ttft_error_ms);
        row(&mut out, "ITL error", &bare.itl_error_ms);
        let bare_us = bare.cpu_per_token_event.as_secs_f64() * 1e6;
        let times = error.cpu_us_per_token_event.unwrap_or_default() / bare_us;
        writeln!(
            out,
            "its CPU {bare_us:.2} us a token event; the client takes {times:.2} times that"
        )
        .unwrap();
    }
}

fn row(out: &mut impl Write, name: &str, values: &Distribution) {
    let us = |ms: Option<f64>| ms.map_or("-".to_owned(), |ms| format!("{:.1}", ms * 1e3));
    let [p50, p99, max] = [values.p50, values.p99, values.max].map(us);
    writeln!(out, "{name:38} {:>7} {p50:>9} {p99:>9} {max:>9}", values.n).unwrap();
}

fn measured(
    streams: u32,
    requests: u32,
    ttft_ms: u64,
    gap_ms: u64,
    in_step: bool,
) -> (Trial, (RunData, ClientError)) {
    let script = Script {
        ttft: Duration::from_millis(ttft_ms),
        gap: Duration::from_millis(gap_ms),
        num_tokens: if in_step { 1 } else { 64 },
        ..Script::default()
    };
    let trial = Trial {
        part: "bench".to_owned(),
        script,
        concurrency: streams,
        num_bursts: requests.div_ceil(streams),
        in_step,
    };
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("run");
    let clock = Clock::real();
    let writer = RecordWriter::start(Recorder::create(&path, &manifest()).unwrap(), None);
    let cancel = CancellationToken::new();
    let cpu_time = hardware::process_cpu_time;
    let bench = Bench { clock: &clock, writer: &writer, cancel: &cancel, cpu_time };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(bench.measure(&trial)).unwrap();
    writer.finish().unwrap();
    let data = RunData::read(&path).unwrap();
    let error = measure("bench", &data.calibration, &data.journal);
    (trial, (data, error))
}

fn report(trial: &Trial, data: &RunData, error: &ClientError) {
    let mut out = std::io::stdout().lock();
    let Trial { script, concurrency, num_bursts, .. } = trial;
    writeln!(
        out,
        "\n{concurrency} streams, {} requests, {} tokens each, TTFT {:?}, gap {:?}; microseconds",
        concurrency * num_bursts,
        script.num_tokens,
        script.ttft,
        script.gap
    )
    .unwrap();
    writeln!(out, "{:38} {:>7} {:>9} {:>9} {:>9}", "", "n", "p50", "p99", "max").unwrap();
    let late = lateness(trial, data);
    row(&mut out, "server: written after it was due", &late);
    row(&mut out, "TTFT error (client - truth)", &error.ttft_error_ms);
    row(&mut out, "ITL error (|client - truth|)", &error.itl_error_ms);
    row(&mut out, "TPOT error (|client - truth|)", &error.tpot_error_ms);
    writeln!(
        out,
        "client CPU {:.2} us a token event, {:.1} % of a \
         processor; {} events lost, {} requests failed of {}",
        error.cpu_us_per_token_event.unwrap_or_default(),
        error.cpu_share.unwrap_or_default() * 100.0,
        error.num_events_lost,
        error.num_failed,
        error.n
    )
    .unwrap();
}

/// How punctual the server was: first tokens, after they were due.
fn lateness(trial: &Trial, data: &RunData) -> Distribution {
    let ttft = latency::ms(u64::try_from(trial.script.ttft.as_nanos()).unwrap());
    let truths = data.calibration.iter().filter_map(|record| record.truth.as_ref());
    let first = truths.filter_map(|truth| truth.events.iter().find(|event| event.1.is_token()));
    let late = first.map(|event| latency::ms(event.0) - ttft).collect();
    yardstick::stats::distribution::distribution(late, "nothing was written")
}

/// Parsing alone: an answer of 64 chunks, a read each, without a socket.
fn decoding() {
    const NUM_TOKENS: usize = 64;
    const ROUNDS: u32 = 2000;
    let chunk = |text: &str| {
        format!(
            "data: {{\"id\":\"chatcmpl-b0cba94cc9143370\",\"object\":\"chat.completion.chunk\",\"created\":1795487212,\"model\":\"scripted\",\"choices\":[{{\"index\":0,\"delta\":{{{text}}},\"logprobs\":null,\"finish_reason\":null,\"token_ids\":null}}]}}\n\n"
        )
    };
    let answer = |field: &str| -> Vec<String> {
        let tokens = (0..NUM_TOKENS).map(|token| chunk(&format!("\"{field}\":\" t{token}\"")));
        tokens.chain(["data: [DONE]\n\n".to_owned()]).collect()
    };
    let clock = Clock::real();
    let mut out = std::io::stdout().lock();
    for (what, field) in [("content", "content"), ("reasoning", "reasoning_content")] {
        let texts = answer(field);
        let reads: Vec<&[u8]> = texts.iter().map(String::as_bytes).collect();
        let began = clock.now();
        for _ in 0..ROUNDS {
            let exchange = replay(Wire::OpenAi { running_usage: false }, &reads, began);
            assert_eq!(exchange.events.len(), NUM_TOKENS);
        }
        let nanos = clock.now().since(began).as_nanos() / u128::from(ROUNDS) / NUM_TOKENS as u128;
        writeln!(out, "decoding an event of {what}: {nanos} ns").unwrap();
    }
}

fn manifest() -> Manifest {
    Manifest {
        schema_version: SCHEMA_VERSION,
        yardstick_version: env!("CARGO_PKG_VERSION").to_owned(),
        name: "client".to_owned(),
        started_at: String::new(),
        machine: hardware::machine(),
        model: String::new(),
        seed: 0,
        plan: String::new(),
        plan_sha256: String::new(),
        engines: Vec::new(),
        cases: Vec::new(),
    }
}
