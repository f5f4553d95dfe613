//! What the engine's thread does: take commands, load, step, and send each
//! request its events. It sleeps on the command channel when nothing is live.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, TryRecvError};
use std::time::Duration;

use tokio::sync::mpsc;

use super::core::{DrawnToken, StepOutput};
use super::host::{GenerationEvent, HostStatus, RequestTimings, Shared};
use super::sequence::SequenceId;
use super::tokenizer::Detokenizer;
use super::weights::WeightSource;
use super::{EngineCore, InferError, InferRequest, StopReason};
use crate::clock::Timestamp;

/// What a handle asks of the thread.
pub(super) enum Command {
    /// Run a request.
    Submit(Box<Submission>),
    /// Load, and answer when done.
    Load(SyncSender<Result<(), InferError>>),
    /// Abort everything, free everything, and answer when done.
    Unload(SyncSender<()>),
    /// Panic in the next step of the loaded core.
    #[cfg(test)]
    PanicInNextStep,
}

/// A request on its way to the engine.
pub(super) struct Submission {
    pub request: InferRequest,
    /// Has room for every event of the request. Closed when its reader is gone,
    /// which aborts the request.
    pub events: mpsc::Sender<GenerationEvent>,
    pub submitted_at: Timestamp,
}

/// A request that the engine works on.
struct Live {
    events: mpsc::Sender<GenerationEvent>,
    detokenizer: Detokenizer,
    num_prompt_tokens: usize,
    num_output_tokens: usize,
    submitted_at: Timestamp,
    load: Duration,
    first_scheduled_at: Option<Timestamp>,
    first_token_at: Option<Timestamp>,
    last_token_at: Option<Timestamp>,
}

/// Whether handles are left.
#[derive(PartialEq, Eq)]
enum Handles {
    Some,
    None,
}

/// The thread's state.
pub(super) struct EngineThread {
    shared: Arc<Shared>,
    weights: Box<dyn WeightSource>,
    commands: Receiver<Command>,
    core: Option<EngineCore>,
    /// Requests that wait for the weights.
    arrived: Vec<Submission>,
    live: BTreeMap<SequenceId, Live>,
    /// Start and end of the last load.
    loaded: Option<(Timestamp, Timestamp)>,
}

impl EngineThread {
    pub(super) fn new(
        shared: Arc<Shared>,
        weights: Box<dyn WeightSource>,
        commands: Receiver<Command>,
    ) -> Self {
        Self {
            shared,
            weights,
            commands,
            core: None,
            arrived: Vec::new(),
            live: BTreeMap::new(),
            loaded: None,
        }
    }

    /// Runs until the last handle is gone; what is live then is aborted.
    pub(super) fn run(mut self) {
        while self.take_commands() == Handles::Some {
            if self.arrived.is_empty() && self.live.is_empty() {
                continue;
            }
            if let Err(error) = self.load() {
                self.fail_all(&error);
                continue;
            }
            // Whoever came while the weights loaded joins the same step.
            if self.take_waiting_commands() == Handles::None {
                break;
            }
            self.admit();
            self.abort_abandoned();
            self.step();
        }
        self.abort_all();
    }

    /// Takes all commands there are; waits for one if nothing is live.
    fn take_commands(&mut self) -> Handles {
        if self.arrived.is_empty() && self.live.is_empty() {
            match self.commands.recv() {
                Ok(command) => self.obey(command),
                Err(_) => return Handles::None,
            }
        }
        self.take_waiting_commands()
    }

    fn take_waiting_commands(&mut self) -> Handles {
        loop {
            match self.commands.try_recv() {
                Ok(command) => self.obey(command),
                Err(TryRecvError::Empty) => return Handles::Some,
                Err(TryRecvError::Disconnected) => return Handles::None,
            }
        }
    }

    fn obey(&mut self, command: Command) {
        match command {
            Command::Submit(submission) => self.arrived.push(*submission),
            Command::Load(reply) => {
                // A handle that no longer listens does not need the answer.
                let _ = reply.try_send(self.load());
            }
            Command::Unload(reply) => {
                self.abort_all();
                self.core = None;
                self.publish();
                let _ = reply.try_send(());
            }
            #[cfg(test)]
            Command::PanicInNextStep => {
                if let Some(core) = &mut self.core {
                    core.panic_in_next_step = true;
                }
            }
        }
    }

    fn load(&mut self) -> Result<(), InferError> {
        if self.core.is_some() {
            return Ok(());
        }
        let started = self.shared.clock.now();
        let Shared { model_config, config, clock, .. } = &*self.shared;
        let load = || EngineCore::new(model_config, &*self.weights, config, clock.clone());
        let core = catch_unwind(AssertUnwindSafe(load))
            .unwrap_or_else(|panic| Err(panicked("loading", panic.as_ref())))?;
        self.core = Some(core);
        self.loaded = Some((started, self.shared.clock.now()));
        self.publish();
        Ok(())
    }

    /// Hands what has arrived to the core.
    fn admit(&mut self) {
        let Some(core) = &mut self.core else { return };
        for submission in self.arrived.drain(..) {
            let load = match self.loaded {
                Some((start, end)) => end.since(start.max(submission.submitted_at)),
                None => Duration::ZERO,
            };
            let request = submission.request.clone();
            let live = Live::new(submission, load, &self.shared);
            match core.add_request(request) {
                Ok(id) => {
                    self.live.insert(id, live);
                }
                Err(error) => {
                    self.shared.leave();
                    send(&live.events, GenerationEvent::Failed(error));
                }
            }
        }
    }

    /// Frees the blocks of requests whose reader is gone.
    fn abort_abandoned(&mut self) {
        let closed = |(id, live): (&SequenceId, &Live)| live.events.is_closed().then_some(*id);
        let ids: Vec<_> = self.live.iter().filter_map(closed).collect();
        if ids.is_empty() {
            return;
        }
        for id in ids {
            self.live.remove(&id);
            self.abort_in_core(id);
            self.shared.leave();
        }
        if self.core.is_none() {
            let error = "KV block accounting broke while a request was aborted";
            self.fail_all(&InferError::Internal(error.to_owned()));
        }
        self.publish();
    }

    fn step(&mut self) {
        let Some(core) = self.core.as_mut().filter(|core| core.has_work()) else { return };
        match catch_unwind(AssertUnwindSafe(|| core.step())) {
            Ok(Ok(report)) => {
                // Blocks are free and seats counted before anyone hears of the end.
                self.publish();
                for output in report.outputs {
                    self.deliver(output, report.at);
                }
            }
            Ok(Err(error)) => self.fail_all(&error),
            Err(panic) => {
                // What a panic left half done cannot be trusted: load again.
                self.core = None;
                self.fail_all(&panicked("a step", panic.as_ref()));
            }
        }
    }

    /// Sends one sequence what the step did for it.
    fn deliver(&mut self, output: StepOutput, at: Timestamp) {
        let StepOutput { id, first_scheduled_at, result, .. } = output;
        let Some(live) = self.live.get_mut(&id) else { return };
        live.first_scheduled_at = Some(first_scheduled_at);
        match result {
            Ok(drawn) => {
                let is_eos = self.shared.model_config.eos_token_ids.contains(&drawn.id);
                let stop = drawn.stop;
                let token = live.take_token(drawn, is_eos, at);
                send(&live.events, token);
                if let Some(reason) = stop
                    && let Some(live) = self.live.remove(&id)
                {
                    self.shared.leave();
                    send(&live.events, live.done(reason, at));
                }
            }
            Err(error) => {
                if let Some(live) = self.live.remove(&id) {
                    self.shared.leave();
                    send(&live.events, GenerationEvent::Failed(error));
                }
            }
        }
    }

    fn fail_all(&mut self, error: &InferError) {
        self.end_all(|_| GenerationEvent::Failed(error.clone()));
    }

    fn abort_all(&mut self) {
        let at = self.shared.clock.now();
        self.end_all(|live| live.done(StopReason::Aborted, at));
    }

    /// Takes every request out of the engine, then sends each its last event.
    fn end_all(&mut self, event: impl Fn(&Live) -> GenerationEvent) {
        for id in self.live.keys().copied().collect::<Vec<_>>() {
            self.abort_in_core(id);
        }
        let arrived: Vec<_> =
            self.arrived.drain(..).map(|s| Live::new(s, Duration::ZERO, &self.shared)).collect();
        let live = std::mem::take(&mut self.live);
        self.publish();
        for live in live.into_values().chain(arrived) {
            self.shared.leave();
            send(&live.events, event(&live));
        }
    }

    /// Frees a sequence's blocks. A core whose accounting is broken is dropped
    /// with its pool: the next request loads anew.
    fn abort_in_core(&mut self, id: SequenceId) {
        if let Some(core) = &mut self.core
            && core.abort(id).is_err()
        {
            self.core = None;
        }
    }

    fn publish(&self) {
        let status = match &self.core {
            Some(core) => {
                let stats = core.stats();
                HostStatus {
                    loaded: true,
                    num_running: stats.num_running,
                    num_waiting: stats.num_waiting + self.arrived.len(),
                    num_free_blocks: stats.num_free_blocks,
                    num_blocks: stats.num_blocks,
                }
            }
            None => self.shared.unloaded_status(),
        };
        self.shared.set_status(status);
    }
}

impl Live {
    fn new(submission: Submission, load: Duration, shared: &Shared) -> Self {
        Self {
            events: submission.events,
            detokenizer: shared.tokenizer().stream(),
            num_prompt_tokens: submission.request.prompt_ids.len(),
            num_output_tokens: 0,
            submitted_at: submission.submitted_at,
            load,
            first_scheduled_at: None,
            first_token_at: None,
            last_token_at: None,
        }
    }

    /// Notes a token and makes its event. The last one carries what the
    /// detokenizer still held back.
    fn take_token(&mut self, drawn: DrawnToken, is_eos: bool, at: Timestamp) -> GenerationEvent {
        self.num_output_tokens += 1;
        self.first_token_at.get_or_insert(at);
        self.last_token_at = Some(at);
        let mut text = if is_eos { String::new() } else { self.detokenizer.push(drawn.id) };
        if drawn.stop.is_some() {
            text.push_str(&self.detokenizer.finish());
        }
        GenerationEvent::Token { at, id: drawn.id, text, logprobs: drawn.logprobs }
    }

    fn done(&self, reason: StopReason, at: Timestamp) -> GenerationEvent {
        let between = |start: Option<Timestamp>, end: Option<Timestamp>| match (start, end) {
            (Some(start), Some(end)) => end.since(start),
            _ => Duration::ZERO,
        };
        GenerationEvent::Done {
            at,
            reason,
            num_prompt_tokens: self.num_prompt_tokens,
            num_output_tokens: self.num_output_tokens,
            timings: RequestTimings {
                queue: self.first_scheduled_at.unwrap_or(at).since(self.submitted_at),
                load: self.load,
                prefill: between(self.first_scheduled_at, self.first_token_at),
                decode: between(self.first_token_at, self.last_token_at),
            },
        }
    }
}

/// The channel has room for every event of its request, so the only failure is
/// a reader that is gone, and that is noticed before the next step.
fn send(events: &mpsc::Sender<GenerationEvent>, event: GenerationEvent) {
    let _ = events.try_send(event);
}

fn panicked(during: &str, panic: &(dyn std::any::Any + Send)) -> InferError {
    let message = panic
        .downcast_ref::<String>()
        .map(String::as_str)
        .or_else(|| panic.downcast_ref::<&str>().copied())
        .unwrap_or("no message");
    InferError::Internal(format!("{during} panicked: {message}"))
}
