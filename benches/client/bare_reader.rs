//! What the system alone charges for a token event, and what it adds to its time:
//! epoll and one read for each wake-up, into one buffer, on connections that stay
//! open. Stamps a read and counts the chunks in it; parses nothing, keeps no text,
//! so that hardly any client can cost less or be nearer to the truth.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use rustix::buffer::spare_capacity;
use rustix::event::epoll::{self, EventData, EventFlags};
use yardstick::clock::{Clock, Timestamp};
use yardstick::engine::scripted::{Script, ScriptedServer, Truth};
use yardstick::hardware;
use yardstick::stats::distribution::distribution;
use yardstick::stats::summary::Distribution;
use yardstick::units::millis;

/// The end of a chunked body.
const END: &[u8] = b"\r\n0\r\n\r\n";
/// How long the server's word for an answer is awaited.
const PATIENCE: Duration = Duration::from_secs(1);

/// What a load was like for the reader, in the client's measures.
pub struct Bare {
    /// Processor time.
    pub cpu_per_token_event: Duration,
    /// First token as stamped minus as written.
    pub ttft_error_ms: Distribution,
    /// Gaps as stamped minus as written, without the sign.
    pub itl_error_ms: Distribution,
}

/// An answer as it was read: when it was asked for, and a stamp for each chunk.
struct Answer {
    label: String,
    sent_at: Timestamp,
    chunks: Vec<Timestamp>,
}

struct Stream {
    socket: TcpStream,
    number: u32,
    left: u32,
    answer: Answer,
}

impl Stream {
    fn ask(&mut self, clock: &Clock) {
        let label = format!("bare {} {}", self.number, self.left);
        let body =
            format!(r#"{{"messages":[{{"role":"user","content":"{label}"}}],"stream":true}}"#);
        let head = "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length";
        let request = format!("{head}: {}\r\n\r\n{body}", body.len());
        self.answer = Answer { label, sent_at: clock.now(), chunks: Vec::with_capacity(80) };
        self.socket.write_all(request.as_bytes()).unwrap();
    }
}

/// Reads answers of `script`, with `num_streams` at once and `per_stream` on
/// each, one after the other.
pub fn read(script: &Script, num_streams: u32, per_stream: u32) -> Bare {
    let clock = Clock::real();
    let num_answers = num_streams * per_stream;
    let server = ScriptedServer::start(script, 0, &clock, num_answers as usize).unwrap();
    let address = server.url().trim_start_matches("http://").to_owned();
    let connect = |number| {
        let socket = TcpStream::connect(&address).unwrap();
        socket.set_nodelay(true).unwrap();
        socket.set_nonblocking(true).unwrap();
        let answer = Answer { label: String::new(), sent_at: clock.now(), chunks: Vec::new() };
        Stream { socket, number, left: per_stream, answer }
    };
    let mut streams: Vec<Stream> = (0..num_streams).map(connect).collect();
    let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).unwrap();
    for stream in &streams {
        let flags = EventFlags::IN | EventFlags::ET;
        epoll::add(&epoll, &stream.socket, EventData::new_u64(stream.number.into()), flags)
            .unwrap();
    }
    let before = hardware::thread_cpu_time();
    for stream in &mut streams {
        stream.ask(&clock);
    }
    let mut answers = Vec::with_capacity(num_answers as usize);
    let mut buffer = vec![0; 16 << 10];
    let mut events = Vec::with_capacity(1024);
    while answers.len() < num_answers as usize {
        events.clear();
        epoll::wait(&epoll, spare_capacity(&mut events), None).unwrap();
        for event in &events {
            let stream = &mut streams[usize::try_from(event.data.u64()).unwrap()];
            let Ok(count) = stream.socket.read(&mut buffer) else { continue };
            let at = clock.now();
            assert!(count > 0, "the scripted server has hung up");
            let read = &buffer[..count];
            let num_chunks = read
                .split(|byte| *byte == b'\n')
                .filter(|line| line.starts_with(b"data: "))
                .count();
            stream.answer.chunks.extend(std::iter::repeat_n(at, num_chunks));
            if !read.ends_with(END) {
                continue;
            }
            let none = Answer { label: String::new(), sent_at: at, chunks: Vec::new() };
            answers.push(std::mem::replace(&mut stream.answer, none));
            stream.left -= 1;
            if stream.left > 0 {
                stream.ask(&clock);
            }
        }
    }
    let used = hardware::thread_cpu_time() - before;
    let cpu_per_token_event = used / (num_answers * script.num_tokens);
    let truths = std::iter::from_fn(|| server.truth(PATIENCE)).take(answers.len());
    let truths: BTreeMap<String, Truth> =
        truths.map(|truth| (truth.label.clone(), truth)).collect();
    let (mut ttft, mut itl) = (Vec::new(), Vec::new());
    for answer in &answers {
        let late = lateness(answer, &truths[&answer.label]);
        ttft.extend(late.first());
        itl.extend(late.windows(2).map(|pair| (pair[1] - pair[0]).abs()));
    }
    Bare {
        cpu_per_token_event,
        ttft_error_ms: distribution(ttft, "nothing was read"),
        itl_error_ms: distribution(itl, "nothing was read"),
    }
}

/// How much later each token was read than written, in ms, from the request on.
fn lateness(answer: &Answer, truth: &Truth) -> Vec<f64> {
    let pairs = answer.chunks.iter().zip(&truth.events);
    let tokens = pairs.filter(|(_, event)| event.kind.is_token());
    tokens
        .map(|(read, event)| {
            millis(read.since(answer.sent_at)) - millis(event.at.since(truth.received_at))
        })
        .collect()
}
