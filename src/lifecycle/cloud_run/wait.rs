//! Asks Google's APIs, and asks again what may pass, until an answer, an end, or
//! the user's wish to stop.

use std::time::Duration;

use super::{CloudRunEngine, MAX_PAUSE, Start};
use crate::clock::{Clock, Timestamp};
use crate::engine::api::{Api, Reply};
use crate::engine::credential::{TokenKind, TokenSource};
use crate::engine::{EngineError, ErrorClass};
use crate::plan::cloud_run::{CloudRunPlan, ColdBy};

/// Failures in a row, of the kind that may pass, after which an API is given up.
const MAX_FAILURES: u32 = 6;

/// Google's APIs that are asked.
pub(super) struct Apis {
    pub(super) admin: Api,
    pub(super) monitoring: Api,
}

impl Apis {
    pub(super) fn new(plan: &CloudRunPlan, clock: &Clock) -> Result<Self, EngineError> {
        let source = || match &plan.access_token_env {
            Some(name) => TokenSource::Variable { name: name.clone(), setting: "access_token_env" },
            None => {
                TokenSource::Metadata { server: plan.metadata_url.clone(), kind: TokenKind::Access }
            }
        };
        let role = match plan.cold_by {
            ColdBy::Idle => "roles/run.viewer",
            ColdBy::Revision => {
                "roles/run.developer, and roles/iam.serviceAccountUser on its account"
            }
        };
        let needs = |role: &str| {
            format!(
                "its access token must be valid, and needs the role {role} in project {}",
                plan.project
            )
        };
        let admin =
            Api::new("the Cloud Run Admin API", &plan.base_url, source(), &needs(role), clock)?;
        let role = needs("roles/monitoring.viewer");
        let monitoring =
            Api::new("the Monitoring API", &plan.monitoring_url, source(), &role, clock)?;
        Ok(Self { admin, monitoring })
    }
}

/// A wait with an end, which the user can cut short.
pub(super) struct Wait<'a> {
    engine: &'a CloudRunEngine,
    cancel: tokio_util::sync::CancellationToken,
    pub(super) limit: Duration,
    until: Timestamp,
}

impl<'a> Wait<'a> {
    pub(super) fn new(engine: &'a CloudRunEngine, start: &Start<'_>, limit: Duration) -> Self {
        let until = engine.clock.now().plus(limit);
        Self { engine, cancel: start.cancel.clone(), limit, until }
    }

    pub(super) fn is_over(&self) -> bool {
        self.engine.clock.now() >= self.until
    }

    fn interrupted(&self) -> EngineError {
        self.engine.error(ErrorClass::Cancelled, "was interrupted while it was waited for")
    }

    pub(super) async fn pause(&self, time: Duration) -> Result<(), EngineError> {
        tokio::select! {
            () = self.cancel.cancelled() => Err(self.interrupted()),
            () = tokio::time::sleep(time) => Ok(()),
        }
    }

    /// What comes of one question; the outer error is the user's wish to stop.
    pub(super) async fn ask(
        &self,
        asking: impl Future<Output = Result<Reply, EngineError>>,
    ) -> Result<Result<Reply, EngineError>, EngineError> {
        tokio::select! {
            () = self.cancel.cancelled() => Err(self.interrupted()),
            reply = asking => Ok(reply),
        }
    }

    /// A good answer: what may pass (429, 5xx, no connection) is asked again, a
    /// few times, twice as long after each.
    pub(super) async fn answer<F: Future<Output = Result<Reply, EngineError>>>(
        &self,
        api: &Api,
        mut question: impl FnMut() -> F,
    ) -> Result<Reply, EngineError> {
        let mut pause = self.engine.pause();
        for left in (0..MAX_FAILURES).rev() {
            let error = match self.ask(question()).await? {
                Ok(reply) if (200..300).contains(&reply.status) => return Ok(reply),
                Ok(reply) if may_pass(reply.status) => api.refusal(&reply),
                Ok(reply) => return Err(self.explain(&reply, api.refusal(&reply))),
                Err(error)
                    if matches!(error.class, ErrorClass::Rejected | ErrorClass::Protocol) =>
                {
                    return Err(error);
                }
                Err(error) => error,
            };
            if left == 0 || self.is_over() {
                let what = format!("{} (asked {} times)", error.message, MAX_FAILURES - left);
                return Err(EngineError { message: what, ..error });
            }
            self.pause(pause).await?;
            pause = (pause * 2).min(MAX_PAUSE * 4);
        }
        Err(self.interrupted())
    }

    fn explain(&self, reply: &Reply, error: EngineError) -> EngineError {
        if reply.status != 404 {
            return error;
        }
        let CloudRunPlan { project, region, service, .. } = &self.engine.plan;
        error.with_hint(format!(
            "check project `{project}`, region `{region}` and service `{service}`: \
             gcloud run services list --project {project}"
        ))
    }
}

/// Whether a status may be another one next time.
pub(super) const fn may_pass(status: u16) -> bool {
    matches!(status, 408 | 429 | 500..=599)
}
