//! The load that a case really made, as a simulation takes it: the lengths of its
//! completed requests in their order, and when they arrived. Knows no engine.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use crate::record::{LoadRecord, RequestRecord};
use crate::simulation::{Load, Prompt, Request};
use crate::stats::case::CaseRequests;

/// Most tokens of a load that is simulated, prompts and answers: the ids of all
/// prompts may be kept at once.
const MAX_TOKENS: u64 = 1 << 24;

/// A load whose every request is known.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct CaseLoad {
    /// When requests are made.
    pub(super) arrivals: Load,
    /// What they hold, at least one.
    pub(super) requests: Arc<[Request]>,
    /// Beginnings that prompts share, and the tokens of each; none of them is (0, 0).
    pub(super) prefixes: (u32, u32),
}

impl CaseLoad {
    /// That of a case: in a closed loop so many requests in flight, each following
    /// upon an answer; in an open one the instants at which they were meant to be sent.
    ///
    /// # Errors
    /// Why nothing can be made of it.
    pub(super) fn of(group: &CaseRequests<'_>) -> Result<Self, String> {
        let record = group.record.load.as_ref();
        let prefixes = record.and_then(|load| Some((load.prefix_groups?, load.prefix_tokens?)));
        let prefixes = prefixes.filter(|(groups, tokens)| *groups > 0 && *tokens > 0);
        let is_open = record.is_some_and(LoadRecord::is_open);
        let counted = |request: &&RequestRecord| lengths(request).is_some();
        let mut counted: Vec<&RequestRecord> = group.completed().filter(counted).collect();
        if is_open {
            counted.sort_by_key(|request| request.intended_at_ns);
        }
        let Some(first) = counted.first() else {
            return Err("nobody counted the tokens of its requests".to_owned());
        };
        let arrivals = if is_open {
            let at = |request: &&RequestRecord| request.intended_at_ns.since(first.intended_at_ns);
            Load::Given(counted.iter().map(at).collect())
        } else {
            let most = u32::try_from(counted.len()).unwrap_or(u32::MAX);
            let users = group.record.concurrency.clamp(1, most);
            Load::Closed { users, think: Duration::ZERO }
        };
        let load = Self {
            arrivals,
            requests: requests(&counted, prefixes.unwrap_or((1, 0))),
            prefixes: prefixes.unwrap_or_default(),
        };
        let tokens: u64 = load.lengths().map(|(prompt, output)| prompt + output).sum();
        if tokens > MAX_TOKENS {
            return Err(format!(
                "its requests have {tokens} tokens, more than the {MAX_TOKENS} that are simulated"
            ));
        }
        Ok(load)
    }

    /// Prompt and output tokens of each request.
    pub(super) fn lengths(&self) -> impl Iterator<Item = (u64, u64)> {
        self.requests.iter().map(|r| (r.prompt.tokens.into(), r.output_tokens.into()))
    }

    /// Tokens of the longest.
    pub(super) fn longest(&self) -> u64 {
        self.lengths().map(|(prompt, output)| prompt + output).max().unwrap_or(0)
    }
}

/// Prompts that were equal by their hash are equal, and no others.
fn requests(counted: &[&RequestRecord], (groups, prefix_tokens): (u32, u32)) -> Arc<[Request]> {
    let mut texts: BTreeMap<&str, u32> = BTreeMap::new();
    let mut requests = Vec::with_capacity(counted.len());
    for record in counted {
        let Some((tokens, output_tokens)) = lengths(record) else { continue };
        let next = u32::try_from(texts.len()).unwrap_or(u32::MAX);
        let text = *texts.entry(&record.prompt_sha256).or_insert(next);
        // As `workload::schedule` hands the groups out.
        let group = record.index % groups.max(1);
        let prompt = Prompt { tokens, prefix_tokens, group, text };
        requests.push(Request { prompt, output_tokens });
    }
    requests.into()
}

/// Prompt and output tokens; `None` where one is not known, or there is none.
fn lengths(request: &RequestRecord) -> Option<(u32, u32)> {
    let (prompt, output) = (request.num_prompt_tokens?, request.num_output_tokens?);
    (prompt > 0 && output > 0).then_some((prompt, output))
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::clock::Timestamp;
    use crate::record::CaseRecord;
    use crate::stats::case::tests::{failed, group, record, request};

    /// A closed loop of so many requests at once, all of one size.
    pub(in crate::stats::kv_sweep) fn closed(
        users: u32,
        requests: u32,
        (prompt, output): (u32, u32),
    ) -> CaseLoad {
        let request = |text| Request {
            prompt: Prompt { tokens: prompt, text, ..Prompt::default() },
            output_tokens: output,
        };
        CaseLoad {
            arrivals: Load::Closed { users, think: Duration::ZERO },
            requests: (0..requests).map(request).collect(),
            prefixes: (0, 0),
        }
    }

    fn open(prefix_groups: Option<u32>) -> CaseRecord {
        let load = serde_json::json!({
            "name": "steady", "arrival": "poisson", "sweep": false, "slos": [],
            "prefix_groups": prefix_groups, "prefix_tokens": 20,
        });
        let load = Some(serde_json::from_value(load).unwrap());
        CaseRecord { load, ..record("e", "steady", 64) }
    }

    fn arrived(index: u32, ms: u64) -> RequestRecord {
        let intended_at_ns = Timestamp::from_nanos(ms * 1_000_000);
        RequestRecord { intended_at_ns, ..request(index, ms, &[1, 2, 3]) }
    }

    #[test]
    fn closed_loop_is_its_completed_requests_in_their_order() {
        let mut requests = [request(0, 0, &[5, 6]), failed(1, 0), request(2, 0, &[7])];
        requests[2].num_prompt_tokens = Some(9);
        let record = record("e", "concurrent-warm", 8);
        let load = CaseLoad::of(&group(&record, &requests)).unwrap();
        assert_eq!(load.lengths().collect::<Vec<_>>(), [(31, 2), (9, 1)]);
        assert_eq!(load.arrivals, Load::Closed { users: 2, think: Duration::ZERO });
        assert_eq!((load.longest(), load.prefixes), (33, (0, 0)));
    }

    #[test]
    fn open_loop_arrives_when_it_was_meant_to() {
        let requests = [arrived(0, 40), arrived(1, 10), arrived(2, 25)];
        let record = open(Some(2));
        let load = CaseLoad::of(&group(&record, &requests)).unwrap();
        assert_eq!(load.arrivals, Load::Given([0, 15, 30].map(Duration::from_millis).into()));
        let groups: Vec<_> = load.requests.iter().map(|request| request.prompt.group).collect();
        assert_eq!(groups, [1, 0, 0]);
        assert_eq!(load.prefixes, (2, 20));
        let none = CaseLoad::of(&group(&open(Some(0)), &requests)).unwrap();
        assert_eq!(none.prefixes, (0, 0));
    }

    #[test]
    fn equal_prompts_are_equal() {
        let mut requests = [request(0, 0, &[5]), request(1, 0, &[5]), request(2, 0, &[5])];
        requests[2].prompt_sha256 = requests[0].prompt_sha256.clone();
        let record = record("e", "concurrent-warm", 8);
        let load = CaseLoad::of(&group(&record, &requests)).unwrap();
        let texts: Vec<_> = load.requests.iter().map(|request| request.prompt.text).collect();
        assert_eq!(texts, [0, 1, 0]);
    }

    #[test]
    fn load_that_nobody_counted_or_could_make_is_refused() {
        let record = record("e", "concurrent-warm", 8);
        let mut requests = [request(0, 0, &[5])];
        requests[0].num_prompt_tokens = Some(u32::MAX);
        let error = CaseLoad::of(&group(&record, &requests)).unwrap_err();
        assert!(error.contains("4294967296 tokens"), "{error}");
        requests[0].num_prompt_tokens = None;
        let error = CaseLoad::of(&group(&record, &requests)).unwrap_err();
        assert!(error.contains("nobody counted"), "{error}");
    }
}
