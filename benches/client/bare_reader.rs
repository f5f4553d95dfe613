//! What the system alone charges for a token event: epoll and one read for each
//! wake-up, into one buffer, on connections that stay open. Stamps nothing,
//! parses nothing, keeps nothing, so that no client can cost less.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use rustix::buffer::spare_capacity;
use rustix::event::epoll::{self, EventData, EventFlags};
use yardstick::clock::Clock;
use yardstick::engine::scripted::{Script, ScriptedServer};
use yardstick::hardware;

const REQUEST: &str = r#"{"messages":[{"role":"user","content":"bare"}],"stream":true}"#;
/// The end of a chunked body.
const END: &[u8] = b"\r\n0\r\n\r\n";

/// Processor time of a token event of `script`, with `num_streams` at once and
/// `per_stream` answers on each, one after the other.
pub fn cpu_per_token_event(script: &Script, num_streams: u32, per_stream: u32) -> Duration {
    let server = ScriptedServer::start(script, 0, &Clock::real(), 1).unwrap();
    let address = server.url().trim_start_matches("http://").to_owned();
    let request = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n{REQUEST}",
        REQUEST.len()
    );
    let connect = |_| {
        let stream = TcpStream::connect(&address).unwrap();
        stream.set_nodelay(true).unwrap();
        stream.set_nonblocking(true).unwrap();
        stream
    };
    let mut streams: Vec<TcpStream> = (0..num_streams).map(connect).collect();
    let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).unwrap();
    for (number, stream) in streams.iter().enumerate() {
        let flags = EventFlags::IN | EventFlags::ET;
        epoll::add(&epoll, stream, EventData::new_u64(number as u64), flags).unwrap();
    }
    let before = hardware::thread_cpu_time();
    for stream in &mut streams {
        stream.write_all(request.as_bytes()).unwrap();
    }
    let mut left: Vec<u32> = vec![per_stream; streams.len()];
    let mut num_open = streams.len();
    let mut buffer = vec![0; 16 << 10];
    let mut events = Vec::with_capacity(1024);
    while num_open > 0 {
        events.clear();
        epoll::wait(&epoll, spare_capacity(&mut events), None).unwrap();
        for event in &events {
            let number = usize::try_from(event.data.u64()).unwrap();
            let Ok(count) = streams[number].read(&mut buffer) else { continue };
            assert!(count > 0, "the scripted server has hung up");
            if !buffer[..count].ends_with(END) {
                continue;
            }
            left[number] -= 1;
            if left[number] == 0 {
                num_open -= 1;
            } else {
                streams[number].write_all(request.as_bytes()).unwrap();
            }
        }
    }
    let used = hardware::thread_cpu_time() - before;
    used / (num_streams * per_stream * script.num_tokens)
}
