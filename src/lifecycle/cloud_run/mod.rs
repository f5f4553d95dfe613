//! An engine on Google Cloud Run: woken by a request, cold once its service has
//! no instances, which is awaited and proven, never assumed. Yardstick starts
//! and stops nothing there.
//!
//! `GET` and `PATCH /v2/projects/*/locations/*/services/*` of the Admin API,
//! `GET /v3/projects/*/timeSeries` of the Monitoring API. All waits go by this
//! process's monotonic clock, and the age of a sample by the server's own date.

mod instances;
mod service;
mod wait;

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::Start;
use super::readiness::Readiness;
use crate::clock::{Clock, Timestamp};
use crate::engine::api::Api;
use crate::engine::{EngineError, EngineSpec, ErrorClass};
use crate::plan::Cold;
use crate::plan::cloud_run::{CloudRunPlan, ColdBy};
use crate::record::{JournalEvent, StartPhaseKind};
use crate::units;
use instances::{Finding, Sample, View, judge};
use service::{Deployment, Service};
use wait::{Apis, Wait, may_pass};

/// Longest time between two looks.
const MAX_PAUSE: Duration = Duration::from_secs(5);
/// Shortest time between two looks.
const MIN_PAUSE: Duration = Duration::from_millis(50);
/// Pages of samples that are read: a day's, with room.
const MAX_PAGES: u32 = 20;
/// How far samples are looked back for, beside the lag, until one was seen.
const LOOK_BACK_S: i64 = 86_400;

/// A service, and what is known of it.
#[derive(Debug)]
pub(super) struct CloudRunEngine {
    spec: EngineSpec,
    index: u32,
    plan: CloudRunPlan,
    /// There are cold cases: whether it can be cold is looked at before anything is measured.
    goes_cold: bool,
    clock: Clock,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// It answered, and nothing has been done since that lets it go cold.
    awake: bool,
    /// As it was asked for the first time.
    met_at: Option<Timestamp>,
    /// The metric has shown an instance since then.
    was_seen: bool,
    /// The revision that yardstick deployed last.
    deployed: Option<String>,
}

impl CloudRunEngine {
    /// A service that exists. `spec` is told how to prove who asks.
    pub(super) fn new(
        index: u32,
        spec: &mut EngineSpec,
        plan: &CloudRunPlan,
        goes_cold: bool,
        clock: Clock,
    ) -> Self {
        if !plan.unauthenticated {
            let (key, value) = plan.identity_token_env.as_ref().map_or_else(
                || ("identity_from", plan.metadata_url.as_str()),
                |name| ("identity_token_env", name),
            );
            spec.settings.insert(key.to_owned(), value.to_owned());
        }
        let (spec, plan) = (spec.clone(), plan.clone());
        Self { spec, index, plan, goes_cold, clock, state: Mutex::default() }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What a cold case does not find.
    pub(super) const fn cold(&self) -> &[Cold] {
        &[Cold::Instance]
    }

    pub(super) fn is_up(&self) -> bool {
        self.lock().awake
    }

    /// Others are measured now, and it may go cold meanwhile.
    pub(super) fn forget(&self) {
        self.lock().awake = false;
    }

    /// What of its service is not as it was found.
    pub(super) fn left_behind(&self) -> Option<String> {
        let revision = self.lock().deployed.clone()?;
        let (engine, service) = (&self.spec.name, &self.plan.service);
        Some(format!(
            "engine {engine}: service {service} is left at revision {revision}, a copy of the one \
             before that yardstick deployed (cold_by = \"revision\")"
        ))
    }

    /// Asks it until it answers, or, where `start` is for a cold case, makes it
    /// cold.
    ///
    /// # Errors
    /// Why it does not answer, or why it cannot be said to be cold.
    pub(super) async fn start(&self, start: &mut Start<'_>) -> Result<(), EngineError> {
        self.forget();
        let case = start.case.filter(|_| !start.cold.is_empty());
        let result = match case {
            Some(case) => self.make_cold(case, start).await,
            None => self.wake(start).await,
        };
        self.lock().awake = result.is_ok();
        result
    }

    async fn wake(&self, start: &mut Start<'_>) -> Result<(), EngineError> {
        let limit = Duration::from_secs(self.plan.ready_timeout_s.into());
        let route = Readiness::health(self.spec.kind);
        let api = Api::of_engine(&self.spec, limit, &self.clock)?;
        let (engine, case) = (self.index, start.case);
        let wait = Wait::new(self, start, limit);
        if self.goes_cold && self.lock().met_at.is_none() {
            let (service, _) = self.service(&Apis::new(&self.plan, &self.clock)?, &wait).await?;
            self.check(&service)?;
        }
        let begun = self.clock.now();
        self.lock().met_at.get_or_insert(begun);
        let event =
            JournalEvent::EngineStarted { engine, case, cold: Vec::new(), page_cache: None };
        start.note(begun, event);
        loop {
            let last = match wait.ask(api.get(route)).await? {
                Ok(reply) if reply.status == 200 => break,
                Ok(reply) if matches!(reply.status, 404 | 405 | 501) => break,
                Ok(reply) if may_pass(reply.status) => api.refusal(&reply),
                Ok(reply) => return Err(api.refusal(&reply)),
                // No token, or no HTTP.
                Err(error)
                    if matches!(error.class, ErrorClass::Rejected | ErrorClass::Protocol) =>
                {
                    return Err(error);
                }
                Err(error) => error,
            };
            if wait.is_over() {
                let what = format!(
                    "was not ready within {} s: waited for {route} to answer 200 (at last: {})",
                    limit.as_secs(),
                    last.message
                );
                return Err(EngineError {
                    hint: last.hint,
                    ..self.error(ErrorClass::Timeout, &what)
                });
            }
            wait.pause(MAX_PAUSE.min(limit / 16)).await?;
        }
        let phase = StartPhaseKind::Healthy;
        start.note(self.clock.now(), JournalEvent::StartPhase { engine, case, phase });
        Ok(())
    }

    async fn make_cold(&self, case: u32, start: &mut Start<'_>) -> Result<(), EngineError> {
        let begun = self.clock.now();
        let limit = Duration::from_secs(self.plan.scale_to_zero_timeout_s.into());
        let apis = Apis::new(&self.plan, &self.clock)?;
        let wait = Wait::new(self, start, limit);
        let (service, date) = self.service(&apis, &wait).await?;
        self.check(&service)?;
        let deployed = match self.plan.cold_by {
            ColdBy::Idle => None,
            ColdBy::Revision => Some(self.deploy(&apis, &service, date, &wait).await?),
        };
        let revision = deployed.as_deref();
        let seen = self.await_zero(&apis, begun, date, revision, &wait).await?;
        let revision = revision.unwrap_or_else(|| service.revision());
        let seen = format!("revision {revision}: {seen}");
        let took_ns = units::nanos(self.clock.now().since(begun));
        let cold = self.cold().to_vec();
        let event = JournalEvent::MadeCold { case, took_ns, cold, seen: Some(seen) };
        start.note(self.clock.now(), event);
        Ok(())
    }

    /// The service as it is now, and the server's time.
    async fn service(&self, apis: &Apis, wait: &Wait<'_>) -> Result<(Service, Date), EngineError> {
        let route = format!("/v2/{}", self.plan.resource());
        let reply = wait.answer(&apis.admin, || apis.admin.get(&route)).await?;
        let service = Service::parse(&reply.body).map_err(|what| {
            apis.admin.error(ErrorClass::Protocol, &format!("answered {route} with {what}"))
        })?;
        let date = reply.date.ok_or_else(|| {
            let what =
                format!("answered {route} without a date, by which samples are told from old ones");
            apis.admin.error(ErrorClass::Protocol, &what)
        })?;
        Ok((service, date))
    }

    /// Whether it is the service that is measured, and can have no instances.
    fn check(&self, service: &Service) -> Result<(), EngineError> {
        let CloudRunPlan { service: name, region, .. } = &self.plan;
        if let Some(url) = self.spec.url.as_ref().filter(|url| !service.is_at(url)) {
            let what = format!(
                "is at {}, but service {name} is at {}: one would be awaited, the other measured",
                url.origin().ascii_serialization(),
                service.listed()
            );
            let hint = "give the engine its service's own `url`";
            return Err(self.error(ErrorClass::Rejected, &what).with_hint(hint));
        }
        if let Some((why, remedy)) = service.never_cold(name, region) {
            let what = format!("cannot go cold: service {name} never has zero instances: {why}");
            return Err(self.error(ErrorClass::Rejected, &what).with_hint(remedy));
        }
        Ok(())
    }

    /// Deploys a copy of the latest revision, and waits until it has the traffic.
    async fn deploy(
        &self,
        apis: &Apis,
        before: &Service,
        (date, _): Date,
        wait: &Wait<'_>,
    ) -> Result<String, EngineError> {
        let route = format!("/v2/{}?updateMask=template", self.plan.resource());
        let body = before.redeployed(&date.to_string());
        // Not tried again: it may have been done all the same.
        let reply = wait.ask(apis.admin.patch(&route, &body)).await??;
        if !(200..300).contains(&reply.status) {
            return Err(apis.admin.refusal(&reply));
        }
        loop {
            let (service, _) = self.service(apis, wait).await?;
            match service.deployment(before) {
                Deployment::Ready(revision) => {
                    self.lock().deployed = Some(revision.clone());
                    return Ok(revision);
                }
                Deployment::Failed(why) => {
                    return Err(self.error(ErrorClass::Rejected, &format!("cannot go cold: {why}")));
                }
                Deployment::Pending if wait.is_over() => {
                    let what = format!("has no new revision after {} s", wait.limit.as_secs());
                    return Err(self.error(ErrorClass::Timeout, &what));
                }
                Deployment::Pending => wait.pause(self.pause()).await?,
            }
        }
    }

    /// Waits until the metric proves that there are no instances; what was seen.
    async fn await_zero(
        &self,
        apis: &Apis,
        begun: Timestamp,
        date: Date,
        revision: Option<&str>,
        wait: &Wait<'_>,
    ) -> Result<String, EngineError> {
        // A new revision was asked nothing; what its deployment started is seen.
        let asked_at = if revision.is_some() { self.clock.now() } else { begun };
        let mut date = date;
        loop {
            let (samples, at) = self.samples(apis, date, wait).await?;
            date = at.unwrap_or(date);
            let view = View {
                now: server_time(date, self.clock.now()),
                since: server_time(date, asked_at),
                lag_s: self.plan.metric_lag_s,
                was_seen: self.lock().was_seen,
                revision,
            };
            let Finding { is_zero, was_seen, seen } = judge(&samples, &view);
            self.lock().was_seen = was_seen;
            if is_zero {
                return Ok(seen);
            }
            if wait.is_over() {
                let what = format!(
                    "is not known to be cold: no proof of zero instances within {} s; {seen}",
                    wait.limit.as_secs()
                );
                let hint = if was_seen {
                    "see who else calls the service, uptime checks included, or raise \
                     scale_to_zero_timeout_s: idle instances are kept for up to 15 minutes"
                } else {
                    "check project, region and service: the metric \
                     run.googleapis.com/container/instance_count knows no such service"
                };
                return Err(self.error(ErrorClass::Timeout, &what).with_hint(hint));
            }
            wait.pause(self.pause()).await?;
        }
    }

    /// Every sample that matters, and the server's time.
    async fn samples(
        &self,
        apis: &Apis,
        date: Date,
        wait: &Wait<'_>,
    ) -> Result<(Vec<Sample>, Option<Date>), EngineError> {
        let to = server_time(date, self.clock.now());
        let from = {
            let state = self.lock();
            let met = server_time(date, state.met_at.unwrap_or(date.1));
            let lag = i64::from(self.plan.metric_lag_s);
            // Only a sample from after the first question shows that the metric speaks of it.
            let back = if state.was_seen { 2 * lag } else { LOOK_BACK_S };
            met.max(earlier(to, back)).min(earlier(to, 1))
        };
        let (mut samples, mut page) = (Vec::new(), None);
        for _ in 0..MAX_PAGES {
            let route = instances::query(&self.plan, (from, to), page.as_deref());
            let reply = wait.answer(&apis.monitoring, || apis.monitoring.get(&route)).await?;
            let (more, next) = instances::parse(&reply.body).map_err(|what| {
                let what = format!("answered with something that is no time series: {what}");
                apis.monitoring.error(ErrorClass::Protocol, &what)
            })?;
            samples.extend(more);
            page = next;
            if page.is_none() {
                return Ok((samples, reply.date));
            }
        }
        let what = format!("answered with more than {MAX_PAGES} pages of samples");
        Err(apis.monitoring.error(ErrorClass::Protocol, &what))
    }

    fn pause(&self) -> Duration {
        let lag = Duration::from_secs(self.plan.metric_lag_s.into());
        (lag / 16).clamp(MIN_PAUSE, MAX_PAUSE)
    }

    fn error(&self, class: ErrorClass, what: &str) -> EngineError {
        EngineError::new(class, format!("engine {} {what}", self.spec.name))
    }
}

/// The server's time at an instant of ours.
type Date = (jiff::Timestamp, Timestamp);

fn server_time((date, at): Date, instant: Timestamp) -> jiff::Timestamp {
    let after = jiff::SignedDuration::try_from(instant.since(at)).unwrap_or_default();
    let before = jiff::SignedDuration::try_from(at.since(instant)).unwrap_or_default();
    date.saturating_add(after).and_then(|it| it.saturating_sub(before)).unwrap_or(date)
}

fn earlier(at: jiff::Timestamp, seconds: i64) -> jiff::Timestamp {
    at.saturating_sub(jiff::SignedDuration::from_secs(seconds)).unwrap_or(at)
}
