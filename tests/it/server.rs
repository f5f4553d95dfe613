//! `yardstick serve` over real sockets.

mod answers;
mod disconnects;
mod lifecycle;
mod refusals;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use yardstick::clock::Clock;
use yardstick::infer::{EngineConfig, EngineHost, KvBudget, ModelConfig, ModelSource};
use yardstick::server::Server;

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
