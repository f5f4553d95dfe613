//! An engine's log of any text, read backwards: refused, or a reading whose bounds are
//! in order and whose page tells a terminal nothing but text.

#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use yardstick::catalog::cards;
use yardstick::hardware::gpu_cards;
use yardstick::report::sizing::explained::render;
use yardstick::sizing::explain::{Context, explain};
use yardstick::sizing::{Amount, GpuMemory, Settings, Shape};

/// What the command line takes where neither model nor GPU is named.
static MODELS: LazyLock<Vec<Shape>> = LazyLock::new(|| {
    cards().iter().map(|card| Shape::of_config(&card.name, &card.config)).collect()
});
static GPUS: LazyLock<Vec<GpuMemory>> =
    LazyLock::new(|| gpu_cards().iter().filter_map(GpuMemory::of_card).collect());

fuzz_target!(|text: &str| {
    let settings = Settings::default();
    // A model that was named is taken at its word.
    let model_is_given = text.len() % 2 == 1;
    let models: &[Shape] = if model_is_given { &MODELS[..1] } else { &MODELS };
    let context = Context { models, model_is_given, gpus: &GPUS, settings: &settings };
    let Ok(reading) = explain(text, &context) else { return };
    assert!(!reading.said.is_empty() && !reading.sentences.is_empty());
    for pool in &reading.pools {
        assert!(
            pool.blocks.low <= pool.blocks.expected && pool.blocks.expected <= pool.blocks.high
        );
        in_order(&pool.kv);
    }
    for found in &reading.consistency {
        in_order(&found.budget);
        found.combinations.iter().for_each(|one| in_order(&one.residual));
    }
    let mut page = String::new();
    render(&reading, false, 80, &mut page).expect("a string takes everything");
    assert!(!page.contains('\u{1b}'));
});

fn in_order(amount: &Amount) {
    assert!(amount.low_bytes <= amount.expected_bytes, "{amount:?}");
    assert!(amount.expected_bytes <= amount.high_bytes, "{amount:?}");
}
