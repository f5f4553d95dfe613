//! Which connection a request leaves on.

use tokio_util::sync::CancellationToken;

use super::{ADAPTERS, Adapter, chat};
use crate::support::scripted::{Step, chunked};

/// Connections that the server accepts for `num_rounds` rounds of `num_at_once`
/// requests, each of which it answers with the last chunks and `more`.
async fn connections(
    adapter: Adapter,
    more: &[Step],
    (num_rounds, num_at_once): (usize, usize),
) -> usize {
    let answer = chunked(adapter.content_type, &[adapter.tail]);
    let server = adapter.serve([&answer, more].concat()).await;
    let engine = adapter.engine(&server.url, "").unwrap();
    engine.describe().await.unwrap();
    let before = server.num_connections();
    for _ in 0..num_rounds {
        let mut waiting = Vec::new();
        for _ in 0..num_at_once {
            waiting.push(engine.prepare(&chat()).await.unwrap());
        }
        for prepared in waiting {
            assert_eq!(prepared.run(CancellationToken::new()).await.outcome, Ok(()));
        }
    }
    server.num_connections() - before
}

#[tokio::test]
async fn connection_that_was_answered_on_takes_the_next_request_and_no_other_at_once() {
    for adapter in ADAPTERS {
        assert_eq!(connections(adapter, &[Step::KeepOpen], (3, 1)).await, 1);
        assert_eq!(connections(adapter, &[Step::KeepOpen], (3, 2)).await, 2);
    }
}

#[tokio::test]
async fn connection_that_the_server_closes_unannounced_fails_no_request() {
    for adapter in ADAPTERS {
        assert_eq!(connections(adapter, &[], (4, 2)).await, 8);
    }
}
