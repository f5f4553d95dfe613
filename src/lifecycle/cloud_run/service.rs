//! A service as Cloud Run's Admin API (v2) describes it: whether it can go cold
//! at all, and what a new revision of it is. Pure; asks nobody.

use serde::Deserialize;
use serde_json::{Value, json};
use url::Url;

/// Annotation of the revisions that yardstick deploys. Its value alone makes
/// them differ from the one before, and so a revision at all.
const ANNOTATION: &str = "yardstick-cold";

/// What is read of a service.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Service {
    uri: String,
    urls: Vec<String>,
    scaling: Scaling,
    latest_ready_revision: String,
    latest_created_revision: String,
    reconciling: bool,
    terminal_condition: Condition,
    traffic_statuses: Vec<Traffic>,
    template: Value,
    etag: Option<String>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Scaling {
    min_instance_count: u32,
    scaling_mode: String,
    manual_instance_count: Option<u32>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
struct Condition {
    state: String,
    message: String,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
struct Traffic {
    #[serde(rename = "type")]
    kind: String,
    revision: String,
    percent: u32,
}

/// How far a deployment is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Deployment {
    /// Not there yet.
    Pending,
    /// This revision is ready, and has all traffic.
    Ready(String),
    /// It will not get there.
    Failed(String),
}

impl Service {
    /// Reads an answer of the Admin API.
    pub(super) fn parse(body: &[u8]) -> Result<Self, String> {
        let service: Self = serde_json::from_slice(body)
            .map_err(|error| format!("something that is no service ({error})"))?;
        if service.uri.is_empty() {
            return Err("a service without a uri".to_owned());
        }
        Ok(service)
    }

    /// The name of the revision that is ready.
    pub(super) fn revision(&self) -> &str {
        last(&self.latest_ready_revision)
    }

    /// Why it never has zero instances, with the remedy.
    pub(super) fn never_cold(&self, name: &str, region: &str) -> Option<(String, String)> {
        let update = format!("gcloud run services update {name} --region {region}");
        if self.scaling.scaling_mode == "MANUAL" {
            let count = self.scaling.manual_instance_count.unwrap_or(0);
            let what = format!("it is scaled by hand, to {count} instances");
            return Some((what, format!("{update} --scaling auto")));
        }
        let of_service = self.scaling.min_instance_count;
        let of_revision = &self.template["scaling"]["minInstanceCount"];
        let of_revision = of_revision.as_u64().unwrap_or(0);
        if of_service > 0 {
            let what = format!("it keeps {of_service} instances at least (minInstanceCount)");
            return Some((what, format!("{update} --min 0")));
        }
        (of_revision > 0).then(|| {
            let what = format!(
                "its revision keeps {of_revision} instances at least (template.scaling.minInstanceCount)"
            );
            (what, format!("{update} --min-instances 0"))
        })
    }

    /// Whether `url` is one of its own: else another service would be awaited
    /// than is measured.
    pub(super) fn is_at(&self, url: &Url) -> bool {
        let own = self.urls.iter().chain([&self.uri]).filter_map(|own| own.parse::<Url>().ok());
        own.into_iter().any(|own| own.origin() == url.origin())
    }

    /// Its URLs, for messages.
    pub(super) fn listed(&self) -> String {
        let mut urls = vec![self.uri.as_str()];
        urls.extend(self.urls.iter().map(String::as_str).filter(|url| *url != self.uri));
        urls.truncate(4);
        urls.join(", ")
    }

    /// The body of a PATCH that deploys the same template once more.
    pub(super) fn redeployed(&self, label: &str) -> Value {
        let mut template = self.template.clone();
        if !template.is_object() {
            template = json!({});
        }
        if !template["annotations"].is_object() {
            template["annotations"] = json!({});
        }
        template["annotations"][ANNOTATION] = json!(label);
        if let Some(fields) = template.as_object_mut() {
            // A name that the user gave cannot be given twice.
            fields.remove("revision");
        }
        match &self.etag {
            Some(etag) => json!({ "template": template, "etag": etag }),
            None => json!({ "template": template }),
        }
    }

    /// How far the deployment is that was begun when `before` was its latest revision.
    pub(super) fn deployment(&self, before: &Self) -> Deployment {
        let created = last(&self.latest_created_revision);
        if created == last(&before.latest_created_revision) {
            return Deployment::Pending;
        }
        if self.terminal_condition.state == "CONDITION_FAILED" {
            let words = crate::engine::words::quote(self.terminal_condition.message.as_bytes());
            return Deployment::Failed(format!("revision {created} did not become ready: {words}"));
        }
        if self.reconciling || last(&self.latest_ready_revision) != created {
            return Deployment::Pending;
        }
        let elsewhere = self.traffic_statuses.iter().find(|traffic| {
            let latest = traffic.kind == "TRAFFIC_TARGET_ALLOCATION_TYPE_LATEST";
            traffic.percent > 0 && !latest && last(&traffic.revision) != created
        });
        match elsewhere {
            Some(traffic) => Deployment::Failed(format!(
                "{} % of its traffic goes to revision {}, not to {created}",
                traffic.percent,
                last(&traffic.revision)
            )),
            None => Deployment::Ready(created.to_owned()),
        }
    }
}

/// The last part of a resource's name.
fn last(name: &str) -> &str {
    name.rsplit('/').next().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service(changes: Value) -> Service {
        let mut value = json!({
            "uri": "https://llm-abc-uc.a.run.app",
            "urls": ["https://llm-123.us-central1.run.app"],
            "latestReadyRevision": "projects/p/locations/r/services/llm/revisions/llm-1",
            "latestCreatedRevision": "projects/p/locations/r/services/llm/revisions/llm-1",
            "template": { "revision": "llm-1", "containers": [{ "image": "x" }] },
            "etag": "e",
        });
        for (name, change) in changes.as_object().unwrap() {
            value[name] = change.clone();
        }
        Service::parse(value.to_string().as_bytes()).unwrap()
    }

    fn deployed(changes: Value) -> Deployment {
        service(changes).deployment(&service(json!({})))
    }

    #[test]
    fn service_that_keeps_instances_is_refused_with_its_remedy() {
        let why = |changes| service(changes).never_cold("llm", "r");
        assert_eq!(why(json!({})), None);
        assert_eq!(why(json!({ "scaling": { "scalingMode": "AUTOMATIC" } })), None);
        let (what, remedy) = why(json!({ "scaling": { "minInstanceCount": 1 } })).unwrap();
        assert!(what.contains("1 instances"), "{what}");
        assert_eq!(remedy, "gcloud run services update llm --region r --min 0");
        let template = json!({ "template": { "scaling": { "minInstanceCount": 2 } } });
        assert!(why(template).unwrap().1.ends_with("--min-instances 0"));
        let manual = json!({ "scaling": { "scalingMode": "MANUAL", "manualInstanceCount": 3 } });
        assert!(why(manual).unwrap().0.contains("by hand, to 3"));
    }

    #[test]
    fn service_is_known_by_any_of_its_urls() {
        let service = service(json!({}));
        let at = |url: &str| service.is_at(&url.parse().unwrap());
        assert!(at("https://llm-abc-uc.a.run.app/v1"));
        assert!(at("https://llm-123.us-central1.run.app"));
        assert!(!at("https://other-abc-uc.a.run.app"));
        assert!(!at("http://llm-abc-uc.a.run.app"));
    }

    #[test]
    fn new_revision_is_the_same_template_under_no_name() {
        let body = service(json!({})).redeployed("now");
        assert_eq!(body["template"]["annotations"][ANNOTATION], "now");
        assert_eq!(body["template"]["containers"][0]["image"], "x");
        assert!(body["template"].get("revision").is_none());
        assert_eq!(body["etag"], "e");
    }

    #[test]
    fn deployment_is_over_once_the_new_revision_is_ready_and_has_all_traffic() {
        assert_eq!(deployed(json!({})), Deployment::Pending);
        let created = json!({ "latestCreatedRevision": "x/llm-2" });
        assert_eq!(deployed(created.clone()), Deployment::Pending);
        let mut ready = created;
        ready["latestReadyRevision"] = json!("x/llm-2");
        assert_eq!(deployed(ready.clone()), Deployment::Ready("llm-2".to_owned()));
        ready["trafficStatuses"] = json!([{ "revision": "llm-1", "percent": 100 }]);
        let Deployment::Failed(why) = deployed(ready.clone()) else { panic!() };
        assert!(why.contains("100 % of its traffic goes to revision llm-1"), "{why}");
        ready["terminalCondition"] = json!({ "state": "CONDITION_FAILED", "message": "no quota" });
        let Deployment::Failed(why) = deployed(ready) else { panic!() };
        assert!(why.contains("no quota"), "{why}");
    }

    #[test]
    fn what_is_no_service_is_said() {
        assert!(Service::parse(b"<html>").is_err());
        assert!(Service::parse(b"{}").unwrap_err().contains("without a uri"));
        assert!(Service::parse(br#"{"uri":"x","scaling":3}"#).is_err());
    }
}
