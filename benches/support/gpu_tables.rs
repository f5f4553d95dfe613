//! The floors of Llama 3.2 3B in bf16 as tables, beside what is expected of each
//! card. `docs/PERFORMANCE.md` holds them; `cuda_engine` prints them where there
//! is no GPU.

use std::fmt::Write;

use yardstick::catalog::find_card;
use yardstick::hardware::{GpuCard, gpu_cards};
use yardstick::infer::ModelConfig;

use super::gpu_floor::{EXPECTATIONS, Expectation, Part, Step, Work};

/// The model of the tables.
pub const MODEL: &str = "llama-3.2-3b-instruct";

const BF16: usize = 2;
const BATCHES: [usize; 3] = [1, 8, 32];
const CONTEXTS: [usize; 3] = [512, 2048, 8192];
const PROMPTS: [usize; 2] = [512, 2048];
const STREAMS: [usize; 6] = [1, 2, 4, 8, 16, 32];

/// Shapes of the model of the tables.
pub fn model() -> &'static ModelConfig {
    &find_card(MODEL).unwrap_or_else(|| panic!("no card for {MODEL}")).config
}

/// The cards of the tables, and what is expected of them.
fn cards() -> [(&'static GpuCard, Expectation); 3] {
    EXPECTATIONS.map(|expected| {
        let card = gpu_cards().iter().find(|card| card.name == expected.card);
        (card.unwrap_or_else(|| panic!("no card for {}", expected.card)), expected)
    })
}

/// All tables, as markdown.
pub fn floors() -> String {
    let mut text = String::new();
    for batch in BATCHES {
        let steps = CONTEXTS.map(|context| (context, Step::decode(batch, context)));
        let title = format!("Kernels of a decode step, batch {batch}");
        text += &kernels(&title, "context", &steps);
    }
    let steps = PROMPTS.map(|len| (len, Step::chunk(0, len, true)));
    text += &kernels("Kernels of a prefill", "tokens", &steps);
    text + &decode() + &prefill() + &scaling()
}

/// One row a kernel; one for each step where they differ in more than rows.
fn kernels(title: &str, varies: &str, steps: &[(usize, Step)]) -> String {
    let mut header = vec!["kernel".to_owned(), varies.to_owned()];
    header.extend(["launches", "weights MB", "KV MB", "activations MB", "GFLOP"].map(String::from));
    header.extend(cards().map(|(card, _)| format!("{} us", card.name)));
    let mut rows = Vec::new();
    let parts = steps.iter().map(|(value, step)| (*value, step.parts(model(), BF16)));
    let parts: Vec<(usize, Vec<Part>)> = parts.collect();
    for (index, first) in parts[0].1.iter().enumerate() {
        let same = parts.iter().all(|(_, parts)| parts[index].work == first.work);
        for (value, parts) in if same { &parts[..1] } else { &parts[..] } {
            let label = if same { "any".to_owned() } else { value.to_string() };
            let part = parts[index];
            rows.push(row(part.name, &label, part.launches, part.work, |card| {
                part.work.floor(card)
            }));
        }
    }
    for (value, step) in steps {
        let (launches, work) = (step.launches(model()), step.work(model(), BF16));
        let floor = |card: &GpuCard| step.floor(model(), BF16, card);
        rows.push(row("**all**", &value.to_string(), launches, work, floor));
    }
    table(title, &header, &rows)
}

fn row(
    name: &str,
    label: &str,
    launches: usize,
    work: Work,
    floor: impl Fn(&GpuCard) -> f64,
) -> Vec<String> {
    let mut row = vec![name.to_owned(), label.to_owned(), launches.to_string()];
    row.extend([work.weights, work.kv, work.activations].map(|bytes| number(bytes as f64 / 1e6)));
    row.push(number(work.flops as f64 / 1e9));
    row.extend(cards().map(|(card, _)| number(floor(card) * 1e6)));
    row
}

/// Steps: floor, and what is expected.
fn decode() -> String {
    let mut header = ["batch", "context", "GB"].map(String::from).to_vec();
    for (card, _) in cards() {
        header.push(format!("{} floor tok/s", card.name));
        header.push("EXPECTED tok/s".to_owned());
    }
    let mut rows = Vec::new();
    for batch in BATCHES {
        for context in CONTEXTS {
            let step = Step::decode(batch, context);
            let bytes = step.work(model(), BF16).compulsory();
            let mut row = vec![batch.to_string(), context.to_string()];
            row.push(number(bytes as f64 / 1e9));
            for (card, expected) in cards() {
                let floor = step.floor(model(), BF16, card);
                let time = expected.time(&step, model(), BF16, card);
                row.push(number(batch as f64 / floor));
                row.push(format!("{} ({})", number(batch as f64 / time), share(floor / time)));
            }
            rows.push(row);
        }
    }
    table("Decode steps", &header, &rows)
}

fn prefill() -> String {
    let mut header = ["tokens", "TFLOP"].map(String::from).to_vec();
    for (card, _) in cards() {
        header.push(format!("{} floor ms", card.name));
        header.push("EXPECTED ms".to_owned());
    }
    let mut rows = Vec::new();
    for len in PROMPTS {
        let step = Step::chunk(0, len, true);
        let flops = step.work(model(), BF16).flops as f64;
        let mut row = vec![len.to_string(), number(flops / 1e12)];
        for (card, expected) in cards() {
            let floor = step.floor(model(), BF16, card);
            let time = expected.time(&step, model(), BF16, card);
            row.push(number(floor * 1e3));
            row.push(format!("{} ({})", number(time * 1e3), share(floor / time)));
        }
        rows.push(row);
    }
    table("Prefill, and so the time to first token of an idle engine", &header, &rows)
}

fn scaling() -> String {
    const CONTEXT: usize = 512;
    let mut header = vec!["streams".to_owned()];
    for (card, _) in cards() {
        header.push(format!("{} floor tok/s", card.name));
        header.push("EXPECTED tok/s".to_owned());
        header.push("times one stream".to_owned());
    }
    let mut rows = Vec::new();
    for streams in STREAMS {
        let mut row = vec![streams.to_string()];
        for (card, expected) in cards() {
            let rate = |streams: usize| {
                let step = Step::decode(streams, CONTEXT);
                streams as f64 / expected.time(&step, model(), BF16, card)
            };
            let floor = Step::decode(streams, CONTEXT).floor(model(), BF16, card);
            row.push(number(streams as f64 / floor));
            row.push(number(rate(streams)));
            row.push(number(rate(streams) / rate(1)));
        }
        rows.push(row);
    }
    table(&format!("All streams together, context {CONTEXT}"), &header, &rows)
}

fn table(title: &str, header: &[String], rows: &[Vec<String>]) -> String {
    let mut text = format!("### {title}\n\n| {} |\n", header.join(" | "));
    let dashes = vec!["---"; header.len()];
    let _ = writeln!(text, "| {} |", dashes.join(" | "));
    for row in rows {
        let _ = writeln!(text, "| {} |", row.join(" | "));
    }
    text + "\n"
}

/// Three significant digits, and no more than three decimals.
fn number(value: f64) -> String {
    match value {
        0.0 => "0".to_owned(),
        value if value < 0.0995 => format!("{value:.3}"),
        value if value < 9.995 => format!("{value:.2}"),
        value if value < 99.95 => format!("{value:.1}"),
        value => format!("{value:.0}"),
    }
}

fn share(value: f64) -> String {
    format!("{:.0} %", 100.0 * value)
}
