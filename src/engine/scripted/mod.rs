//! A server that answers by a script and keeps what it really did: the truth
//! that yardstick measures its own client against. It speaks OpenAI's streamed
//! chat completions over HTTP on loopback, on a thread of its own. Knows no
//! client, no run and no statistic.

#[cfg(target_os = "linux")]
mod connection;
mod request;
mod scenario;
mod script;
#[cfg(target_os = "linux")]
mod serve;

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::Receiver;
use std::thread::JoinHandle;
use std::time::Duration;

use crate::clock::{Clock, Timestamp};
use crate::engine::TokenEvent;

pub use scenario::Scenario;
pub use script::{Delivery, Script, Stall};

/// What the server did for one request, on the clock that it was given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Truth {
    /// The text of the request's last message, by which it is told from others.
    pub label: String,
    /// As the read that brought the request's last byte returned.
    pub received_at: Timestamp,
    /// Each event, as its last byte was handed to the socket, with the tokens in it.
    pub events: Vec<TokenEvent>,
}

/// A running server. Dropping it ends it and its connections.
#[derive(Debug)]
pub struct ScriptedServer {
    url: String,
    truths: Receiver<Truth>,
    num_lost: Arc<AtomicU64>,
    /// Where the kernel tells the thread's processor time.
    schedstat: Option<std::path::PathBuf>,
    #[cfg(target_os = "linux")]
    stop: Option<std::os::unix::net::UnixStream>,
    thread: Option<JoinHandle<io::Result<()>>>,
}

impl ScriptedServer {
    /// Serves `script` on `port` of loopback, 0 for any that is free. All
    /// instants are `clock`'s. At most `max_truths` wait to be taken; what
    /// comes beyond is counted in [`ScriptedServer::num_lost`].
    ///
    /// # Errors
    /// When the port cannot be listened on, or outside Linux: it needs timers
    /// to the microsecond (`timerfd`) and many sockets on one thread (`epoll`).
    #[cfg(target_os = "linux")]
    pub fn start(script: &Script, port: u16, clock: &Clock, max_truths: usize) -> io::Result<Self> {
        use std::net::{Ipv4Addr, TcpListener};
        use std::sync::mpsc::sync_channel;

        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port))?;
        let url = format!("http://{}", listener.local_addr()?);
        let (stop, stopped) = std::os::unix::net::UnixStream::pair()?;
        let (sender, truths) = sync_channel(max_truths);
        let num_lost = Arc::new(AtomicU64::new(0));
        let answers =
            connection::Answers { stream: script.stream().into(), whole: script.whole().into() };
        let lost = Arc::clone(&num_lost);
        let mut serving =
            serve::Serving::new(listener, stopped, clock.clone(), answers, sender, lost)?;
        let (tell, told) = sync_channel(1);
        let thread = std::thread::Builder::new().name("scripted".to_owned()).spawn(move || {
            // Nobody waits for it where the receiver is gone.
            let _ = tell.send(std::fs::read_link("/proc/thread-self").ok());
            serving.run()
        })?;
        let this = told.recv().ok().flatten();
        let schedstat = this.map(|task| std::path::Path::new("/proc").join(task).join("schedstat"));
        Ok(Self { url, truths, num_lost, schedstat, stop: Some(stop), thread: Some(thread) })
    }

    /// See the Linux version.
    ///
    /// # Errors
    /// Always: it needs `timerfd` and `epoll`.
    #[cfg(not(target_os = "linux"))]
    pub fn start(_: &Script, _: u16, _: &Clock, _: usize) -> io::Result<Self> {
        Err(io::Error::new(
            io::ErrorKind::Unsupported,
            "the scripted server needs Linux (timerfd and epoll)",
        ))
    }

    /// Where it listens, such as `http://127.0.0.1:4711`.
    #[must_use]
    pub fn url(&self) -> &str {
        &self.url
    }

    /// The next truth, in the order in which answers ended; `None` if none
    /// comes within `patience`.
    #[must_use]
    pub fn truth(&self, patience: Duration) -> Option<Truth> {
        if patience.is_zero() {
            return self.truths.try_recv().ok();
        }
        self.truths.recv_timeout(patience).ok()
    }

    /// Truths that nobody took in time.
    #[must_use]
    pub fn num_lost(&self) -> u64 {
        self.num_lost.load(Ordering::Relaxed)
    }

    /// Processor time that its thread has used; absent where the kernel does not tell.
    #[must_use]
    pub fn cpu_time(&self) -> Option<Duration> {
        let text = std::fs::read_to_string(self.schedstat.as_ref()?).ok()?;
        text.split(' ').next()?.parse().ok().map(Duration::from_nanos)
    }
}

impl Drop for ScriptedServer {
    fn drop(&mut self) {
        #[cfg(target_os = "linux")]
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // It has nothing more to say; a panic was printed where it happened.
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
#[cfg(target_os = "linux")]
mod tests {
    use std::io::{BufRead, BufReader, Read, Write};
    use std::net::TcpStream;

    use super::*;
    use crate::engine::EventKind;

    fn ask(stream: &mut TcpStream, label: &str, more: &str) {
        let body = format!(r#"{{"messages":[{{"role":"user","content":"{label}"}}]{more}}}"#);
        let head = "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: ";
        write!(stream, "{head}{}\r\n\r\n{body}", body.len()).unwrap();
    }

    fn started(script: &Script) -> (ScriptedServer, TcpStream, Clock) {
        let clock = Clock::real();
        let server = ScriptedServer::start(script, 0, &clock, 100).unwrap();
        let stream = TcpStream::connect(server.url().trim_start_matches("http://")).unwrap();
        (server, stream, clock)
    }

    fn short() -> Script {
        Script { num_tokens: 5, ..Script::default() }
    }

    const PATIENCE: Duration = Duration::from_secs(30);

    #[test]
    fn truth_is_no_earlier_than_the_script_and_no_later_than_the_reader() {
        let (server, mut stream, clock) = started(&short());
        let sent_at = clock.now();
        ask(&mut stream, "first", r#","stream":true"#);
        let mut reader = BufReader::new(stream);
        let mut read_at = Vec::new();
        let mut line = String::new();
        while !line.starts_with("data: [DONE]") {
            line.clear();
            assert!(reader.read_line(&mut line).unwrap() > 0);
            if line.contains(" token") {
                read_at.push(clock.now());
            }
        }
        let truth = server.truth(PATIENCE).unwrap();
        assert_eq!(truth.label, "first");
        assert!(truth.received_at >= sent_at);
        let tokens: Vec<_> = truth.events.iter().filter(|event| event.kind.is_token()).collect();
        assert_eq!((tokens.len(), read_at.len()), (5, 5));
        for (number, (event, read_at)) in (0..).zip(tokens.iter().zip(read_at)) {
            let due = truth.received_at.plus(Duration::from_millis(20 + 5 * number));
            assert!(event.at >= due, "never early");
            assert!(event.at <= read_at, "written before it was read");
        }
        let kinds: Vec<_> = truth.events.iter().map(|event| event.kind).collect();
        assert_eq!(kinds[0], EventKind::Empty);
        assert_eq!(kinds[6..], [EventKind::Finish, EventKind::Usage]);
    }

    #[test]
    fn connection_serves_one_request_after_another_streamed_or_whole() {
        let (server, mut stream, _) = started(&short());
        // Both are sent before the first is answered.
        ask(&mut stream, "one", r#","stream":true"#);
        ask(&mut stream, "two", "");
        write!(stream, "GET /nothing HTTP/1.1\r\nconnection: close\r\n\r\n").unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        assert_eq!(text.matches("HTTP/1.1 200 OK").count(), 2);
        assert!(text.contains("chat.completion\"") && text.contains("404 Not Found"), "{text}");
        let labels = [server.truth(PATIENCE), server.truth(PATIENCE)].map(|t| t.unwrap().label);
        assert_eq!(labels, ["one", "two"]);
    }

    #[test]
    fn reader_that_does_not_read_delays_only_its_own_truth() {
        let script = Script {
            num_tokens: 60_000,
            gap: Duration::from_nanos(1),
            ttft: Duration::ZERO,
            ..Script::default()
        };
        let (server, mut stream, clock) = started(&script);
        ask(&mut stream, "slow", r#","stream":true"#);
        // 14 MB do not fit into the sockets: it cannot have been written whole.
        assert_eq!(server.truth(Duration::from_millis(300)), None);
        let reading_at = clock.now();
        let mut reader = BufReader::new(stream);
        let mut line = String::new();
        while !line.starts_with("data: [DONE]") {
            line.clear();
            assert!(reader.read_line(&mut line).unwrap() > 0);
        }
        let truth = server.truth(PATIENCE).unwrap();
        assert_eq!(truth.events.iter().filter(|e| e.kind.is_token()).count(), 60_000);
        assert!(truth.events.last().unwrap().at > reading_at);
    }

    #[test]
    fn dropping_it_closes_its_connections_and_truths_beyond_the_bound_are_counted() {
        let clock = Clock::real();
        let server = ScriptedServer::start(&short(), 0, &clock, 1).unwrap();
        let mut stream = TcpStream::connect(server.url().trim_start_matches("http://")).unwrap();
        for label in ["a", "b", "c"] {
            ask(&mut stream, label, "");
        }
        while server.num_lost() < 2 {
            std::thread::yield_now();
        }
        assert!(server.cpu_time().unwrap() > Duration::ZERO);
        drop(server);
        let mut rest = Vec::new();
        // The end of the stream, or a reset: it does not hang.
        let _ = stream.read_to_end(&mut rest);
    }
}
