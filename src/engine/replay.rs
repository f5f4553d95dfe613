//! An answer read from bytes instead of a socket: what an adapter makes of
//! them. For fuzzing, and for bytes that were recorded. Knows no HTTP.

use super::Exchange;
use super::ollama::AnswerDialect;
use super::openai::ChunkDialect;
use super::stream::Dialect;
use crate::clock::Timestamp;

/// How an answer is put on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wire {
    /// Completion chunks as server-sent events.
    OpenAi {
        /// Whether every chunk carries a running token count, as vLLM's do when asked.
        running_usage: bool,
    },
    /// Ollama's documents, one a line.
    Ollama,
}

/// Takes in the body of an answer, one of `reads` after the other, all of them
/// at the instant `at`. Stops, as an adapter does, at the last event or error.
#[must_use]
pub fn replay(wire: Wire, reads: &[&[u8]], at: Timestamp) -> Exchange {
    match wire {
        Wire::OpenAi { running_usage } => follow(ChunkDialect::new(running_usage), reads, at),
        Wire::Ollama => follow(AnswerDialect::new(String::new()), reads, at),
    }
}

fn follow(mut dialect: impl Dialect, reads: &[&[u8]], at: Timestamp) -> Exchange {
    let mut exchange = Exchange::begun(at);
    for bytes in reads {
        match dialect.feed(bytes, at, &mut exchange) {
            Ok(false) => {}
            Ok(true) => return exchange,
            Err(error) => {
                exchange.outcome = Err(error);
                return exchange;
            }
        }
    }
    exchange.outcome = dialect.finish(at, &mut exchange);
    exchange
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::ErrorClass;

    const CHUNKS: &[u8] = b"data: {\"choices\":[{\"text\":\"a\"}]}\n\n\
        data: {\"choices\":[{\"text\":\"b\",\"finish_reason\":\"stop\"}]}\n\ndata: [DONE]\n\n";
    const DOCUMENTS: &[u8] = b"{\"response\":\"a\"}\n{\"response\":\"b\",\"done\":true}\n";

    #[test]
    fn recorded_bytes_give_the_text_that_the_socket_would() {
        let at = Timestamp::from_nanos(5);
        for (wire, bytes) in
            [(Wire::OpenAi { running_usage: false }, CHUNKS), (Wire::Ollama, DOCUMENTS)]
        {
            for cut in 0..bytes.len() {
                let exchange = replay(wire, &[&bytes[..cut], &bytes[cut..]], at);
                assert_eq!((exchange.text.as_str(), &exchange.outcome), ("ab", &Ok(())));
            }
            let error = replay(wire, &[&bytes[..20]], at).outcome.unwrap_err();
            assert_eq!(error.class, ErrorClass::Truncated);
        }
    }
}
