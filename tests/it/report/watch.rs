//! What a probe would have seen of the fixture's run: an engine on a GPU that
//! is held down, one on the processors, and one that says how full it is.

use yardstick::clock::Timestamp;
use yardstick::record::{
    EngineWord, GpuIdentity, GpuProcess, GpuSample, JournalEntry, JournalEvent, ProcessSample,
    ResourceRecord, ResourceSource, RunData,
};

const EVERY_NS: u64 = 50_000_000;
const MIB: u64 = 1 << 20;

/// Adds looks from the run's first to its last instant.
pub fn watch(mut run: RunData) -> RunData {
    let last = run.journal.last().unwrap().at_ns.as_nanos();
    let at_ns = Timestamp::from_nanos(0);
    let started = JournalEvent::ProbeStarted { interval_ns: EVERY_NS, gpus: gpus() };
    run.journal.insert(1, JournalEntry { at_ns, event: started });
    run.journal.insert(2, JournalEntry { at_ns, event: absent() });
    run.resources = (0..=last / EVERY_NS + 1).flat_map(|k| [look(k), word(k)]).collect();
    run
}

pub fn gpus() -> Vec<GpuIdentity> {
    vec![GpuIdentity {
        gpu: 0,
        name: "NVIDIA <L4>".to_owned(),
        total_bytes: Some(23_034 * MIB),
        power_limit_mw: Some(72_000),
        max_sm_clock_mhz: Some(2_040),
    }]
}

pub fn absent() -> JournalEvent {
    JournalEvent::ResourceAbsent {
        source: ResourceSource::Procfs,
        engine: Some(2),
        what: "its processes".to_owned(),
        reason: "port 11434 is held by docker-proxy, not by the engine itself".to_owned(),
    }
}

fn look(k: u64) -> ResourceRecord {
    let process = |engine: Option<u32>, rss: u64, share: u64| ProcessSample {
        engine,
        pid: 4_000 + engine.unwrap_or(0),
        num_processes: 1 + engine.unwrap_or(0),
        rss_bytes: rss * MIB,
        anon_bytes: Some(rss * MIB / 2),
        pss_bytes: k.is_multiple_of(20).then_some(rss * MIB * 9 / 10),
        cpu_ns: k * EVERY_NS * share / 10,
        major_faults: k / 100,
        read_bytes: Some(k * 4096),
    };
    let busy = u32::try_from(k % 30).unwrap();
    ResourceRecord {
        at_ns: Timestamp::from_nanos(k * EVERY_NS),
        probe_cpu_ns: Some(k * 120_000),
        processes: vec![process(None, 820 + k % 40, 60), process(Some(3), 2_900 + k % 90, 13)],
        gpus: vec![GpuSample {
            gpu: 0,
            used_bytes: Some((9_300 + k % 120) * MIB),
            utilization_percent: Some(60 + busy),
            memory_utilization_percent: Some(40 + busy),
            power_mw: Some(61_000 + busy * 400),
            energy_mj: Some(5_000_000 + k * 3_200),
            sm_clock_mhz: Some(1_590 - busy * 10),
            memory_clock_mhz: Some(6_251),
            temperature_c: Some(66 + busy / 6),
            throttle: Some(vec!["sw_power_cap".to_owned()]),
            processes: vec![GpuProcess {
                pid: 4_003,
                engine: Some(3),
                used_bytes: Some((8_700 + k % 120) * MIB),
            }],
        }],
        word: None,
    }
}

fn word(k: u64) -> ResourceRecord {
    #[expect(clippy::cast_precision_loss, reason = "small")]
    let usage = (k % 17) as f64 / 40.0;
    ResourceRecord {
        at_ns: Timestamp::from_nanos(k * EVERY_NS + 3),
        word: Some(EngineWord {
            engine: 3,
            took_ns: 2_100_000,
            num_running: Some(k % 11),
            num_waiting: Some((k % 11).saturating_sub(7)),
            num_slots: Some(256),
            kv_usage: Some(usage),
            kv_bytes: Some(6_200 * MIB),
            kv_blocks: Some(512),
            kv_tokens: Some(280_000),
            preemptions: Some(k / 300),
            prefix_queries: Some(k * 100),
            prefix_hits: Some(k),
            prompt_tokens: Some(k * 100),
            output_tokens: Some(k * 60),
            model_bytes: Some(8_000 * MIB),
            model_gpu_bytes: Some(8_000 * MIB),
        }),
        ..ResourceRecord::default()
    }
}
