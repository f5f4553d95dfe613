//! Follows an engine from its start until it serves: port open, healthy, model
//! listed, each stamped as it is seen. Blocks its thread; knows no process.

use std::time::Duration;

use serde_json::Value;

use super::question::{Address, Answer};
use crate::clock::{Clock, Timestamp};
use crate::engine::EngineKind;
use crate::record::StartPhaseKind;

/// Time between two looks; what happened lies at most that far before its stamp.
const POLL: Duration = Duration::from_millis(2);

/// After so long one question is given up and asked again: the connection may
/// have been accepted by what the engine was before it forked.
const QUESTION: Duration = Duration::from_secs(10);

/// What is asked, and of whom.
#[derive(Debug, Clone)]
pub(super) struct Readiness {
    pub(super) address: Address,
    /// Answers 200 when the engine is ready.
    health: String,
    /// Whether an engine without that route may be ready all the same.
    health_optional: bool,
    /// Lists the models.
    models: &'static str,
}

/// How far it got when it was given up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Waiting {
    /// The time was over.
    TooLong,
    /// Its process ended, or the user asked to stop.
    GivenUp,
}

impl Readiness {
    pub(super) fn new(kind: EngineKind, address: Address, asked: Option<&str>) -> Self {
        let models = match kind {
            EngineKind::Ollama => "/api/tags",
            EngineKind::Vllm | EngineKind::Openai | EngineKind::Embedded => "/v1/models",
        };
        Self {
            address,
            health: asked.unwrap_or(Self::health(kind)).to_owned(),
            health_optional: asked.is_none(),
            models,
        }
    }

    /// The route that answers 200 when an engine is ready; one without it may be
    /// ready all the same.
    pub(super) const fn health(kind: EngineKind) -> &'static str {
        match kind {
            EngineKind::Ollama => "/api/version",
            EngineKind::Vllm | EngineKind::Openai | EngineKind::Embedded => "/health",
        }
    }

    /// Returns once the engine lists a model, or has no such list. `reached` is
    /// told each phase; a phase that an engine has no route for is left out.
    ///
    /// # Errors
    /// Why it was given up, and what it waited for then.
    pub(super) fn follow(
        &self,
        clock: &Clock,
        until: Timestamp,
        give_up: &dyn Fn() -> bool,
        reached: &mut dyn FnMut(StartPhaseKind, Timestamp),
    ) -> Result<(), (Waiting, String)> {
        let wait = Wait { clock, until, give_up };
        let port = self.address.port;
        wait.poll(&format!("port {port} to open"), || self.address.is_open().then_some(()))?;
        reached(StartPhaseKind::PortOpen, clock.now());
        let healthy =
            wait.poll_asked(&format!("{} to answer 200", self.health), |said| {
                match self.address.ask("GET", &self.health, &wait.question()) {
                    Answer::Status(200, _) => Some(true),
                    Answer::Status(404 | 405 | 501, _) if self.health_optional => Some(false),
                    other => said.note(&other),
                }
            })?;
        if healthy {
            reached(StartPhaseKind::Healthy, clock.now());
        }
        let listed = wait.poll_asked(&format!("{} to list a model", self.models), |said| {
            match self.address.ask("GET", self.models, &wait.question()) {
                Answer::Status(200, body) if lists(&body) => Some(true),
                Answer::Status(404 | 405 | 501, _) => Some(false),
                // Ollama may have no model yet, which its adapter then says.
                Answer::Status(200, _) if self.models == "/api/tags" => Some(false),
                other => said.note(&other),
            }
        })?;
        if listed {
            reached(StartPhaseKind::ModelListed, clock.now());
        }
        Ok(())
    }
}

struct Wait<'a> {
    clock: &'a Clock,
    until: Timestamp,
    give_up: &'a dyn Fn() -> bool,
}

impl Wait<'_> {
    fn is_over(&self) -> bool {
        self.clock.now() >= self.until || (self.give_up)()
    }

    /// Whether a question that is asked now is to be given up.
    fn question(&self) -> impl Fn() -> bool {
        let until = self.clock.now().plus(QUESTION);
        move || self.is_over() || self.clock.now() >= until
    }

    fn poll<T>(
        &self,
        what: &str,
        mut look: impl FnMut() -> Option<T>,
    ) -> Result<T, (Waiting, String)> {
        loop {
            if let Some(found) = look() {
                return Ok(found);
            }
            if (self.give_up)() {
                return Err((Waiting::GivenUp, what.to_owned()));
            }
            if self.clock.now() >= self.until {
                return Err((Waiting::TooLong, what.to_owned()));
            }
            std::thread::sleep(POLL);
        }
    }

    /// The same, with what was answered last in the error.
    fn poll_asked<T>(
        &self,
        what: &str,
        mut look: impl FnMut(&mut Said) -> Option<T>,
    ) -> Result<T, (Waiting, String)> {
        let mut said = Said("no answer".to_owned());
        let found = self.poll(what, || look(&mut said));
        found.map_err(|(why, what)| (why, format!("{what} (at last: {})", said.0)))
    }
}

/// What was answered last.
struct Said(String);

impl Said {
    /// Keeps an answer that is not the one that was waited for. Silence says
    /// nothing new: the last question is given up as the time is over.
    fn note<T>(&mut self, answer: &Answer) -> Option<T> {
        if *answer != Answer::Silent {
            self.0 = describe(answer);
        }
        None
    }
}

fn describe(answer: &Answer) -> String {
    match answer {
        Answer::Closed => "connection refused".to_owned(),
        Answer::Silent => "no answer".to_owned(),
        Answer::Status(status, _) => format!("HTTP {status}"),
    }
}

/// Whether a list of models, in OpenAI's shape or Ollama's, has an entry.
fn lists(body: &[u8]) -> bool {
    let list: Option<Value> = serde_json::from_slice(body).ok();
    let entries = list.as_ref().and_then(|list| list.get("data").or_else(|| list.get("models")));
    entries.and_then(Value::as_array).is_some_and(|entries| !entries.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn list_of_models_is_read_in_both_shapes() {
        assert!(lists(br#"{"object":"list","data":[{"id":"m"}]}"#));
        assert!(lists(br#"{"models":[{"name":"m"}]}"#));
        for none in [&b"{\"data\":[]}"[..], b"{}", b"<html>", b"", b"{\"data\":3}"] {
            assert!(!lists(none));
        }
    }

    #[test]
    fn what_was_waited_for_is_in_the_error() {
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let address = Address { host: "127.0.0.1".into(), port, base: String::new(), bearer: None };
        let readiness = Readiness::new(EngineKind::Vllm, address, None);
        let clock = Clock::manual();
        let follow = |until: u64, give_up: bool| {
            let until = Timestamp::from_nanos(until);
            readiness.follow(&clock, until, &|| give_up, &mut |_, _| {}).unwrap_err()
        };
        assert_eq!(follow(0, false), (Waiting::TooLong, format!("port {port} to open")));
        assert_eq!(follow(1, true).0, Waiting::GivenUp);
    }
}
