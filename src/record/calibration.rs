//! One line of `calibration.jsonl`: a request to the scripted server, as that
//! server knows it and as the client recorded it.

use serde::{Deserialize, Serialize};

use super::{EventRecord, RequestRecord};
use crate::clock::Timestamp;

/// A request seen from both sides.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CalibrationRecord {
    /// Which measurement: `before` or `after` the run's cases, or a scenario's name.
    pub part: String,
    /// What the server did; absent where it ended no such answer.
    pub truth: Option<TruthRecord>,
    /// What the client recorded; `case` means nothing here.
    pub request: RequestRecord,
}

/// What the scripted server did for one request.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TruthRecord {
    /// As the read that brought the request's last byte returned.
    pub received_at_ns: Timestamp,
    /// Every event, as its last byte was handed to the socket, since `received_at_ns`.
    pub events: Vec<EventRecord>,
}
