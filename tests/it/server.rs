//! `yardstick serve` over real sockets.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use yardstick::clock::Clock;
use yardstick::infer::{EngineConfig, EngineHost, KvBudget, ModelConfig, ModelSource};
use yardstick::server::{MAX_BODY_BYTES, Server};

/// Longer than any test may take; a server that hangs fails here.
const LIMIT: Duration = Duration::from_secs(60);

/// Tokens of an answer that no test waits for.
const ENDLESS: usize = 30_000;

/// A model of two layers whose weights are noise.
fn tiny(hidden_size: usize, max_position_embeddings: usize) -> ModelSource {
    let config = ModelConfig {
        vocab_size: 256,
        hidden_size,
        intermediate_size: 2 * hidden_size,
        num_hidden_layers: 2,
        num_attention_heads: 4,
        num_key_value_heads: 2,
        head_dim: hidden_size / 4,
        rms_norm_eps: 1e-5,
        rope_theta: 10_000.0,
        rope_scaling: None,
        max_position_embeddings,
        tie_word_embeddings: true,
        attention_bias: false,
        eos_token_ids: vec![2],
        bos_token_id: None,
    };
    ModelSource::Dummy { config: Box::new(config), seed: 7, tokenizer: None }
}

struct Fixture {
    host: EngineHost,
    server: Server,
}

fn serve(source: &ModelSource, config: EngineConfig) -> Fixture {
    let host = EngineHost::open(source, config, Clock::real()).unwrap();
    let any: SocketAddr = "127.0.0.1:0".parse().unwrap();
    let server = Server::start(host.clone(), any, "tiny").unwrap();
    Fixture { host, server }
}

fn small() -> Fixture {
    let kv = KvBudget::Blocks(64);
    serve(&tiny(32, 256), EngineConfig { kv, block_size: 8, ..EngineConfig::default() })
}

/// A model slow enough that a test can step in before an answer of its whole context ends.
fn slow(config: EngineConfig) -> Fixture {
    let kv = KvBudget::Blocks(2048);
    serve(&tiny(512, 32_768), EngineConfig { kv, block_size: 16, ..config })
}

struct Reply {
    status: u16,
    head: String,
    body: Vec<u8>,
}

impl Reply {
    fn json(&self) -> Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&self.body)))
    }

    /// The payloads of a stream's events.
    fn events(&self) -> Vec<String> {
        let text = String::from_utf8(self.body.clone()).unwrap();
        let events = text.split_terminator("\n\n");
        events.map(|event| event.strip_prefix("data: ").unwrap().to_owned()).collect()
    }

    /// The chunks of a stream that must end with `[DONE]`.
    fn chunks(&self) -> Vec<Value> {
        let mut events = self.events();
        assert_eq!(events.pop().as_deref(), Some("[DONE]"));
        events.iter().map(|event| serde_json::from_str(event).unwrap()).collect()
    }

    #[track_caller]
    fn refuses(&self, status: u16, message: &str) {
        let body = self.json();
        assert_eq!(self.status, status, "{body}");
        assert!(body["error"]["message"].as_str().unwrap().contains(message), "{body}");
        assert_eq!(body["error"]["code"], status, "{body}");
        assert!(body["error"]["type"].is_string(), "{body}");
    }
}

impl Fixture {
    fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.server.address()).unwrap();
        stream.set_read_timeout(Some(LIMIT)).unwrap();
        stream
    }

    /// Sends a request without waiting for the answer.
    fn send(&self, method: &str, path: &str, body: &[u8]) -> TcpStream {
        let mut stream = self.connect();
        let head = format!(
            "{method} {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {}\r\n\r\n",
            body.len()
        );
        stream.write_all(head.as_bytes()).unwrap();
        stream.write_all(body).unwrap();
        stream
    }

    fn get(&self, path: &str) -> Reply {
        read_reply(self.send("GET", path, b""))
    }

    fn post(&self, path: &str, body: &Value) -> Reply {
        read_reply(self.send("POST", path, body.to_string().as_bytes()))
    }

    /// A lower bound on how long [`ENDLESS`] tokens take: their first hundred, as many times.
    fn endless_takes(&self) -> Duration {
        let begun = Instant::now();
        assert_eq!(self.post("/v1/completions", &three_tokens(100)).status, 200);
        begun.elapsed() * (ENDLESS as u32 / 100)
    }

    /// Waits until a request runs.
    #[track_caller]
    fn comes_to_run(&self) {
        let begun = Instant::now();
        while self.host.status().num_running == 0 {
            assert!(begun.elapsed() < LIMIT, "nothing runs");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Waits until nothing runs and every block is free.
    #[track_caller]
    fn comes_to_rest(&self) {
        self.comes_to_rest_within(LIMIT);
    }

    #[track_caller]
    fn comes_to_rest_within(&self, limit: Duration) {
        let begun = Instant::now();
        loop {
            let status = self.host.status();
            let idle = status.num_running == 0 && status.num_waiting == 0;
            if idle && status.num_free_blocks == status.num_blocks {
                return;
            }
            assert!(begun.elapsed() < limit, "still busy: {status:?}");
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

fn read_reply(stream: TcpStream) -> Reply {
    let mut reader = BufReader::new(stream);
    let head = read_head(&mut reader);
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    let mut body = Vec::new();
    if head.contains("transfer-encoding: chunked") {
        while let Some(chunk) = read_chunk(&mut reader) {
            body.extend(chunk);
        }
    } else {
        reader.read_to_end(&mut body).unwrap();
    }
    Reply { status, head, body }
}

fn read_head(reader: &mut impl BufRead) -> String {
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        assert!(reader.read_line(&mut head).unwrap() > 0, "the answer ended in its head: {head}");
    }
    head.to_ascii_lowercase()
}

fn read_chunk(reader: &mut impl BufRead) -> Option<Vec<u8>> {
    let mut size = String::new();
    reader.read_line(&mut size).unwrap();
    let size = usize::from_str_radix(size.trim(), 16).unwrap();
    let mut chunk = vec![0; size + 2];
    reader.read_exact(&mut chunk).unwrap();
    chunk.truncate(size);
    (size > 0).then_some(chunk)
}

/// A greedy request for `max_tokens` tokens after three.
fn three_tokens(max_tokens: usize) -> Value {
    json!({
        "model": "tiny",
        "prompt": [5, 6, 7],
        "max_tokens": max_tokens,
        "temperature": 0,
        "ignore_eos": true,
    })
}

fn with(mut body: Value, more: &Value) -> Value {
    for (name, value) in more.as_object().unwrap() {
        body[name] = value.clone();
    }
    body
}

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

#[test]
fn client_that_stops_reading_is_given_up_and_frees_its_blocks() {
    let kv = KvBudget::Blocks(2048);
    let config = EngineConfig { kv, block_size: 16, ..EngineConfig::default() };
    let host = EngineHost::open(&tiny(512, 32_768), config, Clock::real()).unwrap();
    let any: SocketAddr = "127.0.0.1:0".parse().unwrap();
    let limit = Duration::from_millis(300);
    let server = Server::start_with(host.clone(), any, "tiny", limit).unwrap();
    let fixture = Fixture { host, server };
    let endless = fixture.endless_takes();
    // Many bytes a token into a small window.
    let body = with(three_tokens(ENDLESS), &json!({"stream": true, "logprobs": 20})).to_string();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let mut stream = runtime.block_on(async {
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.set_recv_buffer_size(4096).unwrap();
        let stream = socket.connect(fixture.server.address()).await.unwrap();
        stream.into_std().unwrap()
    });
    stream.set_nonblocking(false).unwrap();
    let head = format!(
        "POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(head.as_bytes()).unwrap();
    fixture.comes_to_run();
    fixture.comes_to_rest_within(endless / 2);
    drop(stream);
    assert_eq!(fixture.get("/health").status, 200);
}

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
fn disconnect_in_a_stream_frees_its_blocks() {
    let fixture = slow(EngineConfig::default());
    let endless = fixture.endless_takes();
    let body = with(three_tokens(ENDLESS), &json!({"stream": true}));
    let stream = fixture.send("POST", "/v1/completions", body.to_string().as_bytes());
    let mut reader = BufReader::new(stream);
    read_head(&mut reader);
    assert!(read_chunk(&mut reader).unwrap().starts_with(b"data: {"));
    fixture.comes_to_run();
    drop(reader);
    fixture.comes_to_rest_within(endless / 4);
}

#[test]
fn disconnect_before_a_whole_answer_frees_its_blocks() {
    let fixture = slow(EngineConfig::default());
    let endless = fixture.endless_takes();
    let body = three_tokens(ENDLESS).to_string();
    let stream = fixture.send("POST", "/v1/completions", body.as_bytes());
    fixture.comes_to_run();
    drop(stream);
    fixture.comes_to_rest_within(endless / 4);
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
fn cold_engine_loads_for_the_request_that_meets_it() {
    let fixture = small();
    assert!(!fixture.host.status().loaded);
    assert_eq!(fixture.post("/v1/completions", &three_tokens(2)).status, 200);
    fixture.host.unload();
    assert!(!fixture.host.status().loaded);
    assert_eq!(fixture.post("/v1/completions", &three_tokens(2)).status, 200);
    assert!(fixture.host.status().loaded);
}

#[test]
fn dropping_the_server_ends_its_streams_and_frees_the_port() {
    let Fixture { host, server } = slow(EngineConfig::default());
    host.load().unwrap();
    let address = server.address();
    let fixture = Fixture { host, server };
    let body = with(three_tokens(ENDLESS), &json!({"stream": true}));
    let stream = fixture.send("POST", "/v1/completions", body.to_string().as_bytes());
    let mut reader = BufReader::new(stream);
    read_head(&mut reader);
    let Fixture { host, server } = fixture;
    drop(server);
    let mut rest = Vec::new();
    let _ = reader.read_to_end(&mut rest);
    assert!(!String::from_utf8_lossy(&rest).contains("[DONE]"));
    assert!(TcpStream::connect(address).is_err());
    let begun = Instant::now();
    while host.status().num_running > 0 {
        assert!(begun.elapsed() < LIMIT, "the request outlived its server");
        std::thread::sleep(Duration::from_millis(2));
    }
}

#[test]
fn graceful_stop_lets_a_running_answer_end() {
    let fixture = small();
    let body = with(three_tokens(200), &json!({"stream": true}));
    let stream = fixture.send("POST", "/v1/completions", body.to_string().as_bytes());
    let mut reader = BufReader::new(stream);
    read_head(&mut reader);
    fixture.server.stop_gracefully();
    let mut body = Vec::new();
    while let Some(chunk) = read_chunk(&mut reader) {
        body.extend(chunk);
    }
    assert!(body.ends_with(b"data: [DONE]\n\n"));
}

#[test]
fn address_that_is_taken_is_named_with_a_way_out() {
    let fixture = small();
    let error = Server::start(fixture.host.clone(), fixture.server.address(), "tiny").unwrap_err();
    assert!(error.to_string().contains(&fixture.server.address().to_string()), "{error}");
    assert!(error.hint().unwrap().contains("--port"));
}
