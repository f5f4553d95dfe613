//! A sweep over KV pools that never was: one load of equal requests on pools of
//! a few sizes, in waves of as many as a pool holds.

use std::collections::BTreeMap;

use yardstick::clock::Timestamp;
use yardstick::engine::spec::KvPoint;
use yardstick::engine::{EngineSpec, EventKind, FinishReason};
use yardstick::record::{
    CaseRecord, CountSource, EngineRecord, EventRecord, JournalEntry, JournalEvent, LoadRecord,
    Outcome, RequestRecord, RunData, StepRecord,
};

const MS: u64 = 1_000_000;
const BLOCK_SIZE: u64 = 16;
/// Blocks of a sequence of 40 + 24 tokens.
const BLOCKS_EACH: u64 = 4;
const PROMPT: u64 = 40;
const OUTPUT: u64 = 24;
const AT_ONCE: u64 = 8;
const NUM_REQUESTS: u64 = 32;

/// The run. Always the same.
pub fn swept() -> RunData {
    let mut run = super::fixture::run();
    let info = run.manifest.engines[0].info.clone();
    let case = run.manifest.cases[0].clone();
    run = RunData {
        requests: Vec::new(),
        journal: vec![entry(0, JournalEvent::RunStarted)],
        steps: Vec::new(),
        calibration: Vec::new(),
        resources: Vec::new(),
        ..run
    };
    run.manifest.cases.clear();
    run.manifest.engines.clear();
    let mut now = 1_000;
    for (index, num_blocks) in (0..).zip([2_u64, 8, 16, 32, 64]) {
        let spec: EngineSpec = format!("embedded?kv_blocks={num_blocks}").parse().unwrap();
        let settings = spec.settings.clone();
        let point = KvPoint { of: "embedded".to_owned(), settings };
        let name = format!("embedded kv_blocks={num_blocks}");
        let mut info = info.clone();
        if let Some(info) = &mut info {
            info.max_model_len = Some(256);
            let told = [
                ("block_size", BLOCK_SIZE.to_string()),
                ("num_blocks", num_blocks.to_string()),
                ("max_num_seqs", "64".to_owned()),
                ("max_num_batched_tokens", "2048".to_owned()),
                ("max_queue", "512".to_owned()),
                ("enable_prefix_caching", "true".to_owned()),
            ];
            info.settings = told.map(|(name, value)| (name.to_owned(), value)).into();
        }
        let spec = EngineSpec { name: name.clone(), kv_point: Some(point), ..spec };
        run.manifest.engines.push(EngineRecord { spec, info, error: None });
        let too_small = (num_blocks < BLOCKS_EACH).then(|| {
            "it holds sequences of 32 tokens at most, and the load has 40 of prompt and 24 of output"
                .to_owned()
        });
        if too_small.is_none() {
            now = measure(&mut run, index, num_blocks / BLOCKS_EACH, num_blocks, now);
        }
        run.manifest.cases.push(CaseRecord {
            engine: name,
            experiment: "users".to_owned(),
            concurrency: 8,
            num_requests: 32,
            cold: false,
            absent: too_small,
            load: Some(LoadRecord { name: "users".to_owned(), ..closed() }),
            ..case.clone()
        });
    }
    run.journal.push(entry(now, JournalEvent::RunFinished));
    run
}

fn closed() -> LoadRecord {
    serde_json::from_value(serde_json::json!({
        "name": "users", "arrival": "closed", "sweep": false, "slos": [],
    }))
    .unwrap()
}

fn entry(ms: u64, event: JournalEvent) -> JournalEntry {
    JournalEntry { at_ns: Timestamp::from_nanos(ms * MS), event }
}

/// One case from `now` on, in waves of `fits`; when it has ended.
fn measure(run: &mut RunData, engine: u32, fits: u64, num_blocks: u64, now: u64) -> u64 {
    let case = engine;
    let now = warm_up(run, engine, num_blocks, now);
    run.journal.push(entry(now, JournalEvent::CaseStarted { case }));
    let (began, width) = (now, fits.min(AT_ONCE));
    let mut now = now;
    for wave in 0..NUM_REQUESTS / width {
        let mut tokens = Vec::new();
        for token in 0..OUTPUT {
            let prompt = if token == 0 { PROMPT * width } else { 0 };
            // What a step takes, and a little that comes and goes.
            let took = if token == 0 { 12 + prompt / 4 } else { 8 + width + (token + wave) % 2 };
            let held = PROMPT + token;
            let used = held.div_ceil(BLOCK_SIZE) * width;
            let decodes = if token == 0 { 0 } else { width };
            run.steps.push(StepRecord {
                num_tokens: prompt + decodes,
                num_prefill_tokens: prompt,
                num_seqs: width,
                num_waiting: AT_ONCE - width,
                num_used_blocks: used,
                num_free_blocks: num_blocks - used,
                num_waste_slots: used * BLOCK_SIZE - held * width,
                num_preemptions: u64::from(width < AT_ONCE && token == 9),
                num_decode_kv_tokens: Some(decodes * held),
                num_prefill_pairs: Some(prompt * (PROMPT + 1) / 2),
                ..step(engine, now, took)
            });
            now += took;
            tokens.push(now);
        }
        for number in 0..width {
            run.requests.push(request(case, wave * width + number, began, &tokens));
        }
    }
    run.journal.push(entry(now + 1, JournalEvent::CaseFinished { case, client_cpu_ns: MS }));
    now + 500
}

/// One request alone, and when it has ended.
fn warm_up(run: &mut RunData, engine: u32, num_blocks: u64, now: u64) -> u64 {
    for token in 0..8 {
        run.steps
            .push(StepRecord { num_free_blocks: num_blocks, ..step(engine, now + token * 9, 9) });
    }
    now + 100
}

/// A step that decoded for one sequence.
fn step(engine: u32, at: u64, took: u64) -> StepRecord {
    StepRecord {
        engine,
        at_ns: Timestamp::from_nanos(at * MS),
        took_ns: took * MS,
        num_tokens: 1,
        num_prefill_tokens: 0,
        num_seqs: 1,
        num_waiting: 0,
        num_used_blocks: 0,
        num_free_blocks: 0,
        num_cached_blocks: 0,
        num_waste_slots: 0,
        num_preemptions: 0,
        rss_bytes: None,
        num_decode_kv_tokens: Some(PROMPT),
        num_prefill_pairs: Some(0),
    }
}

fn request(case: u32, index: u64, began: u64, tokens: &[u64]) -> RequestRecord {
    let event = |at: &u64| EventRecord((at - began) * MS, EventKind::Content, Some(1));
    RequestRecord {
        case,
        index: u32::try_from(index).unwrap(),
        warmup: false,
        cold: false,
        requested_prompt_tokens: Some(40),
        max_tokens: 24,
        prompt_sha256: format!("{index:064x}"),
        intended_at_ns: Timestamp::from_nanos(began * MS),
        held: false,
        turn: None,
        sent_at_ns: Some(Timestamp::from_nanos(began * MS)),
        headers_ns: None,
        first_byte_ns: None,
        done_ns: (tokens.last().unwrap() - began) * MS,
        events: tokens.iter().map(event).collect(),
        num_events_dropped: 0,
        num_prompt_tokens: Some(40),
        num_output_tokens: Some(24),
        count_source: CountSource::Server,
        num_cached_tokens: Some(0),
        finish_reason: Some(FinishReason::Length),
        outcome: Outcome::Ok,
        server: BTreeMap::new(),
        text: String::new(),
    }
}
