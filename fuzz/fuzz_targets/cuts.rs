//! What must hold of every stream: the answer is the same however its bytes are
//! cut into reads.

use yardstick::clock::Timestamp;
use yardstick::engine::replay::{Wire, replay};

pub fn check(wire: Wire, bytes: &[u8]) {
    let whole = replay(wire, &[bytes], Timestamp::default());
    let reads: Vec<&[u8]> = bytes.chunks(1 + bytes.len() % 7).collect();
    let cut = replay(wire, &reads, Timestamp::default());
    assert_eq!(whole.text, cut.text);
    assert_eq!(whole.reasoning, cut.reasoning);
    assert_eq!(whole.events, cut.events);
    assert_eq!(whole.usage, cut.usage);
    assert_eq!(whole.outcome, cut.outcome);
}
