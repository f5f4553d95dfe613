//! What is answered: text, streams, samples, scores and counts.

use serde_json::{Value, json};
use yardstick::infer::{EngineConfig, KvBudget};

use super::{serve, small, three_tokens, tiny, with};

#[test]
fn identity_and_health_are_told() {
    let fixture = small();
    assert_eq!(fixture.get("/health").status, 200);
    assert_eq!(fixture.get("/version").json()["version"], env!("CARGO_PKG_VERSION"));
    let models = fixture.get("/v1/models").json();
    let model = &models["data"][0];
    assert_eq!((&model["id"], &model["max_model_len"]), (&json!("tiny"), &json!(256)));
    assert_eq!((&model["owned_by"], &model["dummy_weights"]), (&json!("yardstick"), &json!(true)));
    fixture.get("/v1/nothing").refuses(404, "no such route");
    fixture.get("/v1/completions").refuses(405, "another method");
}

#[test]
fn streamed_and_whole_answers_say_the_same() {
    let fixture = small();
    let whole = fixture.post("/v1/completions", &three_tokens(12)).json();
    assert_eq!(whole["object"], "text_completion");
    let choice = &whole["choices"][0];
    assert_eq!(choice["finish_reason"], "length");
    let usage = json!({
        "prompt_tokens": 3,
        "completion_tokens": 12,
        "total_tokens": 15,
        "prompt_tokens_details": {"cached_tokens": 0},
    });
    assert_eq!(whole["usage"], usage);

    let more = json!({"stream": true, "stream_options": {"include_usage": true}});
    let reply = fixture.post("/v1/completions", &with(three_tokens(12), &more));
    assert!(reply.head.contains("content-type: text/event-stream"), "{}", reply.head);
    let chunks = reply.chunks();
    let text_of = |chunk: &Value| chunk["choices"][0]["text"].as_str().unwrap_or("").to_owned();
    assert_eq!(chunks.iter().map(text_of).collect::<String>(), choice["text"].as_str().unwrap());
    // Twelve tokens, a finish reason, the usage.
    assert_eq!(chunks.len(), 14);
    assert_eq!(chunks[12]["choices"][0]["finish_reason"], "length");
    assert_eq!((&chunks[13]["choices"], &chunks[13]["usage"]), (&json!([]), &usage));
    assert!(chunks[..13].iter().all(|chunk| chunk.get("usage").is_none()));
}

#[test]
fn chat_begins_with_a_role_and_no_token() {
    let fixture = small();
    let body = json!({
        "messages": [{"role": "user", "content": "what is a block table"}],
        "max_completion_tokens": 3,
        "temperature": 0,
        "ignore_eos": true,
        "stream": true,
    });
    let chunks = fixture.post("/v1/chat/completions", &body).chunks();
    assert_eq!(chunks[0]["object"], "chat.completion.chunk");
    assert_eq!(chunks[0]["choices"][0]["delta"], json!({"role": "assistant", "content": ""}));
    assert_eq!(chunks.len(), 5);
    assert!(chunks[1..4].iter().all(|chunk| chunk["choices"][0]["delta"].get("role").is_none()));
    let text: String = chunks[1..]
        .iter()
        .map(|chunk| chunk["choices"][0]["delta"]["content"].as_str().unwrap())
        .collect();
    let whole = fixture.post("/v1/chat/completions", &with(body, &json!({"stream": false}))).json();
    assert_eq!(whole["object"], "chat.completion");
    assert_eq!(whole["choices"][0]["message"], json!({"role": "assistant", "content": text}));
}

#[test]
fn prompt_forms_with_the_same_ids_have_the_same_answer() {
    let fixture = small();
    let text = |prompt: Value| {
        let body = with(three_tokens(6), &json!({ "prompt": prompt }));
        fixture.post("/v1/completions", &body).json()["choices"][0]["text"].clone()
    };
    let expected = text(json!([5, 6, 7]));
    assert_eq!(text(json!([[5, 6, 7]])), expected);
    let words = fixture.host.tokenizer().decode(&[5, 6, 7]).unwrap();
    assert_eq!(text(json!(words)), expected);
    assert_eq!(text(json!([words])), expected);
}

#[test]
fn sampling_follows_its_seed() {
    let fixture = small();
    let text = |seed: i64| {
        let body = with(three_tokens(16), &json!({"temperature": 1.5, "seed": seed}));
        fixture.post("/v1/completions", &body).json()["choices"][0]["text"].clone()
    };
    assert_eq!(text(1), text(1));
    assert_ne!(text(1), text(2));
    assert_eq!(text(-3), text(-3));
}

#[test]
fn stop_string_ends_the_answer_before_it() {
    let fixture = small();
    let whole = fixture.post("/v1/completions", &three_tokens(12)).json();
    let text = whole["choices"][0]["text"].as_str().unwrap();
    let words: Vec<&str> = text.split_whitespace().collect();
    let stop = words[6];
    let expected = text.split(stop).next().unwrap();
    let body = with(three_tokens(12), &json!({ "stop": [stop, "never said"] }));
    let stopped = fixture.post("/v1/completions", &body).json();
    assert_eq!(stopped["choices"][0]["text"], expected);
    assert_eq!(stopped["choices"][0]["finish_reason"], "stop");
    assert!(stopped["usage"]["completion_tokens"].as_u64().unwrap() < 12);
    fixture.comes_to_rest();
}

#[test]
fn logprobs_come_in_the_shape_of_their_route() {
    let fixture = small();
    let body = with(three_tokens(2), &json!({"logprobs": 3}));
    let logprobs = &fixture.post("/v1/completions", &body).json()["choices"][0]["logprobs"];
    assert_eq!(logprobs["tokens"].as_array().unwrap().len(), 2);
    assert_eq!(logprobs["top_logprobs"][0].as_object().unwrap().len(), 3);
    assert!(logprobs["token_logprobs"][0].as_f64().unwrap() <= 0.0);
    let body = json!({
        "messages": [{"role": "user", "content": "x"}],
        "max_tokens": 2,
        "ignore_eos": true,
        "logprobs": true,
        "top_logprobs": 2,
    });
    let chat = fixture.post("/v1/chat/completions", &body).json();
    let content = chat["choices"][0]["logprobs"]["content"].as_array().unwrap();
    assert_eq!(content.len(), 2);
    assert_eq!(content[0]["top_logprobs"].as_array().unwrap().len(), 2);
}

#[test]
fn samples_are_choices_with_an_end_of_their_own() {
    let fixture = small();
    let seeded = json!({"n": 3, "temperature": 1.0, "seed": 5, "ignore_eos": true});
    let whole = fixture.post("/v1/completions", &with(three_tokens(6), &seeded)).json();
    let choices = whole["choices"].as_array().unwrap();
    let indices: Vec<_> = choices.iter().map(|choice| choice["index"].as_u64().unwrap()).collect();
    assert_eq!(indices, [0, 1, 2]);
    assert_eq!(whole["usage"]["completion_tokens"], 18);
    assert!(choices.iter().all(|choice| choice["finish_reason"] == "length"));
    // The i-th sample is what its seed alone would have given.
    let single = json!({"temperature": 1.0, "seed": 7});
    let single = fixture.post("/v1/completions", &with(three_tokens(6), &single)).json();
    assert_eq!(single["choices"][0]["text"], choices[2]["text"]);

    let chunks = fixture
        .post("/v1/completions", &with(with(three_tokens(6), &seeded), &json!({"stream": true})))
        .chunks();
    for (index, choice) in choices.iter().enumerate() {
        let own: Vec<&Value> = chunks
            .iter()
            .map(|chunk| &chunk["choices"][0])
            .filter(|c| c["index"] == index)
            .collect();
        let text: String = own.iter().map(|choice| choice["text"].as_str().unwrap()).collect();
        assert_eq!(text, choice["text"].as_str().unwrap());
        assert_eq!(own.last().unwrap()["finish_reason"], "length");
    }
    fixture.comes_to_rest();
}

#[test]
fn echo_without_tokens_scores_the_prompt() {
    let fixture = small();
    let more = json!({"echo": true, "logprobs": 2, "max_tokens": 0});
    let scored = fixture.post("/v1/completions", &with(three_tokens(1), &more)).json();
    let choice = &scored["choices"][0];
    assert_eq!(choice["finish_reason"], "length");
    assert_eq!(scored["usage"]["completion_tokens"], 0);
    let logprobs = &choice["logprobs"];
    assert_eq!(logprobs["tokens"].as_array().unwrap().len(), 3);
    assert!(logprobs["token_logprobs"][0].is_null() && logprobs["top_logprobs"][0].is_null());
    assert!(logprobs["token_logprobs"][2].as_f64().unwrap() < 0.0);
    assert_eq!(logprobs["top_logprobs"][1].as_object().unwrap().len(), 2);

    // vLLM's field says the same of the same prompt.
    let more = json!({"prompt_logprobs": 2});
    let answer = fixture.post("/v1/completions", &with(three_tokens(1), &more)).json();
    let positions = answer["choices"][0]["prompt_logprobs"].as_array().unwrap();
    assert!(positions.len() == 3 && positions[0].is_null());
    assert_eq!(positions[1]["6"]["logprob"], logprobs["token_logprobs"][1]);
    // An echo is the prompt and then the answer.
    let plain = fixture.post("/v1/completions", &three_tokens(4)).json();
    let echoed =
        fixture.post("/v1/completions", &with(three_tokens(4), &json!({"echo": true}))).json();
    let expected = format!(
        "{}{}",
        choice["text"].as_str().unwrap(),
        plain["choices"][0]["text"].as_str().unwrap()
    );
    assert_eq!(echoed["choices"][0]["text"], expected);
    fixture.comes_to_rest();
}

#[test]
fn prompt_tokens_from_the_cache_are_counted_unless_it_is_off() {
    let cached = |enable_prefix_caching| {
        let kv = KvBudget::Blocks(64);
        let config =
            EngineConfig { kv, block_size: 8, enable_prefix_caching, ..EngineConfig::default() };
        let fixture = serve(&tiny(32, 256), config);
        let body = with(three_tokens(2), &json!({"prompt": vec![9; 20]}));
        let answers = [(); 2].map(|()| fixture.post("/v1/completions", &body).json());
        assert_eq!(answers[0]["choices"][0]["text"], answers[1]["choices"][0]["text"]);
        answers.map(|a| a["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap())
    };
    assert_eq!(cached(true), [0, 16]);
    assert_eq!(cached(false), [0, 0]);
}
