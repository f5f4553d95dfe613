//! One connection of the scripted server: reads requests, writes what is due,
//! notes when it really wrote it. Knows no other connection and never waits.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::sync::Arc;

use super::Truth;
use super::request::{Request, Wants, parse};
use super::script::{MODEL, Step, json_answer};
use crate::clock::{Clock, Timestamp};
use crate::engine::{EventKind, TokenEvent};

/// Unsent bytes beyond which a client that does not read loses its connection.
const MAX_UNSENT: usize = 16 << 20;
/// Unread bytes beyond which a client that sends ahead loses its connection.
const MAX_WAITING: usize = 16 << 20;

/// The answers of a server, made once and shared by its connections.
#[derive(Debug)]
pub(super) struct Answers {
    pub(super) stream: Arc<[Step]>,
    pub(super) whole: Arc<[Step]>,
}

#[derive(Debug)]
pub(super) struct Connection {
    pub(super) socket: TcpStream,
    input: Vec<u8>,
    /// As the last read that brought bytes returned.
    read_at: Timestamp,
    /// Bytes that are due and not written.
    output: VecDeque<u8>,
    /// Bytes ever put into `output`, and ever written.
    num_queued: u64,
    num_written: u64,
    /// Events of the running answer that are not written whole: `num_queued` at their end.
    pending: VecDeque<(u64, EventKind, u32)>,
    answer: Option<Running>,
    close: bool,
}

/// An answer that is under way.
#[derive(Debug)]
struct Running {
    truth: Truth,
    steps: Arc<[Step]>,
    next: usize,
}

/// What came of a call.
#[derive(Debug, PartialEq)]
pub(super) enum Progress {
    /// Nothing to do before the next event or the next due step.
    Waiting,
    /// An answer was written to its end.
    Answered(Truth),
    /// The connection is over.
    Closed,
}

impl Connection {
    /// Over a socket that does not block and does not delay small writes.
    pub(super) fn new(socket: TcpStream) -> Self {
        Self {
            socket,
            input: Vec::new(),
            read_at: Timestamp::default(),
            output: VecDeque::new(),
            num_queued: 0,
            num_written: 0,
            pending: VecDeque::new(),
            answer: None,
            close: false,
        }
    }

    /// When the next step is due; `None` without a running answer.
    pub(super) fn due(&self) -> Option<Timestamp> {
        let running = self.answer.as_ref()?;
        running.steps.get(running.next).map(|step| running.truth.received_at.plus(step.due))
    }

    /// Whether bytes wait for room in the socket.
    pub(super) fn is_blocked(&self) -> bool {
        !self.output.is_empty()
    }

    /// Reads what has come and does nothing about it; `false` once the client
    /// is gone. What others sent at the same instant is not to wait for our answer.
    pub(super) fn fill(&mut self, clock: &Clock) -> bool {
        let mut buffer = [0; 16 << 10];
        match self.socket.read(&mut buffer) {
            Ok(0) => false,
            Ok(count) => {
                self.read_at = clock.now();
                self.input.extend_from_slice(&buffer[..count]);
                true
            }
            Err(error) => is_transient(&error),
        }
    }

    /// Begins the answer if what was read is a request.
    pub(super) fn take_up(&mut self, clock: &Clock, answers: &Answers) -> Progress {
        self.begin(self.read_at, clock, answers)
    }

    /// Begins the answer to a request that is whole, unless one is under way.
    fn begin(&mut self, at: Timestamp, clock: &Clock, answers: &Answers) -> Progress {
        while self.answer.is_none() && !self.close {
            match parse(&self.input) {
                Ok(None) => return Progress::Waiting,
                Ok(Some(Request { wants, len, close })) => {
                    self.input.drain(..len);
                    self.close = close;
                    self.start(wants, at, answers);
                }
                Err(refused) => {
                    self.queue(&json_answer(refused.0, "{}"));
                    self.close = true;
                }
            }
            let progress = self.advance(clock);
            if progress != Progress::Waiting {
                return progress;
            }
        }
        // Requests that come while an answer is under way wait, but not without bound.
        if self.input.len() > MAX_WAITING { Progress::Closed } else { Progress::Waiting }
    }

    fn start(&mut self, wants: Wants, at: Timestamp, answers: &Answers) {
        match wants {
            Wants::Chat { label, stream } => {
                let steps = Arc::clone(if stream { &answers.stream } else { &answers.whole });
                let truth = Truth { label, received_at: at, events: Vec::with_capacity(80) };
                self.answer = Some(Running { truth, steps, next: 0 });
            }
            Wants::Models => {
                let body = format!(
                    r#"{{"object":"list","data":[{{"id":"{MODEL}","object":"model","created":0,"owned_by":"scripted"}}]}}"#
                );
                self.queue(&json_answer("200 OK", &body));
            }
            Wants::Health => self.queue(&json_answer("200 OK", "{}")),
            Wants::Unknown => {
                let body = r#"{"error":{"message":"the scripted server has no such route"}}"#;
                self.queue(&json_answer("404 Not Found", body));
            }
        }
    }

    /// Writes every step that is due, each with a write of its own.
    pub(super) fn advance(&mut self, clock: &Clock) -> Progress {
        loop {
            let is_due = self.due().is_some_and(|due| due <= clock.now());
            if is_due {
                self.queue_next();
            }
            if self.flush(clock).is_err() || self.output.len() > MAX_UNSENT {
                return Progress::Closed;
            }
            if !is_due {
                return self.settle();
            }
        }
    }

    fn queue_next(&mut self) {
        let Some(running) = &mut self.answer else { return };
        let Some(step) = running.steps.get(running.next) else { return };
        running.next += 1;
        let start = self.num_queued;
        let marks = step.marks.iter();
        self.pending
            .extend(marks.map(|mark| (start + mark.end as u64, mark.kind, mark.num_tokens)));
        self.output.extend(&step.bytes);
        self.num_queued += step.bytes.len() as u64;
    }

    fn queue(&mut self, bytes: &[u8]) {
        self.output.extend(bytes);
        self.num_queued += bytes.len() as u64;
    }

    /// Hands as much to the socket as it takes. An event's instant is taken
    /// before the write that completes it: over loopback the client may have
    /// read the bytes before the call returns.
    fn flush(&mut self, clock: &Clock) -> io::Result<()> {
        while !self.output.is_empty() {
            let at = clock.now();
            let (bytes, _) = self.output.as_slices();
            let count = match self.socket.write(bytes) {
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            self.output.drain(..count);
            self.num_written += count as u64;
            while let Some((end, kind, num_tokens)) = self.pending.front().copied() {
                if end > self.num_written {
                    break;
                }
                self.pending.pop_front();
                if let Some(running) = &mut self.answer {
                    let num_tokens = Some(num_tokens);
                    running.truth.events.push(TokenEvent { at, kind, num_tokens });
                }
            }
        }
        Ok(())
    }

    /// What has come of it once nothing more is due.
    fn settle(&mut self) -> Progress {
        if !self.output.is_empty() {
            return Progress::Waiting;
        }
        let ended = self.answer.take_if(|running| running.next == running.steps.len());
        match ended {
            Some(running) => Progress::Answered(running.truth),
            None if self.answer.is_none() && self.close => Progress::Closed,
            None => Progress::Waiting,
        }
    }

    /// Whether the client asked for this answer to be the last.
    pub(super) const fn is_over(&self) -> bool {
        self.close && self.answer.is_none()
    }

    /// Begins the answer to a request that came while another was under way.
    pub(super) fn resume(&mut self, clock: &Clock, answers: &Answers) -> Progress {
        if self.input.is_empty() {
            Progress::Waiting
        } else {
            self.begin(clock.now(), clock, answers)
        }
    }
}

fn is_transient(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
}
