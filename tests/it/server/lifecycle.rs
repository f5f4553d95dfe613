//! The server's own beginning and end, and its engine's.

use std::io::{BufReader, Read};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use serde_json::json;
use yardstick::infer::EngineConfig;
use yardstick::server::Server;

use super::{ENDLESS, Fixture, LIMIT, read_chunk, read_head, slow, small, three_tokens, with};

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
