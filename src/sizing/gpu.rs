//! How much memory a GPU has for an engine. The CUDA runtime tells a program of
//! less than NVML does: the driver keeps some for itself. Engines size by what
//! CUDA says.

use serde::Serialize;

use super::amount::{Amount, Source, gib};
use crate::hardware::{GpuCard, find_gpu_card};
use crate::units::MIB;

/// What the driver keeps: from 0.30 (RTX 3090) to 0.86 GiB (A100 80 GB) between
/// NVML's totals and CUDA's of the cards of which both are published.
const KEPT_BYTES: [u64; 3] = [300 * MIB, 512 * MIB, 900 * MIB];

/// Half of the last digit of a size that was printed as `22.03 GiB`.
const ROUNDING_GIB: f64 = 0.005;

/// A GPU's memory.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct GpuMemory {
    /// Which GPU, for people.
    pub name: String,
    /// As `cudaMemGetInfo` tells it.
    pub cuda_total: Amount,
    /// As NVML tells it, where it is known.
    pub nvml_bytes: Option<u64>,
    /// Whether it is an A100, for which vLLM keeps the defaults of smaller GPUs.
    #[serde(skip)]
    pub is_a100: bool,
}

impl GpuMemory {
    /// Exactly so much, as the user says.
    #[must_use]
    pub fn given(bytes: u64) -> Self {
        Self {
            name: "GPU as given".to_owned(),
            cuda_total: Amount::exact(bytes, Source::Given, "--gpu-memory-gib"),
            nvml_bytes: None,
            is_a100: false,
        }
    }

    /// A product by its card; `None` where its memory is not known.
    #[must_use]
    pub fn of_card(card: &GpuCard) -> Option<Self> {
        let nvml_bytes = card.memory_mib.map(|mib| mib * MIB);
        let published = card.cuda_gib.zip(card.cuda_source.as_deref());
        let cuda_total = match published {
            Some(([low, high], source)) => Amount::between(
                [
                    gib(low - ROUNDING_GIB)?,
                    gib(f64::midpoint(low, high))?,
                    gib(high + ROUNDING_GIB)?,
                ],
                Source::Published,
                source,
            ),
            None => less_what_is_kept(nvml_bytes?),
        };
        Some(Self {
            name: card.name.clone(),
            cuda_total,
            nvml_bytes,
            is_a100: card.name.starts_with("A100"),
        })
    }

    /// A GPU that NVML reports on this machine.
    #[must_use]
    pub fn of_nvml(driver_name: &str, nvml_bytes: u64) -> Self {
        let card = find_gpu_card(driver_name);
        // A slice of a GPU (MIG) has its product's name and less memory.
        let whole = card.filter(|card| {
            card.memory_mib.is_some_and(|mib| (mib * MIB).abs_diff(nvml_bytes) < 64 * MIB)
        });
        whole.and_then(Self::of_card).unwrap_or_else(|| Self {
            name: driver_name.to_owned(),
            cuda_total: less_what_is_kept(nvml_bytes),
            nvml_bytes: Some(nvml_bytes),
            is_a100: driver_name.contains("A100"),
        })
    }
}

fn less_what_is_kept(nvml_bytes: u64) -> Amount {
    Amount::between(
        KEPT_BYTES.map(|kept| nvml_bytes.saturating_sub(kept)),
        Source::Estimated,
        "NVML's total, less 0.3 to 0.9 GiB that the driver keeps",
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hardware::gpu_cards;
    use crate::units::GIB;

    /// The published pairs lie within what is assumed of the others.
    #[test]
    fn what_drivers_keep_is_within_what_is_assumed() {
        let mut pairs = 0;
        for card in gpu_cards() {
            let (Some(mib), Some([low, high])) = (card.memory_mib, card.cuda_gib) else { continue };
            pairs += 1;
            let nvml = mib as f64 / 1024.0;
            assert!(low <= high, "{}", card.name);
            assert!(nvml - high >= 0.29 && nvml - low <= 0.88, "{}: {nvml} {low}", card.name);
        }
        assert!(pairs >= 5, "{pairs}");
    }

    #[test]
    fn an_l4_has_less_for_cuda_than_nvml_says() {
        let l4 = GpuMemory::of_card(find_gpu_card("NVIDIA L4").unwrap()).unwrap();
        assert_eq!(l4.cuda_total.source, Source::Published);
        assert!(l4.cuda_total.high_bytes < (22.1 * GIB as f64) as i64);
        assert!(l4.nvml_bytes.unwrap() > (22.4 * GIB as f64) as u64);
    }

    #[test]
    fn a_slice_of_a_gpu_is_not_its_product() {
        let slice = GpuMemory::of_nvml("NVIDIA L4", 6 * GIB);
        assert_eq!(slice.cuda_total.source, Source::Estimated);
        assert!(slice.cuda_total.high_bytes < 6 << 30);
    }
}
