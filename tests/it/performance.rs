//! The floors that GPU numbers are held against, and the page that shows them.

#[path = "../../benches/support/gpu_floor.rs"]
mod gpu_floor;
#[path = "../../benches/support/gpu_tables.rs"]
mod gpu_tables;

use std::path::Path;

use yardstick::hardware::find_gpu_card;
use yardstick::infer::ModelConfig;

use self::gpu_floor::{Part, Step, Work, floor_of};

/// Bytes of an element of the model's type.
const BF16: usize = 2;

fn llama() -> &'static ModelConfig {
    gpu_tables::model()
}

fn part(step: Step, name: &str) -> Part {
    step.parts(llama(), BF16).into_iter().find(|part| part.name == name).unwrap()
}

#[test]
fn decode_step_reads_every_matrix_once() {
    let step = Step::decode(1, 1);
    // 3.21 B parameters; norms are f32, and one more row of the embedding is read.
    let norms = (2 * 28 + 1) * 3072;
    let expected = 2 * 3_212_749_824 + 2 * norms + 2 * 3072;
    assert_eq!(step.work(llama(), BF16).weights, expected);
    assert_eq!(expected / 10_000_000, 642);
    // Two operations a weight and token, whatever else is small.
    let flops = step.work(llama(), BF16).flops as f64;
    assert!((flops / (2.0 * 3.2127e9) - 1.0).abs() < 0.01, "{flops}");
}

#[test]
fn token_of_context_is_114688_bytes_of_kv() {
    let kv = |batch, context| Step::decode(batch, context).work(llama(), BF16).kv;
    assert_eq!(llama().kv_bytes_per_token(BF16), 114_688);
    // Each step also writes one token a sequence.
    assert_eq!(kv(1, 2048), 2049 * 114_688);
    assert_eq!(kv(32, 512), 32 * 513 * 114_688);
}

#[test]
fn launches_are_those_of_the_forward() {
    assert_eq!(Step::decode(1, 512).launches(llama()), 28 * 9 + 4);
    assert_eq!(Step::decode(4, 512).launches(llama()), 28 * 9 + 4);
    assert_eq!(Step::decode(5, 512).launches(llama()), 28 * 10 + 4);
    assert_eq!(Step::chunk(0, 512, true).launches(llama()), 28 * 9 + 4);
    assert_eq!(Step::chunk(0, 512, false).launches(llama()), 28 * 9 + 1);
}

#[test]
fn chunks_see_what_the_whole_prompt_sees() {
    let whole = Step::chunk(0, 2048, true);
    let chunks = Step::prompt(2048, 700);
    let pairs: usize = chunks.iter().map(|chunk| chunk.pairs).sum();
    assert_eq!((chunks.len(), pairs), (3, whole.pairs));
    assert_eq!(chunks.iter().map(|chunk| chunk.logit_rows).sum::<usize>(), 1);
    assert_eq!(Step::prompt(2048, 2048), [whole]);
    let l4 = find_gpu_card("NVIDIA L4").unwrap();
    // Weights are read again for each.
    assert!(floor_of(&chunks, llama(), BF16, l4) >= whole.floor(llama(), BF16, l4));
}

#[test]
fn floor_is_of_bytes_for_one_token_and_of_flops_for_a_prompt() {
    let l4 = find_gpu_card("NVIDIA L4").unwrap();
    let decode = part(Step::decode(1, 512), "qkv").work;
    let prompt = part(Step::chunk(0, 2048, true), "qkv").work;
    assert!((decode.floor(l4) - decode.compulsory() as f64 / 300e9).abs() < 1e-12);
    assert!((prompt.floor(l4) - prompt.flops as f64 / 121e12).abs() < 1e-12);
    let rate = 1.0 / Step::decode(1, 1).floor(llama(), BF16, l4);
    assert!((46.0..46.7).contains(&rate), "{rate} tokens a second on an L4");
}

#[test]
fn merge_moves_nothing_where_one_split_is_all() {
    assert_eq!(part(Step::decode(8, 256), "attention merge").work, Work::default());
    let merge = part(Step::decode(4, 2048), "attention merge").work.activations;
    // What the emulated device counts as read by four sequences of a layer, and the same written.
    assert_eq!(merge, 28 * 2 * 4 * 8 * 24 * 132 * 4);
}

#[test]
fn page_shows_the_tables_of_the_floor_model() {
    const BEGIN: &str = "<!-- cargo bench --features cuda --bench cuda_engine -- --floors -->\n";
    const END: &str = "<!-- end -->";
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/PERFORMANCE.md");
    let page = std::fs::read_to_string(&path).unwrap();
    let (before, rest) = page.split_once(BEGIN).unwrap();
    let (shown, after) = rest.split_once(END).unwrap();
    let tables = format!("\n{}", gpu_tables::floors());
    if shown != tables && std::env::var("INSTA_UPDATE").is_ok_and(|value| value == "always") {
        std::fs::write(&path, format!("{before}{BEGIN}{tables}{END}{after}")).unwrap();
        return;
    }
    assert!(
        shown == tables,
        "docs/PERFORMANCE.md is not what the floor model gives; look at it, then accept it with \
         `INSTA_UPDATE=always cargo test --test it performance`:\n{tables}"
    );
}
