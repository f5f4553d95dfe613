//! The client measured against the scripted server: driven, recorded and
//! written down as any case is. Knows no case of the run but its concurrency.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::{CpuTime, Session, entry};
use crate::clock::{Clock, Timestamp};
use crate::engine::scripted::{Script, ScriptedServer, Truth};
use crate::engine::{Engine, EngineSpec, GenerateRequest, ModelHint, Prompt, Sampling, connect};
use crate::load::{Next, drive};
use crate::plan::Case;
use crate::record::{
    CalibrationRecord, EventRecord, JournalEntry, JournalEvent, RecordWriter, RequestRecord,
    Stopped, TruthRecord,
};
use crate::units;

/// How long a run's own measurement should take, before and after its cases.
const RUN_BUDGET: Duration = Duration::from_millis(900);
/// Bursts of a run's own measurement, at most.
const MAX_BURSTS: u32 = 9;
/// Longest wait for the next byte, beyond what the whole script takes.
const PATIENCE: Duration = Duration::from_secs(20);
/// How long the server's word for an answer is awaited after the client's.
const TRUTH_PATIENCE: Duration = Duration::from_millis(500);
/// Requests before the measured ones.
const MAX_WARM_UP: u32 = 4;

/// What the measurement needs of its surroundings.
#[derive(Clone, Copy)]
pub struct Bench<'a> {
    /// The clock of both sides.
    pub clock: &'a Clock,
    /// Where pairs go.
    pub writer: &'a RecordWriter,
    /// Stops it.
    pub cancel: &'a CancellationToken,
    /// Processor time of this process.
    pub cpu_time: CpuTime,
}

/// How the scripted server is asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trial {
    /// Name of the measurement.
    pub part: String,
    /// What the server answers.
    pub script: Script,
    /// Requests at once.
    pub concurrency: u32,
    /// So many times that many requests.
    pub num_bursts: u32,
    /// Whether each burst waits for the one before; else each stream sends its
    /// next request as its last one ends.
    pub in_step: bool,
}

/// Why a measurement did not come to its end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Broken {
    /// It could not be made; the reason.
    Impossible(String),
    /// The recorder has stopped.
    Recorder,
}

impl From<Stopped> for Broken {
    fn from(_: Stopped) -> Self {
        Self::Recorder
    }
}

impl Bench<'_> {
    /// Measures `trial` and writes down every pair and what it took.
    ///
    /// # Errors
    /// When the server or its sockets cannot be had, or the recorder has stopped.
    pub async fn measure(&self, trial: &Trial) -> Result<(), Broken> {
        let Used { took, client_cpu } = self.bursts(trial).await?;
        let part = trial.part.clone();
        self.note(JournalEvent::Calibrated {
            part,
            concurrency: trial.concurrency,
            took_ns: units::nanos(took),
            client_cpu_ns: client_cpu.map(units::nanos),
        })?;
        Ok(())
    }

    async fn bursts(&self, trial: &Trial) -> Result<Used, Broken> {
        let impossible = |reason: String| Broken::Impossible(reason);
        let num_requests = trial.concurrency.saturating_mul(trial.num_bursts);
        let room = (num_requests + MAX_WARM_UP) as usize;
        let server = ScriptedServer::start(&trial.script, 0, self.clock, room)
            .map_err(|error| impossible(format!("no scripted server: {error}")))?;
        // No timer around the whole: it would be armed for every token.
        let patience = (trial.script.lasts() + PATIENCE).as_secs();
        let spec: EngineSpec = format!("openai={}?timeout_s={patience}", server.url())
            .parse()
            .map_err(|error| impossible(format!("no scripted server: {error}")))?;
        let engine: Arc<dyn Engine> = connect(&spec, self.clock, &ModelHint::default())
            .map_err(|error| impossible(error.message))?
            .into();
        engine.describe().await.map_err(|error| impossible(error.message))?;
        let mut pairs = Pairs { trial, server: &server, waiting: BTreeMap::new() };
        // What is loaded and allocated at its first use is not the error of a run.
        let warm_up = trial.concurrency.min(MAX_WARM_UP);
        pairs.load(self, &engine, "warm-up", warm_up, &mut |_| Ok(())).await?;
        pairs.waiting.clear();
        while server.truth(Duration::ZERO).is_some() {}
        let (began, cpu) = (self.clock.now(), self.cpu(&server));
        let mut keep = |record| Ok(self.writer.calibration(record)?);
        let (num_loads, per_load) =
            if trial.in_step { (trial.num_bursts, trial.concurrency) } else { (1, num_requests) };
        for load in 0..num_loads {
            let label = format!("{} {load}", trial.part);
            pairs.load(self, &engine, &label, per_load, &mut keep).await?;
            if self.cancel.is_cancelled() {
                return Err(impossible("the run was interrupted".to_owned()));
            }
        }
        let took = self.clock.now().since(began);
        let client_cpu =
            self.cpu(&server).zip(cpu).map(|(after, before)| after.saturating_sub(before));
        pairs.finish(&mut keep)?;
        Ok(Used { took, client_cpu })
    }

    /// Processor time of this process without the server's thread.
    fn cpu(&self, server: &ScriptedServer) -> Option<Duration> {
        let server = server.cpu_time()?;
        Some((self.cpu_time)().saturating_sub(server))
    }

    fn note(&self, event: JournalEvent) -> Result<(), Stopped> {
        self.writer.journal(JournalEntry { at_ns: self.clock.now(), event })
    }
}

struct Used {
    took: Duration,
    client_cpu: Option<Duration>,
}

type Keep<'k> = &'k mut dyn FnMut(CalibrationRecord) -> Result<(), Broken>;

/// Brings together what client and server say of the same request.
struct Pairs<'a> {
    trial: &'a Trial,
    server: &'a ScriptedServer,
    /// Records whose truth has not come, by label.
    waiting: BTreeMap<String, RequestRecord>,
}

impl Pairs<'_> {
    async fn load(
        &mut self,
        bench: &Bench<'_>,
        engine: &Arc<dyn Engine>,
        label: &str,
        num_requests: u32,
        keep: Keep<'_>,
    ) -> Result<(), Broken> {
        let label_of = |index: usize| format!("{label} {index}");
        let max_tokens = self.trial.script.num_tokens;
        let request = |index: u32| GenerateRequest {
            prompt: Prompt::Chat(label_of(index as usize)),
            max_tokens,
            sampling: Sampling::default(),
            ignore_eos: true,
        };
        let requests = (0..num_requests).map(request).collect();
        let concurrency = self.trial.concurrency as usize;
        let mut result = Ok(());
        // A measurement that breaks off must not stop the run.
        let cancel = bench.cancel.child_token();
        drive(engine, requests, concurrency, bench.clock, &cancel, &mut |completed| {
            let label = label_of(completed.index);
            let setting = entry::Setting {
                case: 0,
                warmup: false,
                turn: None,
                cold: false,
                requested_prompt_tokens: None,
                max_tokens,
                prompt_sha256: String::new(),
            };
            self.waiting.insert(label, entry::record(completed, setting));
            result = self.match_up(Duration::ZERO, &mut *keep);
            if result.is_ok() { Next::GoOn } else { Next::Stop }
        })
        .await;
        result
    }

    /// Hands over every record whose truth comes within `patience`.
    fn match_up(&mut self, patience: Duration, keep: Keep<'_>) -> Result<(), Broken> {
        while !self.waiting.is_empty() {
            let Some(truth) = self.server.truth(patience) else { break };
            if let Some(request) = self.waiting.remove(&truth.label) {
                keep(self.record(request, Some(&truth)))?;
            }
        }
        Ok(())
    }

    /// Hands over what is left, with its truth or without.
    fn finish(mut self, keep: Keep<'_>) -> Result<(), Broken> {
        self.match_up(TRUTH_PATIENCE, keep)?;
        for (_, request) in std::mem::take(&mut self.waiting) {
            keep(self.record(request, None))?;
        }
        Ok(())
    }

    fn record(&self, request: RequestRecord, truth: Option<&Truth>) -> CalibrationRecord {
        CalibrationRecord { part: self.trial.part.clone(), truth: truth.map(truth_record), request }
    }
}

pub(crate) fn truth_record(truth: &Truth) -> TruthRecord {
    let received_at = truth.received_at;
    let offset = |at: Timestamp| units::nanos(at.since(received_at));
    let events = truth.events.iter();
    TruthRecord {
        received_at_ns: received_at,
        events: events
            .map(|event| EventRecord(offset(event.at), event.kind, event.num_tokens))
            .collect(),
    }
}

/// Measures the client before or after the cases of a run, at the run's highest
/// concurrency, or writes down why not.
pub(super) async fn of_run(
    session: &Session<'_>,
    cases: &[Case],
    part: &str,
) -> Result<(), Stopped> {
    let measured = match plan(session, cases, part) {
        Ok(trial) => {
            let bench = Bench {
                clock: session.clock,
                writer: session.writer,
                cancel: &session.cancel,
                cpu_time: session.cpu_time,
            };
            bench.measure(&trial).await
        }
        Err(reason) => Err(Broken::Impossible(reason)),
    };
    match measured {
        Ok(()) => Ok(()),
        Err(Broken::Recorder) => Err(Stopped),
        Err(Broken::Impossible(reason)) => {
            session.note(JournalEvent::NotCalibrated { part: part.to_owned(), reason })
        }
    }
}

fn plan(session: &Session<'_>, cases: &[Case], part: &str) -> Result<Trial, String> {
    if let Some(reason) = &session.no_calibration {
        return Err(reason.clone());
    }
    let over_http = |case: &&Case| {
        let engine = session.engines.get(case.engine).and_then(Option::as_ref);
        let spec = engine.map(|engine| engine.spec());
        case.absent.is_none()
            && spec.is_some_and(|spec| spec.url.is_some() || spec.is_embedded_over_http())
    };
    let concurrency = cases.iter().filter(over_http).map(Case::concurrency).max();
    let concurrency = concurrency.ok_or("no engine of this run is measured over HTTP")?;
    if session.clock.instant(Timestamp::default()).is_none() {
        return Err("the run's clock is not the machine's".to_owned());
    }
    Ok(run_trial(part, concurrency))
}

/// About a second of bursts. Gaps grow with concurrency, so that what is
/// measured is the client under a plausible load and not a flood: 100 us a
/// stream, within 5 and 50 ms, so that 1,000 streams get 20 tokens a second each.
fn run_trial(part: &str, concurrency: u32) -> Trial {
    let gap = (Duration::from_micros(100) * concurrency)
        .clamp(Duration::from_millis(5), Duration::from_millis(50));
    let script = Script { ttft: gap * 4, gap, num_tokens: 16, ..Script::default() };
    let num_bursts =
        u32::try_from(RUN_BUDGET.as_nanos() / script.lasts().as_nanos().max(1)).unwrap_or(1);
    Trial {
        part: part.to_owned(),
        script,
        concurrency,
        num_bursts: num_bursts.clamp(1, MAX_BURSTS),
        in_step: true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn measurement_of_a_run_is_about_a_second_whatever_its_concurrency() {
        for concurrency in [1, 10, 100, 1_000, 5_000] {
            let trial = run_trial("before", concurrency);
            let takes = trial.script.lasts() * trial.num_bursts;
            let range = Duration::from_millis(450)..=Duration::from_millis(1100);
            assert!(range.contains(&takes), "{concurrency}: {takes:?}");
            let per_second = f64::from(concurrency) / trial.script.gap.as_secs_f64();
            assert!(per_second <= 100_000.0, "{concurrency}: {per_second} tokens a second");
        }
        assert_eq!(run_trial("before", 1_000).script.gap, Duration::from_millis(50));
    }
}
