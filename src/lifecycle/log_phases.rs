//! Phases inside an engine, from the lines in which it prints how long they
//! took. Pure; a line that is not known is no phase. Durations are the engine's
//! own word, on its own clock.

use serde::{Deserialize, Serialize};

/// A phase that an engine timed itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogPhase {
    /// Which, in our words.
    pub phase: String,
    /// How long it says it took, in nanoseconds.
    pub took_ns: u64,
}

/// Text before a number, text after it, nanoseconds a unit, and what that is.
struct Pattern {
    before: &'static str,
    after: &'static str,
    unit_ns: f64,
    phase: &'static str,
}

const S: f64 = 1e9;
const MS: f64 = 1e6;

const fn seconds(before: &'static str, after: &'static str, phase: &'static str) -> Pattern {
    Pattern { before, after, unit_ns: S, phase }
}

/// As vLLM 0.6 to 0.32, llama.cpp and Ollama (2024 to 2026) print them.
const PATTERNS: [Pattern; 12] = [
    seconds("Loading weights took ", " second", "weights"),
    seconds("Loading weights took ", " s", "weights"),
    // Model loading took 7.6065 GiB and 1.163559 seconds; ... GiB memory and 20.3s
    seconds("Model loading took * and ", " second", "model loading"),
    seconds("Model loading took * and ", "s", "model loading"),
    seconds("Dynamo bytecode transform time: ", " s", "dynamo"),
    seconds("torch.compile takes ", " s", "torch.compile"),
    seconds("torch.compile took ", " s", "torch.compile"),
    seconds("Graph capturing finished in ", " sec", "graph capture"),
    seconds("init engine (profile, create kv cache, warmup model) took ", " s", "engine init"),
    seconds("init engine took ", " s", "engine init"),
    seconds("llama runner started in ", " second", "runner"),
    Pattern { before: "load time = ", after: " ms", unit_ns: MS, phase: "load" },
];

/// Longest duration that is believed: a week.
const MAX_S: f64 = 604_800.0;

/// Every phase that a log tells of, in its order. Workers that load side by
/// side print the same phase each; the longest one counts.
#[must_use]
pub fn parse(log: &str) -> Vec<LogPhase> {
    let mut phases: Vec<LogPhase> = Vec::new();
    for (phase, took_ns) in log.lines().filter_map(phase_of) {
        if let Some(known) = phases.iter_mut().find(|known| known.phase == phase) {
            known.took_ns = known.took_ns.max(took_ns);
        } else {
            phases.push(LogPhase { phase: phase.to_owned(), took_ns });
        }
    }
    phases
}

fn phase_of(line: &str) -> Option<(&'static str, u64)> {
    PATTERNS.iter().find_map(|pattern| Some((pattern.phase, pattern.nanos(line)?)))
}

impl Pattern {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "it is between 0 and a week"
    )]
    fn nanos(&self, line: &str) -> Option<u64> {
        let rest = self.before.split('*').try_fold(line, |rest, part| {
            rest.find(part).and_then(|at| rest.get(at + part.len()..))
        })?;
        let rest = rest.trim_start();
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
        let (number, unit) = rest.split_at(end);
        if !unit.starts_with(self.after) {
            return None;
        }
        let value: f64 = number.parse().ok()?;
        let nanos = value * self.unit_ns;
        (nanos.is_finite() && nanos <= MAX_S * S).then_some(nanos.round() as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(log: &str) -> Vec<(String, u64)> {
        parse(log).into_iter().map(|p| (p.phase, p.took_ns / 1_000_000)).collect()
    }

    fn is(log: &str, phases: &[(&str, u64)]) {
        let expected: Vec<_> = phases.iter().map(|(p, ms)| ((*p).to_owned(), *ms)).collect();
        assert_eq!(told(log), expected);
    }

    /// Lines as vLLM printed them in 2025 and 2026, in public logs.
    #[test]
    fn vllm_tells_of_weights_compiling_graphs_and_the_whole() {
        is(
            "(EngineCore_DP0 pid=212) INFO 10-06 12:00:03 [gpu_model_runner.py:2338] Starting to load model /m...\n\
             INFO 07-23 10:22:20 [default_loader.py:272] Loading weights took 3.22 seconds\n\
             INFO 07-23 10:22:20 [gpu_model_runner.py:1801] Model loading took 14.2488 GiB and 5.173644 seconds\n\
             INFO 03-23 05:02:28 [backends.py:419] Dynamo bytecode transform time: 7.30 s\n\
             INFO 03-23 05:02:56 [backends.py:144] Compiling a graph for general shape takes 27.31 s\n\
             INFO 03-23 05:03:04 [monitor.py:33] torch.compile takes 34.61 s in total\n\
             INFO 03-23 05:03:05 [kv_cache_utils.py:537] GPU KV cache size: 28,704 tokens\n\
             INFO 03-23 05:03:30 [gpu_model_runner.py:1499] Graph capturing finished in 25 secs, took 1.58 GiB\n\
             INFO 11-03 15:47:45 [llm_engine.py:428] init engine (profile, create kv cache, warmup model) took 28.44 seconds\n",
            &[
                ("weights", 3_220),
                ("model loading", 5_173),
                ("dynamo", 7_300),
                ("torch.compile", 34_610),
                ("graph capture", 25_000),
                ("engine init", 28_440),
            ],
        );
        is(
            "Model loading took 55.22 GiB memory and 20.3s\n\
             torch.compile took 104.04 s in total\n\
             init engine took 70.62 s (compilation: 42.18 s)\n",
            &[("model loading", 20_300), ("torch.compile", 104_040), ("engine init", 70_620)],
        );
    }

    #[test]
    fn llama_cpp_and_ollama_tell_of_loading() {
        is("llama_print_timings:        load time =     739.73 ms", &[("load", 739)]);
        is("llama_perf_context_print:        load time =  5282.86 ms", &[("load", 5_282)]);
        is(
            "time=2026-04-10T21:13:59.427+09:00 level=INFO source=server.go:1390 msg=\"llama runner started in 5.65 seconds\"",
            &[("runner", 5_650)],
        );
    }

    #[test]
    fn workers_side_by_side_count_as_the_slowest() {
        is(
            "Loading weights took 2.0 seconds\nLoading weights took 3.5 seconds\n",
            &[("weights", 3_500)],
        );
    }

    #[test]
    fn what_is_no_phase_is_left_out() {
        for line in [
            "Loading weights took long",
            "Loading weights took 3.2.1 seconds",
            "Model loading took 36.11 GiB memory",
            "torch.compile takes way too long",
            "torch.compile takes 99999999999999999999999 s in total",
            "llama runner started in N seconds",
            "Graph capturing finished in",
            "Loading weights took é",
        ] {
            is(line, &[]);
        }
    }
}
