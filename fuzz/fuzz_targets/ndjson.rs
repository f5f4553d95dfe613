//! Lines and Ollama's documents in them, in any bytes.

#![no_main]

mod cuts;

use libfuzzer_sys::fuzz_target;
use yardstick::engine::replay::Wire;

fuzz_target!(|bytes: &[u8]| cuts::check(Wire::Ollama, bytes));
