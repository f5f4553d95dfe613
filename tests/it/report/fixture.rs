//! A run that never was, with everything a report has to show: an engine in
//! process and over HTTP, a queue with four slots, an engine that fails.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::collections::BTreeMap;

use yardstick::clock::Timestamp;
use yardstick::engine::{
    Capabilities, Capability, EngineInfo, EngineSpec, ErrorClass, EventKind, FinishReason,
};
use yardstick::plan::Cold;
use yardstick::record::{
    CalibrationRecord, CaseRecord, CountSource, EngineRecord, EventRecord, JournalEntry,
    JournalEvent, LoadPhaseKind, Machine, Manifest, Outcome, RequestRecord, RunData, StepRecord,
    TruthRecord,
};

const MAX_TOKENS: u32 = 64;

/// What a hostile server answered.
pub const HOSTILE: &str = "status 500: <script>alert(\"x\")</script> | \x1b[31m& so on";

/// Speeds of a simulated engine, in ms.
struct Simulated {
    name: &'static str,
    /// Requests served at once.
    slots: u32,
    /// First token of an idle engine.
    prefill: f64,
    /// What each request before adds to the first token.
    prefill_queue: f64,
    /// Gap of one stream alone, and what each further one adds.
    gap: (f64, f64),
    /// Loading the weights; `None` where it cannot be made cold.
    load: Option<f64>,
    /// Whether each event says how many tokens it has.
    counts_events: bool,
    /// Transport on top of everything.
    transport: f64,
}

const ENGINES: [Simulated; 4] = [
    Simulated {
        name: "embedded",
        slots: 16,
        prefill: 21.0,
        prefill_queue: 17.0,
        gap: (6.9, 0.85),
        load: Some(412.0),
        counts_events: true,
        transport: 0.0,
    },
    Simulated {
        name: "embedded-http",
        slots: 16,
        prefill: 21.0,
        prefill_queue: 17.0,
        gap: (6.9, 0.85),
        load: Some(415.0),
        counts_events: false,
        transport: 0.42,
    },
    Simulated {
        name: "ollama",
        slots: 4,
        prefill: 36.0,
        prefill_queue: 3.0,
        gap: (5.4, 1.9),
        load: Some(2_310.0),
        counts_events: false,
        transport: 0.3,
    },
    Simulated {
        name: "vllm",
        slots: 256,
        prefill: 27.0,
        prefill_queue: 0.7,
        gap: (11.2, 0.12),
        load: None,
        counts_events: false,
        transport: 0.4,
    },
];

const EXPERIMENTS: [(&str, &[u32]); 4] = [
    ("sequential-cold", &[1]),
    ("concurrent-cold", &[10]),
    ("concurrent-warm", &[10]),
    ("batched-warm", &[1, 2, 3, 4, 5, 6, 7, 8, 9, 10]),
];

/// The run. Always the same.
pub fn run() -> RunData {
    let mut sim = Simulation { now: 1_000_000, state: 7, ..Simulation::default() };
    sim.note(JournalEvent::RunStarted);
    sim.calibrate("before", 95);
    let mut cases = Vec::new();
    for (experiment, concurrencies) in EXPERIMENTS {
        for concurrency in concurrencies {
            for engine in &ENGINES {
                let case = u32::try_from(cases.len()).unwrap();
                let cold = experiment.ends_with("cold");
                let absent = (cold && engine.load.is_none()).then(|| {
                    "vllm cannot be made cold: it has no unload, and yardstick did not start it"
                        .to_owned()
                });
                if absent.is_none() {
                    sim.case(case, engine, experiment, *concurrency, cold);
                }
                cases.push(CaseRecord {
                    engine: engine.name.to_owned(),
                    experiment: experiment.to_owned(),
                    round: 0,
                    again: false,
                    concurrency: *concurrency,
                    num_requests: if experiment.starts_with("sequential") {
                        10
                    } else {
                        *concurrency
                    },
                    cold,
                    absent,
                    load: None,
                    requirements: Vec::new(),
                    stop_when_decided: false,
                });
            }
        }
    }
    sim.calibrate("after", 112);
    sim.note(JournalEvent::RunFinished);
    RunData {
        manifest: manifest(cases),
        requests: sim.requests,
        journal: sim.journal,
        steps: sim.steps,
        calibration: sim.calibration,
        resources: Vec::new(),
    }
}

fn manifest(cases: Vec<CaseRecord>) -> Manifest {
    Manifest {
        schema_version: yardstick::record::SCHEMA_VERSION,
        yardstick_version: "0.1.0".to_owned(),
        name: "first-light".to_owned(),
        started_at: "2026-11-24T09:30:00Z".to_owned(),
        machine: Machine {
            os: "linux x86_64".to_owned(),
            cpu: Some("AMD EPYC 7B13".to_owned()),
            num_cpus: 8,
            memory_bytes: Some(32 << 30),
            load_average_percent: Some(31),
            cpu_features: vec!["avx2".to_owned(), "fma".to_owned()],
            gpus: Vec::new(),
            gpu_absent: Some("no NVIDIA driver is loaded".to_owned()),
            notes: BTreeMap::from([("governor".to_owned(), "performance".to_owned())]),
        },
        model: "smollm2-135m-instruct".to_owned(),
        seed: 42,
        plan: "experiments = [\"sequential-cold\"]\n".to_owned(),
        plan_sha256: "5f".repeat(32),
        engines: engines(),
        cases,
    }
}

fn engines() -> Vec<EngineRecord> {
    let embedded = |settings: &[(&str, &str)]| EngineInfo {
        version: Some("0.1.0".to_owned()),
        model: "smollm2-135m-instruct".to_owned(),
        precision: Some("Q4_1".to_owned()),
        max_model_len: Some(2048),
        ..info(settings)
    };
    let kv = [
        ("block_size", "16"),
        ("num_blocks", "512"),
        ("kv_bytes", "188743680"),
        ("max_num_seqs", "16"),
    ];
    vec![
        record("embedded", embedded(&kv)),
        record("embedded?transport=http", embedded(&kv)),
        record(
            "ollama",
            EngineInfo {
                version: Some("0.5.7".to_owned()),
                model: "smollm2:135m".to_owned(),
                precision: Some("Q4_K_M".to_owned()),
                max_model_len: Some(4096),
                ..info(&[("num_ctx", "4096"), ("parameter_size", "134.52M")])
            },
        ),
        record(
            "vllm",
            EngineInfo {
                version: Some("0.11.0".to_owned()),
                model: "HuggingFaceTB/SmolLM2-135M-Instruct".to_owned(),
                precision: Some("bf16".to_owned()),
                max_model_len: Some(8192),
                dummy_weights: true,
                capabilities: Capabilities {
                    cold: Capability::no("it has no unload, and yardstick did not start it"),
                    ..capabilities()
                },
                ..info(&[("owned_by", "vllm <script>alert(2)</script>")])
            },
        ),
    ]
}

fn record(spec: &str, info: EngineInfo) -> EngineRecord {
    let spec: EngineSpec = spec.parse().unwrap();
    EngineRecord { spec, info: Some(info), error: None }
}

fn info(settings: &[(&str, &str)]) -> EngineInfo {
    EngineInfo {
        version: None,
        model: String::new(),
        precision: None,
        max_model_len: None,
        dummy_weights: false,
        settings: settings.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect(),
        capabilities: capabilities(),
    }
}

fn capabilities() -> Capabilities {
    Capabilities {
        token_id_prompts: Capability::Yes,
        ignore_eos: Capability::Yes,
        cold: Capability::Yes,
        server_timings: Capability::no("it reports none"),
    }
}

#[derive(Default)]
struct Simulation {
    state: u64,
    now: u64,
    requests: Vec<RequestRecord>,
    journal: Vec<JournalEntry>,
    steps: Vec<StepRecord>,
    calibration: Vec<CalibrationRecord>,
}

impl Simulation {
    /// Uniform in 0..1, the same sequence every time (Knuth's MMIX generator).
    fn random(&mut self) -> f64 {
        self.state = self
            .state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        f64::from(u32::try_from(self.state >> 40).unwrap()) / f64::from(1 << 24)
    }

    fn note(&mut self, event: JournalEvent) {
        self.journal.push(JournalEntry { at_ns: Timestamp::from_nanos(self.now), event });
    }

    /// A burst of ten against the scripted server, whose tokens are read `late_us` late.
    fn calibrate(&mut self, part: &str, late_us: u64) {
        let at = |us: u64| us * 1000;
        // The requests of the cases stay what they are without it.
        let state = self.state;
        for index in 0..10 {
            let late = late_us + 7 * u64::from(index);
            let events = |late: u64| -> Vec<EventRecord> {
                let token = |token: u64| 20_000 + 5_000 * token + late + late * (token % 3) / 9;
                let tokens = (0..16).map(|number| at(token(number)));
                tokens.map(|at| EventRecord(at, EventKind::Content, Some(1))).collect()
            };
            let sent_at_ns = Some(Timestamp::from_nanos(self.now + at(6 * u64::from(index))));
            let truth = Some(TruthRecord {
                received_at_ns: Timestamp::from_nanos(self.now + at(40)),
                events: events(0),
            });
            let request = RequestRecord {
                intended_at_ns: Timestamp::from_nanos(self.now),
                sent_at_ns,
                events: events(late),
                cold: false,
                ..self.request(0, &ENGINES[1], index, 10, 0.0, false)
            };
            self.calibration.push(CalibrationRecord { part: part.to_owned(), truth, request });
        }
        self.state = state;
        self.note(JournalEvent::Calibrated {
            part: part.to_owned(),
            concurrency: 10,
            took_ns: 95_000_000,
            client_cpu_ns: Some(6_000_000),
        });
    }

    fn case(
        &mut self,
        case: u32,
        engine: &Simulated,
        experiment: &str,
        concurrency: u32,
        cold: bool,
    ) {
        if cold {
            self.note(JournalEvent::MadeCold {
                case,
                took_ns: 90_000_000,
                cold: vec![Cold::Model],
                seen: None,
            });
            self.now += 90_000_000;
        }
        let started = self.now;
        self.note(JournalEvent::CaseStarted { case });
        if engine.name == "embedded" {
            self.tell(cold, concurrency);
        }
        let number = if experiment.starts_with("sequential") { 10 } else { concurrency };
        if !cold {
            let warmup =
                RequestRecord { warmup: true, ..self.request(case, engine, 0, 1, 9e3, false) };
            self.requests.push(warmup);
        }
        // When each slot is free again, in ms after the release.
        let mut slots = vec![0.0_f64; engine.slots as usize];
        let mut end = 0_u64;
        for index in 0..number {
            let load =
                engine.load.filter(|_| cold && (concurrency > 1 || index == 0)).unwrap_or(0.0);
            let wait = if concurrency == 1 {
                load
            } else {
                let free = slots.iter().copied().fold(f64::INFINITY, f64::min);
                let ahead = f64::from(index % engine.slots.min(concurrency));
                free.max(load) + ahead * engine.prefill_queue
            };
            let cold = cold && (concurrency > 1 || index == 0);
            let mut request = self.request(case, engine, index, concurrency, wait, cold);
            if concurrency == 1 {
                request.intended_at_ns = Timestamp::from_nanos(self.now);
                self.now += request.done_ns + 400_000;
            }
            let slot = slots.iter_mut().min_by(|a, b| a.total_cmp(b)).unwrap();
            *slot = ms(request.done_ns);
            let fails = engine.name == "vllm"
                && (experiment == "concurrent-warm" && index % 3 == 2
                    || concurrency == 9 && index == 4);
            if fails {
                fail(&mut request);
            }
            end = end.max(request.done_ns);
            self.requests.push(request);
        }
        if concurrency > 1 {
            self.now += end + 2_000_000;
        }
        let wall = self.now - started;
        let share = if engine.name.starts_with("embedded") { 6 } else { 0 };
        let client_cpu_ns = wall * share + wall / 40;
        self.note(JournalEvent::CaseFinished { case, client_cpu_ns });
        self.now += 50_000_000;
    }

    /// What the embedded engine tells of itself: its load, and a few steps.
    fn tell(&mut self, cold: bool, concurrency: u32) {
        let (weight_bytes, kv_bytes, before) = (538_000_000, 188_743_680, 24 << 20);
        if cold {
            let phases = [
                (LoadPhaseKind::Weights, 371_000_000, Some(98_000_000)),
                (LoadPhaseKind::KvPool, 2_100_000, Some(kv_bytes)),
                (LoadPhaseKind::FirstStep, 38_000_000, None),
            ];
            for (phase, took_ns, bytes) in phases {
                self.note(JournalEvent::LoadPhase { engine: 0, phase, took_ns, bytes });
            }
            self.note(JournalEvent::Memory {
                engine: 0,
                weight_bytes,
                kv_bytes,
                rss_before_bytes: Some(before),
                rss_after_bytes: Some(before + weight_bytes + kv_bytes),
            });
        }
        for step in 0..8 {
            let took_ns = 6_900_000 + u64::from(concurrency) * 850_000;
            self.steps.push(StepRecord {
                engine: 0,
                at_ns: Timestamp::from_nanos(self.now + step * took_ns + 1),
                took_ns,
                num_tokens: u64::from(concurrency) * if step == 0 { 128 } else { 1 },
                num_prefill_tokens: if step == 0 { u64::from(concurrency) * 128 } else { 0 },
                num_seqs: concurrency.into(),
                num_decode_kv_tokens: Some(
                    u64::from(concurrency) * if step == 0 { 0 } else { 128 + step },
                ),
                num_prefill_pairs: Some(if step == 0 {
                    u64::from(concurrency) * 128 * 129 / 2
                } else {
                    0
                }),
                num_waiting: 0,
                num_used_blocks: u64::from(concurrency) * 9,
                num_free_blocks: 512 - u64::from(concurrency) * 9,
                num_cached_blocks: 0,
                num_waste_slots: u64::from(concurrency) * (15 - step),
                num_preemptions: u64::from(concurrency == 10 && step == 3),
                rss_bytes: (step == 0).then_some(before + weight_bytes + kv_bytes + (9 << 20)),
            });
        }
    }

    fn request(
        &mut self,
        case: u32,
        engine: &Simulated,
        index: u32,
        concurrency: u32,
        wait_ms: f64,
        cold: bool,
    ) -> RequestRecord {
        let sent = self.now + if concurrency > 1 { u64::from(index) * 7_300 } else { 0 };
        let streams = concurrency.min(engine.slots);
        let gap = engine.gap.0 + engine.gap.1 * f64::from(streams - 1);
        let mut at = wait_ms + engine.prefill * (1.0 + 0.08 * self.random()) + engine.transport;
        // The role-only chunk, which is no token.
        let mut events = vec![EventRecord(ns(at * 0.4), EventKind::Empty, None)];
        let mut tokens = 0;
        let first_byte = ns(at * 0.4);
        while tokens < MAX_TOKENS {
            let in_chunk = if engine.name == "vllm" && self.random() < 0.2 { 2 } else { 1 };
            let in_chunk = in_chunk.min(MAX_TOKENS - tokens);
            let known = engine.counts_events.then_some(in_chunk);
            events.push(EventRecord(ns(at), EventKind::Content, known));
            tokens += in_chunk;
            let hiccup = if self.random() < 0.004 { 6.0 * gap } else { 0.0 };
            at += gap * f64::from(in_chunk) * (0.92 + 0.16 * self.random()) + hiccup;
        }
        let done = events.last().unwrap().0 + 350_000;
        events.push(EventRecord(done - 50_000, EventKind::Finish, None));
        RequestRecord {
            case,
            index,
            warmup: false,
            cold,
            requested_prompt_tokens: Some(128),
            max_tokens: MAX_TOKENS,
            prompt_sha256: format!("{index:064x}"),
            intended_at_ns: Timestamp::from_nanos(self.now),
            held: false,
            turn: None,
            sent_at_ns: Some(Timestamp::from_nanos(sent)),
            headers_ns: Some(first_byte),
            first_byte_ns: Some(first_byte),
            done_ns: done,
            events,
            num_events_dropped: 0,
            num_prompt_tokens: Some(if engine.name == "ollama" { 131 } else { 128 }),
            num_output_tokens: Some(tokens),
            count_source: CountSource::Server,
            num_cached_tokens: (engine.name == "embedded").then_some(0),
            finish_reason: Some(FinishReason::Length),
            outcome: Outcome::Ok,
            server: BTreeMap::new(),
            text: "The sky is blue because".to_owned(),
        }
    }
}

fn fail(request: &mut RequestRecord) {
    let message = HOSTILE.to_owned();
    request.outcome = Outcome::Error { class: ErrorClass::Rejected, message };
    request.events.truncate(8);
    request.done_ns = request.events[7].0 + 1_000_000;
    request.num_output_tokens = None;
    request.count_source = CountSource::None;
    request.finish_reason = None;
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "small and positive")]
fn ns(ms: f64) -> u64 {
    (ms * 1e6) as u64
}

#[expect(clippy::cast_precision_loss, reason = "small")]
fn ms(ns: u64) -> f64 {
    ns as f64 / 1e6
}
