//! What the metric `run.googleapis.com/container/instance_count` says of a
//! service, and whether that proves that it has no instances. Pure.
//!
//! The metric is sampled once a minute and a sample can be seen only some time
//! later; where there are no instances there may be no samples either. So zero
//! is proven by time: nothing of the last `lag` shows an instance, and nothing
//! was asked of the service for as long. That the metric is silent because it
//! speaks of something else is ruled out by a sample that did show an instance
//! after yardstick had spoken to the service.

use std::fmt::Write as _;

use jiff::Timestamp;
use serde::Deserialize;
use url::form_urlencoded::Serializer;

use crate::plan::cloud_run::CloudRunPlan;

/// The number of instances of one revision in one state at one instant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Sample {
    pub(super) at: Timestamp,
    pub(super) revision: String,
    /// `active` or `idle`.
    pub(super) state: String,
    pub(super) count: u64,
}

/// What is known beside the samples.
#[derive(Debug, Clone, Copy)]
pub(super) struct View<'a> {
    /// The server's time.
    pub(super) now: Timestamp,
    /// When the service had been asked for the last time, at the latest.
    pub(super) since: Timestamp,
    /// Seconds until a change shows.
    pub(super) lag_s: u32,
    /// An instance was shown at some time before.
    pub(super) was_seen: bool,
    /// Only its instances count, where only it has traffic.
    pub(super) revision: Option<&'a str>,
}

/// Whether there are none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Finding {
    /// Proven.
    pub(super) is_zero: bool,
    /// An instance was shown at some time.
    pub(super) was_seen: bool,
    /// What was seen, in words.
    pub(super) seen: String,
}

/// Looks at the samples, in any order.
pub(super) fn judge(samples: &[Sample], view: &View<'_>) -> Finding {
    // What lies before it has been sampled, and can be seen, by now.
    let lag = jiff::SignedDuration::from_secs(view.lag_s.into());
    let horizon = view.now.saturating_sub(lag).unwrap_or(Timestamp::MIN);
    let counts = |sample: &&Sample| view.revision.is_none_or(|it| it == sample.revision);
    let shown = samples.iter().filter(|sample| sample.count > 0);
    let was_seen = view.was_seen || shown.clone().next().is_some();
    let last = shown.filter(counts).max_by_key(|sample| sample.at);
    let latest = samples.iter().filter(counts).max_by_key(|sample| sample.at);
    let is_quiet = view.since <= horizon;
    let is_gone = last.is_none_or(|last| last.at <= horizon);
    let mut seen = String::new();
    let _ = match (last, latest) {
        (Some(last), _) => {
            write!(seen, "the last instances were seen at {}: {}", last.at, at(samples, last))
        }
        (None, Some(latest)) => write!(seen, "0 instances, the latest sample at {}", latest.at),
        (None, None) if was_seen => write!(seen, "no sample of late"),
        (None, None) => write!(seen, "no sample at all, though it had answered before"),
    };
    if let Some(latest) = latest.filter(|latest| last.is_some_and(|last| latest.at > last.at)) {
        let _ = write!(seen, ", 0 at {}", latest.at);
    }
    let _ = write!(seen, " (asked at {})", view.now);
    Finding { is_zero: was_seen && is_quiet && is_gone, was_seen, seen }
}

/// `1 active + 1 idle` of the instant and the revision of `of`.
fn at(samples: &[Sample], of: &Sample) -> String {
    let same = |it: &&Sample| it.at == of.at && it.revision == of.revision && it.count > 0;
    let words: Vec<String> = samples
        .iter()
        .filter(same)
        .take(4)
        .map(|sample| format!("{} {}", sample.count, sample.state))
        .collect();
    format!("{} of {}", words.join(" + "), of.revision)
}

/// The question for a page of samples between two instants.
pub(super) fn query(
    plan: &CloudRunPlan,
    (from, to): (Timestamp, Timestamp),
    page: Option<&str>,
) -> String {
    let filter = format!(
        "metric.type = \"run.googleapis.com/container/instance_count\" AND \
         resource.type = \"cloud_run_revision\" AND resource.labels.service_name = \"{}\" AND \
         resource.labels.location = \"{}\"",
        plan.service, plan.region
    );
    let mut query = Serializer::new(String::new());
    query.append_pair("filter", &filter);
    // Whole seconds: the API's own precision of intervals.
    query.append_pair("interval.startTime", &whole(from));
    query.append_pair("interval.endTime", &whole(to));
    query.append_pair("pageSize", "10000");
    if let Some(page) = page {
        query.append_pair("pageToken", page);
    }
    format!("/v3/projects/{}/timeSeries?{}", plan.project, query.finish())
}

fn whole(at: Timestamp) -> String {
    Timestamp::from_second(at.as_second()).unwrap_or(at).to_string()
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Page {
    #[serde(default)]
    time_series: Vec<Series>,
    next_page_token: Option<String>,
}

#[derive(Deserialize)]
struct Series {
    #[serde(default)]
    metric: Labelled,
    #[serde(default)]
    resource: Labelled,
    #[serde(default)]
    points: Vec<Point>,
}

#[derive(Deserialize, Default)]
struct Labelled {
    #[serde(default)]
    labels: std::collections::BTreeMap<String, String>,
}

#[derive(Deserialize)]
struct Point {
    interval: Interval,
    value: Number,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Interval {
    end_time: String,
}

/// A 64-bit number is a text in Google's JSON.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Number {
    int64_value: String,
}

/// The samples of a page, and the token of the next one.
///
/// # Errors
/// What is not as it should be.
pub(super) fn parse(body: &[u8]) -> Result<(Vec<Sample>, Option<String>), String> {
    let page: Page = serde_json::from_slice(body).map_err(|error| error.to_string())?;
    let mut samples = Vec::new();
    for series in page.time_series {
        let label = |of: &Labelled, name| of.labels.get(name).cloned().unwrap_or_default();
        let revision = label(&series.resource, "revision_name");
        let state = label(&series.metric, "state");
        for point in series.points {
            let at = point.interval.end_time.parse().map_err(|error| format!("{error}"))?;
            let count = point.value.int64_value.parse().map_err(|error| format!("{error}"))?;
            samples.push(Sample { at, revision: revision.clone(), state: state.clone(), count });
        }
    }
    Ok((samples, page.next_page_token.filter(|token| !token.is_empty())))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn second(second: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + second).unwrap()
    }

    fn sample(at: i64, state: &str, count: u64) -> Sample {
        let (revision, state) = ("llm-1".to_owned(), state.to_owned());
        Sample { at: second(at), revision, state, count }
    }

    fn view(now: i64, since: i64) -> View<'static> {
        let (now, since) = (second(now), second(since));
        View { now, since, lag_s: 240, was_seen: false, revision: None }
    }

    #[test]
    fn zero_is_proven_once_no_sample_of_the_lag_shows_an_instance() {
        let samples = [sample(0, "active", 1), sample(60, "idle", 1), sample(120, "idle", 0)];
        assert!(!judge(&samples, &view(130, 0)).is_zero, "a sample may still be under way");
        let early = judge(&samples, &view(299, 0));
        assert!(!early.is_zero);
        assert!(early.seen.contains("1 idle of llm-1"), "{}", early.seen);
        assert!(judge(&samples, &view(300, 0)).is_zero);
        assert!(!judge(&samples, &view(300, 100)).is_zero, "it was asked a moment ago");
    }

    #[test]
    fn metric_that_never_showed_an_instance_proves_nothing() {
        let never = judge(&[], &view(10_000, 0));
        assert!(!never.is_zero);
        assert!(never.seen.contains("no sample at all"), "{}", never.seen);
        assert!(!judge(&[sample(60, "idle", 0)], &view(10_000, 0)).is_zero);
        let before = View { was_seen: true, ..view(10_000, 0) };
        assert!(judge(&[], &before).is_zero);
    }

    #[test]
    fn instances_of_another_revision_do_not_count_where_one_has_all_traffic() {
        let samples = [sample(9_990, "idle", 1)];
        let other = View { revision: Some("llm-2"), ..view(10_000, 0) };
        let finding = judge(&samples, &other);
        assert!(finding.is_zero && finding.was_seen);
        let same = View { revision: Some("llm-1"), ..view(10_000, 0) };
        assert!(!judge(&samples, &same).is_zero);
    }

    #[test]
    fn samples_are_read_as_the_api_writes_them() {
        let body = br#"{"timeSeries":[{"metric":{"type":"x","labels":{"state":"idle"}},
            "resource":{"type":"cloud_run_revision","labels":{"revision_name":"llm-1"}},
            "metricKind":"GAUGE","valueType":"INT64","points":[{"interval":{
            "startTime":"2027-01-15T08:00:00Z","endTime":"2027-01-15T08:00:00Z"},
            "value":{"int64Value":"2"}}]}],"nextPageToken":"more","unit":"1"}"#;
        let (samples, next) = parse(body).unwrap();
        assert_eq!((samples[0].count, samples[0].state.as_str()), (2, "idle"));
        assert_eq!(samples[0].at, second(0));
        assert_eq!(next.as_deref(), Some("more"));
        assert_eq!(parse(b"{}"), Ok((Vec::new(), None)));
        for wrong in [&b"<html>"[..], b"[]", br#"{"timeSeries":[{"points":[{}]}]}"#] {
            assert!(parse(wrong).is_err());
        }
    }

    proptest! {
        #[test]
        fn zero_is_never_proven_within_the_lag_of_an_instance(
            samples in prop::collection::vec((0_i64..2000, 0_u64..3), 0..20),
            now in 0_i64..3000,
            since in 0_i64..3000,
        ) {
            let samples: Vec<_> =
                samples.iter().map(|(at, count)| sample(*at, "idle", *count)).collect();
            let finding = judge(&samples, &view(now, since));
            let shown = |it: &Sample| it.count > 0;
            if finding.is_zero {
                prop_assert!(samples.iter().any(shown));
                prop_assert!(now - since >= 240);
                prop_assert!(samples.iter().filter(|it| shown(it)).all(|it| it.at <= second(now - 240)));
            }
        }

        #[test]
        fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse(&bytes);
        }
    }
}
