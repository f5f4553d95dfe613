//! What the engine's thread does: take commands, load, step, and send each
//! request its events. It sleeps on the command channel when nothing is live.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, TryRecvError};
use std::time::Duration;

use tokio::sync::mpsc;

use super::allocator;
use super::command::{BURST_GAP, Command, MAX_GATHERED};
use super::core::{StepOutput, StepReport};
use super::generation::GenerationEvent;
use super::host::{HostStatus, Shared};
use super::live::{Live, Submission};
use super::loading::{Loaded, panicked};
use super::sequence::SequenceId;
use super::telemetry::{EngineEvent, LoadPhase, LoadPhaseKind, Sink, StepStats};
use super::weights::WeightSource;
use super::{EngineCore, InferError, StopReason};
use crate::clock::Timestamp;

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
    /// No step has been made since.
    fresh: bool,
    sink: Option<Sink>,
}

/// Events on their way to their readers: sent once the engine's books are right.
type Outbox = Vec<(mpsc::Sender<GenerationEvent>, GenerationEvent)>;

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
            fresh: false,
            sink: None,
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
        self.unload();
    }

    /// Takes all commands there are; waits for one if nothing is live.
    fn take_commands(&mut self) -> Handles {
        if self.arrived.is_empty() && self.live.is_empty() {
            match self.commands.recv() {
                Ok(command) => self.obey(command),
                Err(_) => return Handles::None,
            }
            self.gather();
        }
        self.take_waiting_commands()
    }

    /// Waits for the rest of a burst whose first request has just arrived. A
    /// step takes all processors: those who are about to send would be held up
    /// by it, and their prompts would wait for the next one.
    fn gather(&mut self) {
        for _ in 0..MAX_GATHERED {
            if self.arrived.is_empty() {
                return;
            }
            match self.commands.recv_timeout(BURST_GAP) {
                Ok(command) => self.obey(command),
                Err(_) => return,
            }
        }
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
                self.unload();
                self.publish();
                let _ = reply.try_send(());
            }
            Command::Observe(sink) => {
                self.sink = Some(sink);
                if let Some(opened) = self.shared.opened {
                    self.tell(|_| EngineEvent::Load(opened));
                }
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
        let loaded = Loaded::load(&self.shared, &*self.weights, self.sink.as_ref())?;
        self.core = Some(loaded.core);
        self.loaded = Some((loaded.started, loaded.ended));
        self.fresh = true;
        self.publish();
        for event in loaded.events {
            self.tell(|_| event);
        }
        Ok(())
    }

    /// Drops weights and pool, and gives their memory back to the system with the
    /// pages of the weight files: what is loaded next is measured by itself.
    fn unload(&mut self) {
        if self.core.take().is_some() {
            self.weights.release();
            allocator::give_back();
        }
    }

    /// Tells whoever observes; forgets them once they are gone.
    fn tell(&mut self, event: impl FnOnce(&Sink) -> EngineEvent) {
        self.sink.take_if(|sink| !sink.tell(event(sink)));
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
            let live = Live::new(submission, load, self.shared.tokenizer());
            match core.add_request(request) {
                Ok(id) => {
                    self.live.insert(id, live);
                }
                Err(error) => {
                    self.shared.leave(live.num_samples());
                    send(live.events(), GenerationEvent::Failed(error));
                }
            }
        }
    }

    /// Frees the blocks of requests whose reader is gone.
    fn abort_abandoned(&mut self) {
        let closed = |(id, live): (&SequenceId, &Live)| live.is_closed().then_some(*id);
        let ids: Vec<_> = self.live.iter().filter_map(closed).collect();
        if ids.is_empty() {
            return;
        }
        for id in ids {
            self.abort_in_core(id);
            if let Some(live) = self.live.remove(&id) {
                self.shared.leave(live.num_samples());
            }
        }
        self.fail_if_broken("a request was aborted");
        self.publish();
    }

    fn step(&mut self) {
        let Some(core) = self.core.as_mut().filter(|core| core.has_work()) else { return };
        let preempted_before = core.stats().num_preemptions;
        match catch_unwind(AssertUnwindSafe(|| core.step())) {
            Ok(Ok(report)) => {
                let after = core.stats();
                let stats = StepStats::of(&report, after, preempted_before);
                let outbox = self.take_report(report);
                // Blocks are free, seats counted and the step told of before
                // anyone hears of an end.
                self.publish();
                self.tell_step(stats);
                for (events, event) in outbox {
                    send(&events, event);
                }
                self.fail_if_broken("a sample was stopped");
            }
            Ok(Err(error)) => self.fail_all(&error),
            Err(panic) => {
                // What a panic left half done cannot be trusted: load again.
                self.core = None;
                self.fail_all(&panicked("a step", panic.as_ref()));
            }
        }
    }

    /// Tells of a step, and of the load that it was the end of.
    fn tell_step(&mut self, stats: StepStats) {
        if std::mem::take(&mut self.fresh) {
            let StepStats { started_at, took, .. } = stats;
            let kind = LoadPhaseKind::FirstStep;
            let phase = LoadPhase { kind, started_at, took, bytes: None };
            self.tell(|_| EngineEvent::Load(phase));
        }
        self.tell(|sink| {
            let resident_bytes = sink.resident_now_and_then(stats.started_at);
            EngineEvent::Step(StepStats { resident_bytes, ..stats })
        });
    }

    /// What a step did for every request, and has to be sent.
    fn take_report(&mut self, report: StepReport) -> Outbox {
        let mut outbox = Outbox::with_capacity(report.outputs.len() + report.scores.len());
        for scores in report.scores {
            let (id, reason) = (scores.id, scores.stop.unwrap_or(StopReason::Length));
            let Some(live) = self.live.get_mut(&id) else { continue };
            if let Some(event) = live.take_scores(scores, report.at) {
                outbox.push((live.events().clone(), event));
            }
            self.finish(id, reason, report.at, &mut outbox);
        }
        for output in report.outputs {
            self.take_output(output, report.at, &mut outbox);
        }
        outbox
    }

    fn take_output(&mut self, output: StepOutput, at: Timestamp, outbox: &mut Outbox) {
        let StepOutput { id, sample, .. } = output;
        let Some(live) = self.live.get_mut(&id) else { return };
        live.note_scheduled(output.first_scheduled_at, output.num_cached_tokens);
        match output.result {
            Ok(drawn) => {
                let is_eos = self.shared.model_config.eos_token_ids.contains(&drawn.id);
                let stop = drawn.stop;
                let Some(taken) = live.take_token(sample, drawn, is_eos, at) else { return };
                outbox.push((live.events().clone(), taken.event));
                if taken.stopped_by_text {
                    self.abort_sample_in_core(id, sample);
                }
                let reason = stop.unwrap_or(StopReason::Stop);
                self.finish(id, reason, at, outbox);
            }
            Err(error) => {
                // Its other samples read the same weights: they go with it.
                self.abort_in_core(id);
                if let Some(live) = self.live.remove(&id) {
                    self.shared.leave(live.num_samples());
                    outbox.push((live.events().clone(), GenerationEvent::Failed(error)));
                }
            }
        }
    }

    /// Ends a request all of whose samples have ended.
    fn finish(&mut self, id: SequenceId, reason: StopReason, at: Timestamp, outbox: &mut Outbox) {
        if let Some(live) = self.live.get(&id)
            && live.has_ended()
        {
            self.shared.leave(live.num_samples());
            outbox.push((live.events().clone(), live.done(reason, at)));
            self.live.remove(&id);
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
        let tokenizer = self.shared.tokenizer();
        let arrived: Vec<_> =
            self.arrived.drain(..).map(|s| Live::new(s, Duration::ZERO, tokenizer)).collect();
        let live = std::mem::take(&mut self.live);
        self.publish();
        for live in live.into_values().chain(arrived) {
            self.shared.leave(live.num_samples());
            send(live.events(), event(&live));
        }
    }

    /// Frees a request's blocks. A core whose accounting is broken is dropped
    /// with its pool: the next request loads anew.
    fn abort_in_core(&mut self, id: SequenceId) {
        if let Some(core) = &mut self.core
            && core.abort(id).is_err()
        {
            self.core = None;
        }
    }

    /// As [`Self::abort_in_core`], for one sample.
    fn abort_sample_in_core(&mut self, id: SequenceId, sample: usize) {
        if let Some(core) = &mut self.core
            && core.abort_sample(id, sample).is_err()
        {
            self.core = None;
        }
    }

    /// Fails what is left if the core had to be dropped.
    fn fail_if_broken(&mut self, during: &str) {
        if self.core.is_none() {
            let error = format!("KV block accounting broke while {during}");
            self.fail_all(&InferError::Internal(error));
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

/// The channel has room for every event of its request, so the only failure is
/// a reader that is gone, and that is noticed before the next step.
fn send(events: &mpsc::Sender<GenerationEvent>, event: GenerationEvent) {
    let _ = events.try_send(event);
}
