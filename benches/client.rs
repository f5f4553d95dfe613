//! What our own client adds to the times it reports, against a server on
//! threads of its own that notes the instants at which it really wrote. Both
//! sides read the same clock, so every difference is transport and client.
//!
//! `cargo bench --bench client [-- STREAMS REQUESTS]`; 10 and 100 by default,
//! with the first token after 20 ms and another 63 every 5 ms.
#![expect(clippy::unwrap_used, reason = "a bench that cannot run has nothing to report")]

use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use tokio::sync::Barrier;
use tokio_util::sync::CancellationToken;
use yardstick::clock::{Clock, Timestamp};
use yardstick::engine::{
    Engine, EngineSpec, Exchange, GenerateRequest, ModelHint, Prompt, Sampling, connect,
};

const TTFT: Duration = Duration::from_millis(20);
const GAP: Duration = Duration::from_millis(5);
const NUM_TOKENS: usize = 64;
const BURST: usize = 10;
const NUM_BURSTS: usize = 100;

const TOKEN: &[u8] = b"data: {\"id\":\"chatcmpl-b0cba94cc9143370\",\"object\":\"chat.completion.chunk\",\"created\":1795487212,\"model\":\"mock\",\"choices\":[{\"index\":0,\"delta\":{\"content\":\" token\"},\"logprobs\":null,\"finish_reason\":null,\"token_ids\":null}]}\n\n";
const ROLE: &[u8] =
    b"data: {\"choices\":[{\"index\":0,\"delta\":{\"role\":\"assistant\",\"content\":\"\"}}]}\n\n";
const TAIL: &[u8] = b"data: {\"choices\":[{\"index\":0,\"delta\":{},\"finish_reason\":\"length\"}]}\n\ndata: {\"choices\":[],\"usage\":{\"prompt_tokens\":9,\"completion_tokens\":64}}\n\ndata: [DONE]\n\n";

/// What the server did for one request.
struct Truth {
    /// As the read that brought the end of the request returned.
    received: Timestamp,
    /// As each token was handed to the socket.
    written: Vec<Timestamp>,
}

type Log = Arc<Mutex<HashMap<String, Truth>>>;

fn main() {
    let mut numbers = std::env::args().filter_map(|argument| argument.parse::<usize>().ok());
    let num_streams = numbers.next().unwrap_or(10).max(1);
    let num_requests = numbers.next().unwrap_or(100).max(num_streams);
    let clock = Clock::real();
    let log = Log::default();
    let url = start_server(&clock, &log, num_streams);
    let spec: EngineSpec = format!("openai={url}").parse().unwrap();
    let engine: Arc<dyn Engine> = Arc::from(connect(&spec, &clock, &ModelHint::default()).unwrap());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();

    runtime.block_on(engine.describe()).unwrap();
    runtime.block_on(streams(&engine, num_streams, num_streams, "warmup"));
    let busy_before = thread_busy();
    let exchanges = runtime.block_on(streams(&engine, num_streams, num_requests, "measured"));
    let busy = thread_busy().zip(busy_before).map(|(after, before)| after - before);
    let spreads = runtime.block_on(bursts(&engine));
    report(num_streams, &exchanges, &log.lock().unwrap(), spreads, busy);
}

/// `num_requests` over `num_streams` streams, each of which sends its next when its last is done.
async fn streams(
    engine: &Arc<dyn Engine>,
    num_streams: usize,
    num_requests: usize,
    label: &str,
) -> Vec<(String, Exchange)> {
    let tasks: Vec<_> = (0..num_streams)
        .map(|stream| {
            let engine = Arc::clone(engine);
            let label = label.to_owned();
            tokio::spawn(async move {
                let mut exchanges = Vec::new();
                for index in (stream..num_requests).step_by(num_streams) {
                    let name = format!("{label}-{index}");
                    let prepared = engine.prepare(&request(&name)).await.unwrap();
                    let exchange = prepared.run(CancellationToken::new()).await;
                    exchange.outcome.as_ref().unwrap();
                    exchanges.push((name, exchange));
                }
                exchanges
            })
        })
        .collect();
    let mut exchanges = Vec::new();
    for task in tasks {
        exchanges.extend(task.await.unwrap());
    }
    exchanges
}

/// Send spreads: latest minus earliest `sent_at` of requests that one barrier releases.
async fn bursts(engine: &Arc<dyn Engine>) -> Vec<f64> {
    let mut spreads = Vec::new();
    for burst in 0..NUM_BURSTS {
        let barrier = Arc::new(Barrier::new(BURST));
        let mut tasks = Vec::new();
        for index in 0..BURST {
            let name = format!("burst-{burst}-{index}");
            let prepared = engine.prepare(&request(&name)).await.unwrap();
            tasks.push((prepared, Arc::clone(&barrier)));
        }
        let tasks: Vec<_> = tasks
            .into_iter()
            .map(|(prepared, barrier)| {
                tokio::spawn(async move {
                    barrier.wait().await;
                    let cancel = CancellationToken::new();
                    // The burst is over once it is sent: what follows is measured elsewhere.
                    let stop = cancel.clone();
                    tokio::spawn(async move {
                        tokio::time::sleep(TTFT * 2).await;
                        stop.cancel();
                    });
                    prepared.run(cancel).await.sent_at.unwrap()
                })
            })
            .collect();
        let mut sent = Vec::new();
        for task in tasks {
            sent.push(task.await.unwrap());
        }
        let (first, last) = (sent.iter().min().unwrap(), sent.iter().max().unwrap());
        spreads.push(micros(last.since(*first)));
    }
    spreads
}

fn request(name: &str) -> GenerateRequest {
    GenerateRequest {
        prompt: Prompt::Chat(name.to_owned()),
        max_tokens: 64,
        sampling: Sampling::default(),
        ignore_eos: true,
    }
}

/// Every connection has a thread that waited for it: starting one as the
/// request arrives would be counted as the client's error.
fn start_server(clock: &Clock, log: &Log, num_streams: usize) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    for _ in 0..2 * num_streams.max(BURST) {
        let (listener, clock, log) =
            (listener.try_clone().unwrap(), clock.clone(), Arc::clone(log));
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                // A client that leaves early ends its stream; there is nothing to report.
                let _ = serve(stream, &clock, &log);
            }
        });
    }
    url
}

fn serve(mut stream: TcpStream, clock: &Clock, log: &Log) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let mut bytes = Vec::new();
    let mut buffer = [0; 4096];
    let received = loop {
        let count = stream.read(&mut buffer)?;
        let at = clock.now();
        bytes.extend_from_slice(&buffer[..count]);
        // Every body ends with its last brace, and is sent with its head in one write.
        if count == 0 || bytes.ends_with(b"}") || bytes.starts_with(b"GET") {
            break at;
        }
    };
    let text = String::from_utf8_lossy(&bytes);
    if text.starts_with("GET /v1/models") {
        return stream.write_all(
            b"HTTP/1.1 200 OK\r\ncontent-length: 25\r\n\r\n{\"data\":[{\"id\":\"mock\"}]}\n",
        );
    }
    let Some((_, rest)) = text.split_once("\"content\":\"") else {
        return stream.write_all(b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n");
    };
    let name = rest.split('"').next().unwrap_or_default().to_owned();
    let head =
        b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n";
    stream.write_all(&[head.as_slice(), &chunk(ROLE)].concat())?;
    let token = chunk(TOKEN);
    let mut written = Vec::with_capacity(NUM_TOKENS);
    let mut due = received.plus(TTFT);
    for _ in 0..NUM_TOKENS {
        thread::sleep(due.since(clock.now()));
        written.push(clock.now());
        stream.write_all(&token)?;
        due = due.plus(GAP);
    }
    log.lock().unwrap().insert(name, Truth { received, written });
    stream.write_all(&[chunk(TAIL).as_slice(), b"0\r\n\r\n"].concat())
}

fn chunk(text: &[u8]) -> Vec<u8> {
    [format!("{:x}\r\n", text.len()).as_bytes(), text, b"\r\n"].concat()
}

/// Time that this thread has been on a processor, in nanoseconds; Linux only.
fn thread_busy() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").ok()?;
    text.split(' ').next()?.parse().ok()
}

fn report(
    num_streams: usize,
    exchanges: &[(String, Exchange)],
    log: &HashMap<String, Truth>,
    spreads: Vec<f64>,
    busy: Option<u64>,
) {
    let mut rows: Vec<(&str, Vec<f64>)> = Vec::new();
    let (mut server_ttft, mut client_ttft, mut ttft_error) = (Vec::new(), Vec::new(), Vec::new());
    let (mut outward, mut first, mut delay) = (Vec::new(), Vec::new(), Vec::new());
    let mut itl_error = Vec::new();
    let mut num_events = 0;
    for (name, exchange) in exchanges {
        let truth = &log[name];
        let tokens: Vec<Timestamp> =
            exchange.events.iter().filter(|event| event.kind.is_token()).map(|e| e.at).collect();
        assert_eq!(tokens.len(), truth.written.len(), "one event a token");
        num_events += exchange.events.len();
        let server = micros(truth.written[0].since(truth.received));
        let client = micros(tokens[0].since(exchange.sent_at.unwrap()));
        server_ttft.push(server);
        client_ttft.push(client);
        ttft_error.push(client - server);
        outward.push(micros(truth.received.since(exchange.sent_at.unwrap())));
        first.push(micros(tokens[0].since(truth.written[0])));
        delay.extend(tokens.iter().zip(&truth.written).map(|(at, wrote)| micros(at.since(*wrote))));
        let gaps = |at: &[Timestamp]| -> Vec<f64> {
            at.windows(2).map(|pair| micros(pair[1].since(pair[0]))).collect()
        };
        let pairs = gaps(&tokens).into_iter().zip(gaps(&truth.written));
        itl_error.extend(pairs.map(|(client, server)| (client - server).abs()));
    }
    rows.push(("TTFT, server's truth", server_ttft));
    rows.push(("TTFT, as the client reports it", client_ttft));
    rows.push(("TTFT error (client - truth)", ttft_error));
    rows.push(("  of it: request sent to received", outward));
    rows.push(("  of it: first token written to stamped", first));
    rows.push(("every token written to stamped", delay));
    rows.push(("ITL error (|client - truth|)", itl_error));
    rows.push(("send spread of a burst of 10", spreads));

    let mut out = std::io::stdout().lock();
    let n = exchanges.len();
    writeln!(out, "\n{num_streams} streams, {n} requests, {NUM_TOKENS} tokens each, TTFT 20 ms, gap 5 ms; microseconds").unwrap();
    writeln!(out, "{:38} {:>6} {:>9} {:>9} {:>9}", "", "n", "p50", "p99", "max").unwrap();
    for (name, mut values) in rows {
        values.sort_by(f64::total_cmp);
        // Order statistics, no interpolation.
        let rank = |q: usize| values[(values.len() * q).div_ceil(100).max(1) - 1];
        let (n, max) = (values.len(), values[values.len() - 1]);
        writeln!(out, "{name:38} {n:>6} {:>9.1} {:>9.1} {max:>9.1}", rank(50), rank(99)).unwrap();
    }
    match busy {
        Some(busy) => {
            let per_event = busy / num_events.max(1) as u64;
            writeln!(
                out,
                "client CPU: {per_event} ns an event, requests included, {num_events} events"
            )
            .unwrap();
        }
        None => writeln!(out, "client CPU: not known on this system").unwrap(),
    }
}

fn micros(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e6
}
