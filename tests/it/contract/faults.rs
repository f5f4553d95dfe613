//! What goes wrong on the way, by its class, with what came before it.

use std::time::Duration;

use tokio_util::sync::CancellationToken;
use yardstick::engine::ErrorClass;
use yardstick::engine::EventKind::Content;

use super::{ADAPTERS, OLLAMA, VLLM, assert_ordered, chat, closed_url, failure, kinds};
use crate::support::scripted::{self, Scripted, Step, answer, chunk};

#[tokio::test]
async fn error_in_the_stream_keeps_its_words_and_what_came_before() {
    for adapter in ADAPTERS {
        let exchange = adapter.stream(&[&adapter.text("Paris"), adapter.error]).await;
        let error = failure(&exchange);
        assert_eq!(error.class, ErrorClass::Rejected, "{error}");
        assert!(error.message.starts_with(&format!("{} at http://", adapter.kind)), "{error}");
        assert!(error.message.ends_with("out of memory"), "{error}");
        assert_eq!((kinds(&exchange), exchange.text.as_str()), (vec![Content], "Paris"));
    }
}

#[tokio::test]
async fn stream_that_stops_early_is_truncated_however_it_stops() {
    for adapter in ADAPTERS {
        let text = adapter.text("Paris");
        let half = &adapter.text("x")[..20];
        let start =
            || vec![Step::Send(scripted::head(adapter.content_type)), Step::Send(chunk(&text))];
        let end = Step::Send(scripted::END.to_vec());
        let clean = [start(), vec![end.clone()]].concat();
        let in_an_event = [start(), vec![Step::Send(chunk(half)), end]].concat();
        let without_last_chunk = start();
        // The pause lets the text be read: a reset throws away what waits in the buffers.
        let pause = Step::Wait(Duration::from_millis(50));
        let reset = [start(), vec![pause, Step::Reset]].concat();
        for steps in [clean, in_an_event, without_last_chunk, reset] {
            let exchange = adapter.exchange(steps.clone()).await;
            assert_eq!(failure(&exchange).class, ErrorClass::Truncated, "{steps:?} {exchange:?}");
            assert_eq!(exchange.text, "Paris");
            assert_ordered(&exchange);
        }
    }
}

#[tokio::test]
async fn connection_closed_instead_of_an_answer_is_truncated() {
    for adapter in ADAPTERS {
        for steps in [vec![], vec![Step::Reset]] {
            let exchange = adapter.exchange(steps).await;
            assert_eq!(failure(&exchange).class, ErrorClass::Truncated);
            assert!(exchange.sent_at.is_some() && exchange.headers_at.is_none());
        }
    }
}

#[tokio::test]
async fn line_without_end_is_refused() {
    for adapter in ADAPTERS {
        let part = chunk(&"x".repeat(1 << 16));
        let mut steps = vec![Step::Send(scripted::head(adapter.content_type))];
        steps.extend(std::iter::repeat_n(Step::Send(part), 40));
        let exchange = adapter.exchange(steps).await;
        let error = failure(&exchange);
        assert_eq!(error.class, ErrorClass::Protocol);
        assert!(error.message.contains("line of more than 1048576 bytes"), "{error}");
    }
}

#[tokio::test]
async fn head_without_end_is_refused() {
    let mut steps = vec![Step::Send(b"HTTP/1.1 200 OK\r\n".to_vec())];
    steps
        .extend(std::iter::repeat_n(Step::Send(format!("a: {}\r\n", "x".repeat(4096)).into()), 40));
    let exchange = VLLM.exchange(steps).await;
    assert_eq!(failure(&exchange).class, ErrorClass::Protocol);
}

#[tokio::test]
async fn bytes_that_are_not_the_dialect_are_quoted() {
    for adapter in ADAPTERS {
        let exchange = adapter.stream(&[&adapter.text("Paris"), "data: {nonsense\n\n"]).await;
        let error = failure(&exchange);
        assert_eq!(error.class, ErrorClass::Protocol, "{error}");
        assert!(error.message.contains("nonsense"), "{error}");
        let exchange = adapter.exchange(vec![Step::Send(b"SSH-2.0-OpenSSH\r\n".to_vec())]).await;
        assert_eq!(failure(&exchange).class, ErrorClass::Protocol);
    }
}

#[tokio::test]
async fn page_instead_of_a_stream_is_named_as_what_it_is() {
    for adapter in ADAPTERS {
        let page = answer("200 OK", "text/html", "<html>\n<title>Sign in</title></html>");
        let exchange = adapter.exchange(page.clone()).await;
        let error = failure(&exchange);
        assert_eq!(error.class, ErrorClass::Protocol);
        assert!(error.message.contains("text/html"), "{error}");
        assert!(error.message.contains("<title>Sign in</title>"), "{error}");
        let server = Scripted::start(move |_| page.clone()).await;
        let error = adapter.engine(&server.url, "").unwrap().describe().await.unwrap_err();
        assert_eq!(error.class, ErrorClass::Protocol);
        assert!(error.message.contains("Sign in") && error.hint.is_some(), "{error}");
    }
}

#[tokio::test]
async fn silence_ends_at_the_limit() {
    let silences = ADAPTERS.map(|adapter| async move {
        let before_head = adapter.exchange(vec![Step::Hang]).await;
        assert_eq!(failure(&before_head).class, ErrorClass::Timeout);
        let error = failure(&before_head);
        assert!(error.message.ends_with("sent no byte for 1 s"), "{error}");
        assert!(error.hint.as_ref().unwrap().contains("timeout_s"));
        let text = adapter.text("Paris");
        // Longer than the limit in all, but never silent that long.
        let pause = Step::Wait(Duration::from_millis(300));
        let mut steps = vec![Step::Send(scripted::head(adapter.content_type))];
        for _ in 0..5 {
            steps.extend([Step::Send(chunk(&text)), pause.clone()]);
        }
        steps.push(Step::Hang);
        let exchange = adapter.exchange(steps).await;
        assert_eq!(failure(&exchange).class, ErrorClass::Timeout);
        assert_eq!(kinds(&exchange), [Content; 5]);
        assert_ordered(&exchange);
    });
    let [vllm, llama, ollama] = silences;
    tokio::join!(vllm, llama, ollama);
}

#[tokio::test]
async fn nobody_at_the_port_reads_in_one_line_with_its_remedy() {
    for adapter in ADAPTERS {
        let url = closed_url().await;
        let engine = adapter.engine(&url, "").unwrap();
        for error in
            [engine.describe().await.unwrap_err(), engine.prepare(&chat()).await.err().unwrap()]
        {
            assert_eq!(error.class, ErrorClass::Unreachable);
            let kind = adapter.kind;
            assert_eq!(
                error.message,
                format!("{kind} at {url} is unreachable: connection refused")
            );
            assert_eq!(error.hint.as_deref(), Some("start it, or check the URL"));
        }
    }
}

#[tokio::test]
async fn error_statuses_keep_their_class_and_words() {
    let statuses = [
        ("400 Bad Request", ErrorClass::Rejected),
        ("404 Not Found", ErrorClass::Rejected),
        ("429 Too Many Requests", ErrorClass::Busy),
        ("500 Internal Server Error", ErrorClass::Rejected),
        ("503 Service Unavailable", ErrorClass::Busy),
        ("302 Found", ErrorClass::Protocol),
    ];
    let bodies = [
        "{\"error\":{\"message\":\"model 'nope' not found\",\"code\":1}}",
        "{\"error\":\"model 'nope' not found\"}",
        "model 'nope' not found\n",
    ];
    for adapter in ADAPTERS {
        for (status, class) in statuses {
            for body in bodies {
                let exchange = adapter.exchange(answer(status, "application/json", body)).await;
                let error = failure(&exchange);
                assert_eq!(error.class, class, "{error}");
                let words = format!("HTTP {}: model 'nope' not found", &status[..3]);
                assert!(error.message.ends_with(&words), "{error}");
                assert_ne!(exchange.headers_at, None);
            }
        }
    }
    let missing = answer("404 Not Found", "application/json", bodies[1]);
    let exchange = OLLAMA.exchange(missing).await;
    assert_eq!(failure(&exchange).hint.as_deref(), Some("ollama pull smollm2:q4"));
}

#[tokio::test]
async fn cancelling_ends_at_once_and_keeps_what_came() {
    for adapter in ADAPTERS {
        let server = adapter
            .serve(vec![
                Step::Send(scripted::head(adapter.content_type)),
                Step::Send(chunk(&adapter.text("a"))),
                Step::Send(chunk(&adapter.text("b"))),
                Step::Hang,
            ])
            .await;
        let engine = adapter.engine(&server.url, "").unwrap();
        let prepared = engine.prepare(&chat()).await.unwrap();
        let cancel = CancellationToken::new();
        let running = tokio::spawn(prepared.run(cancel.clone()));
        // Both texts are sent then; the pause lets them be read. The idle limit is 300 s.
        let limit = Duration::from_secs(20);
        tokio::time::timeout(limit, server.hanging()).await.unwrap();
        tokio::time::sleep(Duration::from_millis(100)).await;
        cancel.cancel();
        let exchange = tokio::time::timeout(limit, running).await.unwrap().unwrap();
        assert_eq!(failure(&exchange).class, ErrorClass::Cancelled);
        assert_eq!(exchange.text, "ab");
        assert_ordered(&exchange);
        tokio::time::timeout(limit, server.deserted()).await.unwrap();
    }
}

#[tokio::test]
async fn request_cancelled_before_its_release_sends_nothing() {
    for adapter in ADAPTERS {
        let server = adapter.serve(vec![Step::Hang]).await;
        let prepared = adapter.engine(&server.url, "").unwrap().prepare(&chat()).await.unwrap();
        let cancel = CancellationToken::new();
        cancel.cancel();
        let exchange = prepared.run(cancel).await;
        assert_eq!((failure(&exchange).class, exchange.sent_at), (ErrorClass::Cancelled, None));
        assert!(server.received().iter().all(|request| request.path != adapter.route));
    }
}
