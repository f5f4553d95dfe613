//! An engine on Google Cloud Run, as a plan says it: which service, whose APIs,
//! what proves who asks, and how long is waited. Knows no HTTP.

use serde::{Deserialize, Serialize};
use url::Url;

use super::lifecycle::{LifecycleError, MAX_SECONDS};

/// The Admin API.
pub(in crate::plan) const ADMIN_URL: &str = "https://run.googleapis.com";
/// The Cloud Monitoring API.
pub(in crate::plan) const MONITORING_URL: &str = "https://monitoring.googleapis.com";
/// Reached from within Google Cloud only.
pub(in crate::plan) const METADATA_URL: &str = "http://metadata.google.internal";
/// Idle instances are kept for up to 15 minutes, and the metric lags behind them.
pub(in crate::plan) const SCALE_TO_ZERO_TIMEOUT_S: u32 = 1800;
/// The study's vLLM took 67 s; larger models take minutes.
pub(in crate::plan) const READY_TIMEOUT_S: u32 = 600;
/// `run.googleapis.com/container/instance_count` is sampled every 60 s, and a
/// sample can be seen at most 120 s later; one minute more for the clocks.
pub(in crate::plan) const METRIC_LAG_S: u32 = 240;

/// How a service is brought to zero instances.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ColdBy {
    /// By waiting until the platform has taken its idle instances away.
    #[default]
    Idle,
    /// By deploying a new revision, which has none yet. It changes the service.
    Revision,
}

/// A service whose life its platform leads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CloudRunPlan {
    /// Project id.
    pub project: String,
    /// Region, such as `us-central1`.
    pub region: String,
    /// Name of the service.
    pub service: String,
    /// How it becomes cold.
    pub cold_by: ColdBy,
    /// Where the Admin API is.
    pub base_url: Url,
    /// Where the Monitoring API is.
    pub monitoring_url: Url,
    /// Where the metadata server is.
    pub metadata_url: Url,
    /// Variable with an identity token for the service; else the metadata server is asked.
    pub identity_token_env: Option<String>,
    /// Variable with an access token for the APIs; else the metadata server is asked.
    pub access_token_env: Option<String>,
    /// The service lets everybody in: no identity token is sent.
    pub unauthenticated: bool,
    /// Longest wait for zero instances, in seconds.
    pub scale_to_zero_timeout_s: u32,
    /// Longest wait for a first answer, in seconds.
    pub ready_timeout_s: u32,
    /// Longest time from a change of the number of instances until the metric
    /// shows it, in seconds.
    pub metric_lag_s: u32,
}

impl CloudRunPlan {
    /// Its name in the Admin API.
    #[must_use]
    pub fn resource(&self) -> String {
        let Self { project, region, service, .. } = self;
        format!("projects/{project}/locations/{region}/services/{service}")
    }

    /// Checks what the types do not.
    ///
    /// # Errors
    /// [`LifecycleError`] names the field.
    pub fn check(&self, engine: &str) -> Result<(), LifecycleError> {
        let wrong = |field, got: String, expected: &str| LifecycleError::Field {
            engine: engine.to_owned(),
            field,
            got,
            expected: expected.to_owned(),
        };
        let names =
            [("project", &self.project), ("region", &self.region), ("service", &self.service)];
        for (field, name) in names {
            // They become part of paths and filters. A project may have a domain.
            let plain = |c: char| {
                c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || ".:".contains(c)
            };
            if name.is_empty()
                || name.len() > 63
                || name.starts_with('.')
                || !name.chars().all(plain)
            {
                let expected = "1 to 63 of a-z, 0-9 and `-`";
                return Err(wrong(field, format!("`{name}`"), expected));
            }
        }
        let urls = [
            ("base_url", &self.base_url),
            ("monitoring_url", &self.monitoring_url),
            ("metadata_url", &self.metadata_url),
        ];
        for (field, url) in urls {
            let secret = !url.username().is_empty() || url.password().is_some();
            if !matches!(url.scheme(), "http" | "https") || url.host_str().is_none() || secret {
                let expected = "an http:// or https:// URL without credentials";
                // It may hold a password, so it is not repeated.
                return Err(wrong(field, "another URL".to_owned(), expected));
            }
        }
        let seconds = [
            ("scale_to_zero_timeout_s", self.scale_to_zero_timeout_s),
            ("ready_timeout_s", self.ready_timeout_s),
            ("metric_lag_s", self.metric_lag_s),
        ];
        for (field, seconds) in seconds {
            if !(1..=MAX_SECONDS).contains(&seconds) {
                let expected = format!("1 to {MAX_SECONDS} seconds");
                return Err(wrong(field, seconds.to_string(), &expected));
            }
        }
        if self.metric_lag_s >= self.scale_to_zero_timeout_s {
            let got = format!("{} s", self.scale_to_zero_timeout_s);
            let expected = format!("more than metric_lag_s, {} s", self.metric_lag_s);
            return Err(wrong("scale_to_zero_timeout_s", got, &expected));
        }
        if self.unauthenticated && self.identity_token_env.is_some() {
            let expected = "absent where the service is unauthenticated";
            return Err(wrong("identity_token_env", "given".to_owned(), expected));
        }
        Ok(())
    }
}
