//! Whether more streams give more tokens: 1 to 32 at once on a GPU, one line
//! each, with the total of all. An engine whose total at 32 streams is below that
//! of one has been shipped; ours must reach twelve times one stream.
//!
//! `cargo bench --features cuda --bench cuda_scaling`

#[path = "support/gpu_bench.rs"]
#[expect(dead_code, reason = "kernels alone are timed by another bench")]
mod gpu_bench;
#[path = "support/gpu_engine.rs"]
#[expect(dead_code, reason = "every bench takes its share of it")]
mod gpu_engine;
#[path = "support/gpu_floor.rs"]
#[expect(dead_code, reason = "every bench takes its share of it")]
mod gpu_floor;
#[path = "support/gpu_tables.rs"]
mod gpu_tables;

use gpu_bench::{machine, say};
use gpu_engine::Bench;
use gpu_floor::Step;

const BF16: usize = 2;
const STREAMS: [usize; 6] = [1, 2, 4, 8, 16, 32];
const CONTEXT: usize = 512;
const STEPS: usize = 64;
/// Total of 32 streams over that of one, at the least.
const TARGET: f64 = 12.0;

fn main() {
    let Some(machine) = machine() else {
        say("floors, and what is expected, of Llama 3.2 3B in bf16:\n");
        say(&gpu_tables::floors());
        return;
    };
    let bench = Bench::open(machine);
    let (streams, context, steps): (&[usize], _, _) =
        if bench.smoke() { (&[1, 2, 4], 20, 2) } else { (&STREAMS, CONTEXT, STEPS) };
    let mut core = bench.core(context + 4 * steps, true);
    let mut one = None;
    let mut last = (0, 0.0);
    say(&format!("\nprompts of {context} tokens, decode with graphs"));
    for &streams in streams {
        let decode = match bench.decode(&mut core, streams, context, steps) {
            Ok(decode) => decode,
            Err(why) => {
                say(&format!("{streams:>2} streams  skipped: {why}"));
                continue;
            }
        };
        if bench.smoke() {
            say(&format!("{streams:>2} streams  computed"));
            continue;
        }
        let rate = streams as f64 / decode.steps.median();
        let times = rate / *one.get_or_insert(rate);
        last = (streams, times);
        let floor = bench.floor(|card| {
            let floor = Step::decode(streams, decode.context).floor(bench.config(), BF16, card);
            streams as f64 / floor
        });
        let floor = floor.map_or_else(String::new, |floor| {
            format!("  {:.0} % of what the card allows ({floor:.0})", 100.0 * rate / floor)
        });
        say(&format!(
            "{streams:>2} streams  total {rate:>7.1} tok/s  {times:>5.2} x one  +- {:.1} %  \
             n {}{floor}  with prompts {:.1} tok/s",
            100.0 * decode.steps.spread(),
            decode.steps.len(),
            decode.with_prompts,
        ));
    }
    if let (32, times) = last {
        let verdict = if times >= TARGET { "met" } else { "MISSED" };
        say(&format!("32 streams give {times:.1} times one; at least {TARGET} wanted: {verdict}"));
    }
}
