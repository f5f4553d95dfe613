//! Clients that leave, or stop reading.

use std::io::{BufReader, Write};
use std::net::SocketAddr;
use std::time::Duration;

use serde_json::json;
use yardstick::clock::Clock;
use yardstick::infer::{EngineConfig, EngineHost, KvBudget};
use yardstick::server::Server;

use super::{ENDLESS, Fixture, read_chunk, read_head, slow, three_tokens, tiny, with};

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
