//! Answers that come whole: which event is a token, when it came, what it counts.

use std::time::Duration;

use yardstick::engine::EventKind::{Content, Empty, Finish, Reasoning, Usage};
use yardstick::engine::FinishReason;

use super::{ADAPTERS, LLAMA, OLLAMA, VLLM, assert_ordered, counts, kinds};
use crate::support::scripted::{self, Step, chunk};
use crate::support::wire;

#[tokio::test]
async fn captured_vllm_chat_reads_as_its_tokens() {
    let exchange = VLLM.stream(&[wire::VLLM_CHAT]).await;
    assert_eq!(exchange.outcome, Ok(()));
    let expected = [[Empty].as_slice(), &[Content; 7], &[Finish, Usage]].concat();
    assert_eq!(kinds(&exchange), expected);
    assert_eq!(exchange.text, "The capital of France is Paris.");
    assert_eq!(exchange.finish_reason, Some(FinishReason::Stop));
    assert_eq!(counts(&exchange), Some((Some(37), Some(8))));
    assert_ordered(&exchange);
}

#[tokio::test]
async fn captured_vllm_completions_finish_in_their_last_text() {
    let exchange = VLLM.stream(&[wire::VLLM_COMPLETIONS]).await;
    let expected = [[Content; 8].as_slice(), &[Usage]].concat();
    assert_eq!((exchange.outcome.clone(), kinds(&exchange)), (Ok(()), expected));
    assert_eq!(exchange.text, " Paris.\n\nThe answer is:");
    assert_eq!(exchange.finish_reason, Some(FinishReason::Length));
}

#[tokio::test]
async fn captured_llama_server_keeps_its_timings() {
    let chat = LLAMA.stream(&[wire::LLAMA_CHAT]).await;
    let expected = [Empty, Content, Content, Content, Finish, Usage];
    assert_eq!((chat.outcome.clone(), kinds(&chat)), (Ok(()), expected.to_vec()));
    assert_eq!((chat.text.as_str(), counts(&chat)), ("Hello! How", Some((Some(31), Some(3)))));
    assert_eq!(chat.server["prompt_ms"], 25.776);
    let completions = LLAMA.stream(&[wire::LLAMA_COMPLETIONS]).await;
    assert_eq!(kinds(&completions), [Content, Content, Content, Finish]);
    assert_eq!(completions.usage.unwrap().num_cached_tokens, Some(4));
    assert_eq!(completions.server["cache_n"], 4.0);
    let tokens_per_event: Vec<_> = completions.events.iter().map(|e| e.num_tokens).collect();
    assert_eq!(tokens_per_event, [None; 4], "usage of the whole is not that of its last chunk");
}

#[tokio::test]
async fn captured_ollama_keeps_its_durations() {
    let chat = OLLAMA.stream(&[wire::OLLAMA_CHAT]).await;
    let expected = [[Content; 7].as_slice(), &[Finish]].concat();
    assert_eq!((chat.outcome.clone(), kinds(&chat)), (Ok(()), expected));
    assert_eq!(chat.text, "The capital of France is Paris.");
    assert_eq!(
        (chat.finish_reason.clone(), counts(&chat)),
        (Some(FinishReason::Stop), Some((Some(16), Some(8))))
    );
    assert_eq!(chat.server["load_duration"], 831_261.0);
    assert_eq!(chat.server["eval_duration"], 30_687_000.0);
    let generate = OLLAMA.stream(&[wire::OLLAMA_GENERATE]).await;
    assert_eq!(generate.text, "The sky blue is a result");
    assert_eq!(counts(&generate), Some((Some(15), Some(6))));
}

#[tokio::test]
async fn zero_usage_on_every_chunk_is_no_usage() {
    let exchange = LLAMA.stream(&[wire::OLLAMA_V1]).await;
    assert_eq!(counts(&exchange), Some((Some(14), Some(3))));
    let zero = "data: {\"choices\":[{\"text\":\"a\",\"finish_reason\":\"stop\"}],\"usage\":{\"prompt_tokens\":0,\"completion_tokens\":0}}\n\ndata: [DONE]\n\n";
    let exchange = LLAMA.stream(&[zero]).await;
    assert_eq!((exchange.outcome.clone(), exchange.usage), (Ok(()), None));
}

#[tokio::test]
async fn chunk_without_text_is_not_the_first_token() {
    for adapter in ADAPTERS {
        let pause = Step::Wait(Duration::from_millis(30));
        let exchange = adapter
            .exchange(vec![
                Step::Send(scripted::head(adapter.content_type)),
                Step::Send(chunk(adapter.empty)),
                pause.clone(),
                Step::Send(chunk(&adapter.text("Paris"))),
                pause,
                Step::Send(chunk(adapter.tail)),
                Step::Send(scripted::END.to_vec()),
            ])
            .await;
        assert_eq!(kinds(&exchange)[..2], [Empty, Content], "{}", adapter.kind);
        let first = exchange.events.iter().find(|event| event.kind.is_token()).unwrap();
        assert!(first.at > exchange.events[0].at, "{}", adapter.kind);
        assert!(Some(exchange.events[0].at) == exchange.first_byte_at, "{}", adapter.kind);
        assert_ordered(&exchange);
    }
}

#[tokio::test]
async fn splitting_at_every_byte_changes_nothing() {
    let answers = [(VLLM, wire::VLLM_CHAT), (LLAMA, wire::LLAMA_CHAT), (OLLAMA, wire::OLLAMA_CHAT)];
    for (adapter, captured) in answers {
        let whole = adapter.stream(&[captured]).await;
        let mut bytes = scripted::head(adapter.content_type);
        let (early, late) = captured.split_at(captured.len() / 3);
        bytes.extend([chunk(early), chunk(late), scripted::END.to_vec()].concat());
        let single = bytes.iter().map(|byte| Step::Send(vec![*byte])).collect();
        let split = adapter.exchange(single).await;
        assert_eq!(split.outcome, Ok(()), "{}", adapter.kind);
        assert_eq!(kinds(&split), kinds(&whole));
        assert_eq!((split.text.as_str(), split.usage), (whole.text.as_str(), whole.usage));
        assert_ordered(&split);
    }
}

#[tokio::test]
async fn events_of_one_read_share_its_stamp() {
    for adapter in ADAPTERS {
        let body = [adapter.empty, &adapter.text("a"), &adapter.text("b"), adapter.tail].concat();
        let bytes =
            [scripted::head(adapter.content_type), chunk(&body), scripted::END.to_vec()].concat();
        let exchange = adapter.exchange(vec![Step::Send(bytes)]).await;
        assert_eq!(exchange.outcome, Ok(()));
        assert!(exchange.events.len() >= 4);
        let at = exchange.headers_at.unwrap();
        assert!(exchange.events.iter().all(|event| event.at == at), "{exchange:?}");
        assert_eq!((exchange.first_byte_at, exchange.done_at), (Some(at), at));
    }
}

#[tokio::test]
async fn several_tokens_in_a_chunk_are_one_event_and_usage_counts() {
    for adapter in ADAPTERS {
        let exchange = adapter.stream(&[&adapter.text("one two three"), adapter.tail]).await;
        let tokens = exchange.events.iter().filter(|event| event.kind.is_token()).count();
        assert_eq!((tokens, counts(&exchange)), (1, Some((Some(5), Some(3)))), "{}", adapter.kind);
    }
}

#[tokio::test]
async fn running_usage_of_vllm_tells_the_tokens_of_each_event() {
    let event = |text: &str, total: u32| {
        format!(
            "data: {{\"choices\":[{{\"delta\":{{\"content\":\"{text}\"}}}}],\
             \"usage\":{{\"prompt_tokens\":5,\"completion_tokens\":{total}}}}}\n\n"
        )
    };
    let parts = [event("", 0), event("a", 1), event("b c", 3)];
    let parts: Vec<&str> = parts.iter().map(String::as_str).chain([VLLM.tail]).collect();
    let exchange = VLLM.stream(&parts).await;
    let tokens: Vec<_> = exchange.events.iter().map(|event| event.num_tokens).collect();
    assert_eq!(tokens, [None, Some(1), Some(2), None, None]);
    assert_eq!(kinds(&exchange)[0], Empty);
}

#[tokio::test]
async fn reasoning_is_kept_apart_and_counts_as_tokens() {
    for adapter in ADAPTERS {
        let parts = [&adapter.reasoning("hmm"), &adapter.text("Paris"), adapter.tail];
        let exchange = adapter.stream(&parts).await;
        assert_eq!(kinds(&exchange)[..2], [Reasoning, Content], "{}", adapter.kind);
        assert_eq!((exchange.reasoning.as_str(), exchange.text.as_str()), ("hmm", "Paris"));
    }
}

#[tokio::test]
async fn missing_usage_stays_missing() {
    for adapter in ADAPTERS {
        let exchange = adapter.stream(&[&adapter.text("Paris"), adapter.bare_tail]).await;
        assert_eq!(exchange.outcome, Ok(()), "{}", adapter.kind);
        assert_eq!(exchange.usage.and_then(|usage| usage.num_output_tokens), None);
        assert_eq!(exchange.finish_reason, Some(FinishReason::Length));
    }
}

#[tokio::test]
async fn finish_reason_without_done_line_is_complete() {
    let finish = "data: {\"choices\":[{\"text\":\"a\",\"finish_reason\":\"stop\"}]}";
    let exchange = LLAMA.stream(&[finish]).await;
    assert_eq!((exchange.outcome.clone(), exchange.text.as_str()), (Ok(()), "a"));
}

#[tokio::test]
async fn slow_first_token_keeps_all_instants_apart() {
    for adapter in ADAPTERS {
        let pause = || Step::Wait(Duration::from_millis(20));
        let exchange = adapter
            .exchange(vec![
                pause(),
                Step::Send(scripted::head(adapter.content_type)),
                pause(),
                Step::Send(chunk(&adapter.text("a"))),
                pause(),
                Step::Send(chunk(adapter.tail)),
                Step::Send(scripted::END.to_vec()),
            ])
            .await;
        assert_ordered(&exchange);
        let headers = exchange.headers_at;
        assert!(exchange.sent_at < headers && headers < exchange.first_byte_at);
        assert!(exchange.events[0].at < exchange.events[1].at);
    }
}
