//! Other engines that held memory while a case was measured, as far as the
//! probe saw their processes. Engines in this process cannot be told apart.

use serde::{Deserialize, Serialize};

use super::window::{Gpus, Window};
use crate::record::RunData;
use crate::stats::distribution::median;

/// An engine that was resident while another one was measured.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Neighbour {
    /// Its name.
    pub engine: String,
    /// Resident memory of its processes, the median over the looks.
    pub rss_bytes: u64,
    /// Its memory on the GPUs of the engine that was measured, the median; null
    /// where the driver's table does not name processes of both.
    pub gpu_bytes: Option<u64>,
}

/// The neighbours of a case's engine that were there in most of its looks.
pub(super) fn find(run: &RunData, window: &Window<'_, '_>, gpus: &Gpus) -> Vec<Neighbour> {
    let others = (0_u32..).zip(&run.manifest.engines);
    let neighbour = |(index, record): (u32, &crate::record::EngineRecord)| {
        let rss_bytes = typical(window.rss_of(index))?;
        let gpu_bytes = typical(window.gpu_bytes_of(index, gpus));
        Some(Neighbour { engine: record.spec.name.clone(), rss_bytes, gpu_bytes })
    };
    others.filter(|(index, _)| !window.is_of(*index)).filter_map(neighbour).collect()
}

/// The median, unless it is nothing.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "memory is not negative and below 2^52 bytes"
)]
fn typical(values: impl Iterator<Item = f64>) -> Option<u64> {
    median(values).map(|bytes| bytes as u64).filter(|bytes| *bytes > 0)
}
