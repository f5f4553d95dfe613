//! Server-sent events and the completion chunks in them, in any bytes.

#![no_main]

mod cuts;

use libfuzzer_sys::fuzz_target;
use yardstick::engine::replay::Wire;

fuzz_target!(|bytes: &[u8]| {
    let running_usage = bytes.first().is_some_and(|byte| byte % 2 == 0);
    cuts::check(Wire::OpenAi { running_usage }, bytes);
});
