//! vLLM put to sleep and woken, over the routes that it has with
//! `VLLM_SERVER_DEV_MODE=1` and `--enable-sleep-mode`: `POST /sleep?level=N`,
//! `POST /wake_up`, `GET /is_sleeping`. Its process lives all the while.

use std::time::Duration;

use serde_json::Value;

use super::Start;
use super::question::{Address, Answer};
use crate::clock::{Clock, Timestamp};
use crate::engine::{EngineError, EngineSpec, ErrorClass};
use crate::plan::Cold;
use crate::record::{JournalEvent, StartPhaseKind};

/// Longest time that falling asleep or waking may take.
const LIMIT: Duration = Duration::from_secs(300);
/// Time between two questions whether it sleeps.
const POLL: Duration = Duration::from_millis(2);

/// An engine that can sleep.
#[derive(Debug)]
pub(super) struct SleepEngine {
    name: String,
    index: u32,
    level: u8,
    address: Address,
    clock: Clock,
    awake: bool,
}

impl SleepEngine {
    /// An engine that runs already.
    pub(super) fn new(index: u32, spec: &EngineSpec, level: u8, clock: Clock) -> Self {
        let url = spec.url.as_ref();
        let path = url.map_or("", |url| url.path()).trim_end_matches('/');
        let address = Address {
            host: url.and_then(url::Url::host_str).unwrap_or("127.0.0.1").to_owned(),
            port: url.and_then(url::Url::port_or_known_default).unwrap_or(8000),
            base: path.strip_suffix("/v1").unwrap_or(path).to_owned(),
            bearer: spec.setting("api_key_env").and_then(|name| std::env::var(name).ok()),
        };
        Self { name: spec.name.clone(), index, level, address, clock, awake: true }
    }

    /// Sleep takes the model out of the GPU's memory; the process stays.
    pub(super) const fn cold(&self) -> &[Cold] {
        &[Cold::Model]
    }

    pub(super) const fn is_up(&self) -> bool {
        self.awake
    }

    /// Wakes it.
    ///
    /// # Errors
    /// When it refuses or does not wake.
    pub(super) fn start(&mut self, start: &mut Start<'_>) -> Result<(), EngineError> {
        let (engine, case, cold) = (self.index, start.case, start.cold.to_vec());
        let at = self.clock.now();
        start.note(at, JournalEvent::EngineStarted { engine, case, cold, page_cache: None });
        self.tell("/wake_up", at.plus(LIMIT))?;
        let woken = self.wait_until(false, at.plus(LIMIT), || start.cancel.is_cancelled())?;
        self.awake = true;
        let phase = StartPhaseKind::Awake;
        start.note(woken, JournalEvent::StartPhase { engine, case, phase });
        Ok(())
    }

    /// Puts it to sleep, verified; how long that took.
    ///
    /// # Errors
    /// When it refuses or does not fall asleep.
    pub(super) fn stop(&mut self) -> Result<Option<(Duration, bool)>, EngineError> {
        if !self.awake {
            return Ok(None);
        }
        let begun = self.clock.now();
        let until = begun.plus(LIMIT);
        self.tell(&format!("/sleep?level={}", self.level), until)?;
        let asleep = self.wait_until(true, until, || false)?;
        self.awake = false;
        Ok(Some((asleep.since(begun), false)))
    }

    fn tell(&self, route: &str, until: Timestamp) -> Result<(), EngineError> {
        match self.address.ask("POST", route, &|| self.clock.now() >= until) {
            Answer::Status(200..=204, _) => Ok(()),
            Answer::Status(status @ (404 | 405), _) => Err(self
                .error(ErrorClass::Rejected, &format!("has no {route}: HTTP {status}"))
                .with_hint("start it with VLLM_SERVER_DEV_MODE=1 and --enable-sleep-mode")),
            Answer::Status(status, _) => {
                Err(self.error(ErrorClass::Rejected, &format!("answered HTTP {status} to {route}")))
            }
            Answer::Closed => Err(self.error(ErrorClass::Unreachable, "is unreachable")),
            Answer::Silent => {
                Err(self.error(ErrorClass::Timeout, &format!("gave no answer to {route}")))
            }
        }
    }

    fn wait_until(
        &self,
        asleep: bool,
        until: Timestamp,
        cancelled: impl Fn() -> bool,
    ) -> Result<Timestamp, EngineError> {
        loop {
            let over = || self.clock.now() >= until || cancelled();
            if let Answer::Status(200, body) = self.address.ask("GET", "/is_sleeping", &over)
                && is_sleeping(&body) == Some(asleep)
            {
                return Ok(self.clock.now());
            }
            if over() {
                let what = if asleep { "did not fall asleep" } else { "did not wake" };
                return Err(self.error(ErrorClass::Timeout, what));
            }
            std::thread::sleep(POLL);
        }
    }

    fn error(&self, class: ErrorClass, what: &str) -> EngineError {
        EngineError::new(class, format!("engine {} {what}", self.name))
    }
}

fn is_sleeping(body: &[u8]) -> Option<bool> {
    serde_json::from_slice::<Value>(body).ok()?.get("is_sleeping")?.as_bool()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::net::TcpListener;

    use tokio_util::sync::CancellationToken;

    /// A server that sleeps and wakes, each only after it was asked twice.
    fn dozer(requests: usize) -> (u16, std::thread::JoinHandle<Vec<String>>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let server = std::thread::spawn(move || {
            let (mut sleeping, mut pending, mut lines) = (false, None, Vec::new());
            for _ in 0..requests {
                let (mut stream, _) = listener.accept().unwrap();
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    let mut byte = [0];
                    stream.read_exact(&mut byte).unwrap();
                    head.push(byte[0]);
                }
                let line = String::from_utf8(head).unwrap().lines().next().unwrap().to_owned();
                let body = if line.contains("/is_sleeping") {
                    let body = format!("{{\"is_sleeping\":{sleeping}}}");
                    sleeping = pending.take().unwrap_or(sleeping);
                    body
                } else {
                    pending = Some(line.contains("/sleep"));
                    String::new()
                };
                let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", body.len());
                stream.write_all(format!("{head}{body}").as_bytes()).unwrap();
                lines.push(line);
            }
            lines
        });
        (port, server)
    }

    #[test]
    fn sleep_and_waking_are_verified_and_not_believed() {
        let (port, server) = dozer(6);
        let spec: EngineSpec = format!("vllm=http://127.0.0.1:{port}").parse().unwrap();
        let mut engine = SleepEngine::new(0, &spec, 2, Clock::real());
        engine.stop().unwrap().unwrap();
        assert!(!engine.is_up());
        assert_eq!(engine.stop().unwrap(), None);
        let mut noted = Vec::new();
        let mut sink = |entry| noted.push(entry);
        let cancel = CancellationToken::new();
        let mut start =
            Start { case: Some(3), cold: &[Cold::Model], cancel: &cancel, sink: &mut sink };
        engine.start(&mut start).unwrap();
        assert!(engine.is_up());
        assert_eq!(noted.len(), 2);
        let lines = server.join().unwrap();
        assert!(lines[0].starts_with("POST /sleep?level=2"), "{lines:?}");
        assert!(lines[3].starts_with("POST /wake_up"), "{lines:?}");
    }

    #[test]
    fn server_without_the_routes_gets_a_remedy() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let server = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            stream.write_all(b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n").unwrap();
            let _ = stream.read_to_end(&mut Vec::new());
        });
        let spec: EngineSpec = format!("vllm=http://127.0.0.1:{port}").parse().unwrap();
        let error = SleepEngine::new(0, &spec, 1, Clock::real()).stop().unwrap_err();
        assert!(error.hint.unwrap().contains("VLLM_SERVER_DEV_MODE"));
        server.join().unwrap();
    }
}
