//! What is refused, and that it leaves no trace.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Instant;

use serde_json::{Value, json};
use yardstick::infer::{EngineConfig, ModelSource};
use yardstick::server::MAX_BODY_BYTES;

use super::{ENDLESS, LIMIT, read_reply, serve, slow, small, three_tokens, tiny, with};
use crate::models::write_tiny_tokenizer;

#[test]
fn bad_requests_are_refused_with_their_reason() {
    let fixture = small();
    let completion = |more: Value| fixture.post("/v1/completions", &with(three_tokens(4), &more));
    completion(json!({"model": "gpt-9"})).refuses(404, "gpt-9");
    completion(json!({"prompt": vec![5; 300]})).refuses(400, "300");
    completion(json!({"prompt": [5, 256]})).refuses(400, "256");
    completion(json!({"max_tokens": "many"})).refuses(400, "max_tokens");
    completion(json!({"n": 0})).refuses(400, "n is 0");
    completion(json!({"n": 1_000_000})).refuses(400, "1000000");
    completion(json!({"stop": vec!["x"; 17]})).refuses(400, "17");
    completion(json!({"stop": "x".repeat(257)})).refuses(400, "257");
    completion(json!({"max_tokens": 0})).refuses(400, "max_tokens");
    completion(json!({"prompt": ""})).refuses(400, "prompt has no tokens");
    completion(json!({"prompt": []})).refuses(400, "prompt");
    completion(json!({"prompt": [[]]})).refuses(400, "prompt");
    completion(json!({"prompt_logprobs": 2, "stream": true})).refuses(400, "prompt_logprobs");
    completion(json!({"temperature": -1})).refuses(400, "temperature");
    read_reply(fixture.send("POST", "/v1/completions", b"{\"prompt\":")).refuses(400, "JSON");
    fixture.post("/v1/chat/completions", &json!({"messages": []})).refuses(400, "messages");
    // None of them leaves a trace, and the next one is served.
    fixture.comes_to_rest();
    assert_eq!(completion(json!({})).status, 200);
}

#[test]
fn body_above_the_bound_is_refused_unread() {
    let fixture = small();
    let mut stream = fixture.connect();
    let head = format!(
        "POST /v1/completions HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {}\r\n\r\n",
        MAX_BODY_BYTES + 1
    );
    stream.write_all(head.as_bytes()).unwrap();
    read_reply(stream).refuses(413, "bytes");
    // The same without saying so first.
    let mut stream = fixture.connect();
    let head = "POST /v1/completions HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\
                transfer-encoding: chunked\r\n\r\n";
    stream.write_all(head.as_bytes()).unwrap();
    let chunk = vec![b' '; 1 << 20];
    for _ in 0..5 {
        // The server may have refused already and closed its side.
        let sent = stream
            .write_all(format!("{:x}\r\n", chunk.len()).as_bytes())
            .and_then(|()| stream.write_all(&chunk))
            .and_then(|()| stream.write_all(b"\r\n"));
        if sent.is_err() {
            break;
        }
    }
    let mut answer = Vec::new();
    // A reset may cut the answer off; it must not be an acceptance.
    let _ = stream.read_to_end(&mut answer);
    let answer = String::from_utf8_lossy(&answer);
    assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 413"), "{answer}");
    assert_eq!(fixture.get("/health").status, 200);
}

#[test]
fn bytes_that_are_no_http_do_not_disturb_others() {
    let fixture = small();
    for bytes in [&b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc"[..], b"GET\r\n\r\n", b"\0\0\0\0\r\n\r\n"]
    {
        let mut stream = fixture.connect();
        stream.write_all(bytes).unwrap();
        drop(stream);
    }
    let endless = [b"GET / HTTP/1.1\r\nx: ".to_vec(), vec![b'a'; 1 << 20]].concat();
    let mut stream = fixture.connect();
    // The server closes as soon as the head is above its bound.
    let _ = stream.write_all(&endless);
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    assert!(answer.is_empty() || answer.starts_with(b"HTTP/1.1 431"), "{answer:?}");
    assert_eq!(fixture.get("/health").status, 200);
}

#[test]
fn full_queue_is_busy_and_says_when_to_come_back() {
    let config = EngineConfig { max_num_seqs: 1, max_queue: 1, ..EngineConfig::default() };
    let fixture = slow(config);
    fixture.host.load().unwrap();
    let body = three_tokens(ENDLESS).to_string();
    let held: Vec<TcpStream> =
        (0..2).map(|_| fixture.send("POST", "/v1/completions", body.as_bytes())).collect();
    let begun = Instant::now();
    let refused = loop {
        // Short, in case the two above were not submitted yet.
        let reply = fixture.post("/v1/completions", &three_tokens(1));
        if reply.status == 503 {
            break reply;
        }
        assert!(begun.elapsed() < LIMIT, "the queue never filled");
    };
    refused.refuses(503, "busy");
    assert!(refused.head.contains("retry-after: 1"), "{}", refused.head);
    drop(held);
    fixture.comes_to_rest();
}

#[test]
fn chat_template_that_fails_is_the_requests_failure() {
    let chat = json!({"messages": [{"role": "user", "content": "hello"}], "max_tokens": 1});
    let endless = "{% for a in range(50000) %}{% for b in range(50000) %}x{% endfor %}{% endfor %}";
    for (template, message) in [
        (endless, "the chat template failed"),
        ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
        ("", "prompt has no tokens"),
    ] {
        let folder = tempfile::tempdir().unwrap();
        write_tiny_tokenizer(folder.path());
        fs::write(folder.path().join("chat_template.jinja"), template).unwrap();
        let ModelSource::Dummy { mut config, seed, .. } = tiny(32, 256) else { unreachable!() };
        config.vocab_size = 288;
        let tokenizer = Some(folder.path().join("tokenizer.json"));
        let source = ModelSource::Dummy { config, seed, tokenizer };
        let fixture = serve(&source, EngineConfig::default());
        fixture.post("/v1/chat/completions", &chat).refuses(400, message);
        // Whoever needs no template is served.
        assert_eq!(fixture.post("/v1/completions", &three_tokens(2)).status, 200);
        fixture.comes_to_rest();
    }
}
