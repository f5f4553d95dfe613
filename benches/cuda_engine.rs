//! The embedded engine on a GPU beside what the card allows: time to first token
//! and prefill over prompt lengths, decode over batches and contexts, graphs on
//! and off. Without a GPU it prints the floors of `docs/PERFORMANCE.md`.
//!
//! `cargo bench --features cuda --bench cuda_engine [-- --floors]`

#[path = "support/gpu_bench.rs"]
#[expect(dead_code, reason = "kernels alone are timed by another bench")]
mod gpu_bench;
#[path = "support/gpu_engine.rs"]
#[expect(dead_code, reason = "every bench takes its share of it")]
mod gpu_engine;
#[path = "support/gpu_floor.rs"]
mod gpu_floor;
#[path = "support/gpu_tables.rs"]
mod gpu_tables;

use gpu_bench::{has_flag, machine, say};
use gpu_engine::{BUDGET, Bench};
use gpu_floor::{Step, bandwidth_time, compute_time, floor_of};
use yardstick::infer::EngineCore;
use yardstick::infer::cuda::kernels::{decode_attention, gemv};

// What the floors assume of the kernels.
const _: () = assert!(gpu_floor::GEMV_ROWS == gemv::MAX_ROWS);
const _: () = assert!(gpu_floor::SPLIT == decode_attention::SPLIT);

const BF16: usize = 2;
const PROMPTS: [usize; 6] = [32, 128, 512, 2048, 8192, 32_768];
const BATCHES: [usize; 7] = [1, 2, 4, 8, 16, 32, 64];
const CONTEXTS: [usize; 5] = [128, 512, 2048, 8192, 32_768];
const STEPS: usize = 32;
const REPEATS: usize = 7;

fn main() {
    if has_flag("--floors") {
        say(&gpu_tables::floors());
        return;
    }
    let Some(machine) = machine() else {
        say("floors, and what is expected, of Llama 3.2 3B in bf16:\n");
        say(&gpu_tables::floors());
        return;
    };
    let bench = Bench::open(machine);
    let max_len = if bench.smoke() { 128 } else { CONTEXTS[CONTEXTS.len() - 1] + 256 };
    let mut with_graphs = Vec::new();
    {
        let mut core = bench.core(max_len, true);
        first_tokens(&bench, &mut core);
        decode(&bench, &mut core, &mut with_graphs);
    }
    graphs_off(&bench, &mut bench.core(max_len, false), &with_graphs);
}

fn first_tokens(bench: &Bench, core: &mut EngineCore) {
    say("\nprompt, idle engine");
    say("tokens  ttft ms  +-      n  tok/s     floor ms  of floor  MFU");
    let prompts: &[usize] = if bench.smoke() { &[40] } else { &PROMPTS };
    for &len in prompts {
        let repeats = if bench.smoke() { 1 } else { REPEATS };
        let times = match bench.first_token(core, len, repeats) {
            Ok(times) => times,
            Err(why) => {
                say(&format!("{len:>6}  skipped: {why}"));
                continue;
            }
        };
        if bench.smoke() {
            say(&format!("{len:>6}  computed"));
            continue;
        }
        let time = times.median();
        let steps = Step::prompt(len, BUDGET);
        let flops = steps.iter().map(|step| step.work(bench.config(), BF16).flops).sum();
        let floor = bench.floor(|card| floor_of(&steps, bench.config(), BF16, card));
        let mfu = bench.floor(|card| compute_time(flops, card) / time);
        say(&format!(
            "{len:>6}  {:>7.2}  {:>4.1} %  {}  {:>8.0}  {:>8}  {:>8}  {:>4}",
            time * 1e3,
            100.0 * times.spread(),
            times.len(),
            len as f64 / time,
            cell(floor.map(|floor| floor * 1e3), 2),
            cell(floor.map(|floor| 100.0 * floor / time), 1),
            cell(mfu.map(|mfu| 100.0 * mfu), 1),
        ));
    }
}

/// Batch, context, and seconds of a step.
type Measured = (usize, usize, f64);

fn decode(bench: &Bench, core: &mut EngineCore, measured: &mut Vec<Measured>) {
    say("\ndecode, graphs on");
    say("batch  context  step ms  +-       n  tok/s    floor ms  of floor  MBU");
    let (batches, contexts): (&[_], &[_]) =
        if bench.smoke() { (&[1, 3], &[20]) } else { (&BATCHES, &CONTEXTS) };
    for &context in contexts {
        for &batch in batches {
            let steps = if bench.smoke() { 2 } else { STEPS };
            let decode = match bench.decode(core, batch, context, steps) {
                Ok(decode) => decode,
                Err(why) => {
                    say(&format!("{batch:>5}  {context:>7}  skipped: {why}"));
                    continue;
                }
            };
            measured.push((batch, context, decode.steps.median()));
            if bench.smoke() {
                say(&format!("{batch:>5}  {context:>7}  computed"));
                continue;
            }
            let time = decode.steps.median();
            let step = Step::decode(batch, decode.context);
            let bytes = step.work(bench.config(), BF16).compulsory();
            let floor = bench.floor(|card| step.floor(bench.config(), BF16, card));
            let mbu = bench.floor(|card| bandwidth_time(bytes, card) / time);
            say(&format!(
                "{batch:>5}  {context:>7}  {:>7.3}  {:>4.1} %  {}  {:>7.1}  {:>8}  {:>8}  {:>4}",
                time * 1e3,
                100.0 * decode.steps.spread(),
                decode.steps.len(),
                batch as f64 / time,
                cell(floor.map(|floor| floor * 1e3), 3),
                cell(floor.map(|floor| 100.0 * floor / time), 1),
                cell(mbu.map(|mbu| 100.0 * mbu), 1),
            ));
        }
    }
}

/// The same steps launched one by one, where they are short.
fn graphs_off(bench: &Bench, core: &mut EngineCore, with_graphs: &[Measured]) {
    say("\ndecode, graphs off");
    say("batch  context  step ms  with graphs ms  gained");
    let cases: Vec<_> = with_graphs.iter().filter(|(_, context, _)| *context <= 512).collect();
    for &&(batch, context, with) in &cases {
        let steps = if bench.smoke() { 2 } else { STEPS };
        match bench.decode(core, batch, context, steps) {
            Err(why) => say(&format!("{batch:>5}  {context:>7}  skipped: {why}")),
            Ok(_) if bench.smoke() => say(&format!("{batch:>5}  {context:>7}  computed")),
            Ok(decode) => {
                let without = decode.steps.median();
                let gained = 100.0 * (without - with) / without;
                let (without, with) = (without * 1e3, with * 1e3);
                say(&format!(
                    "{batch:>5}  {context:>7}  {without:>7.3}  {with:>14.3}  {gained:>4.1} %"
                ));
            }
        }
    }
}

fn cell(value: Option<f64>, decimals: usize) -> String {
    value.map_or_else(|| "-".to_owned(), |value| format!("{value:.decimals$}"))
}
