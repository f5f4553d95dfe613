//! Server-sent events and the completion chunks in them: whatever comes, the answer
//! is the same however the bytes are cut into reads.

#![no_main]

use libfuzzer_sys::fuzz_target;
use yardstick::clock::Timestamp;
use yardstick::engine::replay::{Wire, replay};

fuzz_target!(|bytes: &[u8]| {
    let running_usage = bytes.first().is_some_and(|byte| byte % 2 == 0);
    let wire = Wire::OpenAi { running_usage };
    let whole = replay(wire, &[bytes], Timestamp::default());
    let reads: Vec<&[u8]> = bytes.chunks(1 + bytes.len() % 7).collect();
    let cut = replay(wire, &reads, Timestamp::default());
    assert_eq!(whole.text, cut.text);
    assert_eq!(whole.reasoning, cut.reasoning);
    assert_eq!(whole.events, cut.events);
    assert_eq!(whole.usage, cut.usage);
    assert_eq!(whole.outcome, cut.outcome);
});
