//! GPU cards as data: what a product can do at most, and who says so. For
//! rooflines; nothing here is measured by us.

use std::sync::LazyLock;

use serde::{Deserialize, Serialize};

/// One GPU product.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GpuCard {
    /// Short name on the command line.
    pub name: String,
    /// Name as the driver reports it.
    pub driver_name: String,
    /// Memory in MiB as the driver reports it; absent where we have not seen it.
    pub memory_mib: Option<u64>,
    /// Peak memory bandwidth, 10^9 bytes per second.
    pub bandwidth_gb_per_s: f64,
    /// Peak bf16 tensor throughput without sparsity, 10^12 operations per second.
    pub bf16_tflop_per_s: f64,
    /// Where the peaks come from.
    pub source: String,
    /// Where the memory comes from.
    pub memory_source: Option<String>,
    /// Memory in GiB as `cudaMemGetInfo` tells a program, least and most of what was
    /// published; absent where nobody did.
    pub cuda_gib: Option<[f64; 2]>,
    /// Where that comes from.
    pub cuda_source: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    gpu: Vec<GpuCard>,
}

#[expect(clippy::expect_used, reason = "the file is part of the program and read by a test")]
static CARDS: LazyLock<Vec<GpuCard>> = LazyLock::new(|| {
    toml::from_str::<File>(include_str!("gpus.toml")).expect("gpus.toml is well formed").gpu
});

/// Every card, in the order of `gpus.toml`.
#[must_use]
pub fn gpu_cards() -> &'static [GpuCard] {
    &CARDS
}

/// The card of that name, in any case: ours, or the driver's.
#[must_use]
pub fn find_gpu_card_named(name: &str) -> Option<&'static GpuCard> {
    let is = |own: &str| own.eq_ignore_ascii_case(name);
    CARDS.iter().find(|card| is(&card.name) || is(&card.driver_name))
}

/// The card of the GPU that the driver calls `driver_name`.
#[must_use]
pub fn find_gpu_card(driver_name: &str) -> Option<&'static GpuCard> {
    CARDS.iter().find(|card| card.driver_name == driver_name)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_card_has_its_source_and_a_name_of_its_own() {
        let names: BTreeSet<_> = gpu_cards().iter().map(|card| &card.name).collect();
        let driver_names: BTreeSet<_> = gpu_cards().iter().map(|card| &card.driver_name).collect();
        assert_eq!(names.len(), gpu_cards().len());
        assert_eq!(driver_names.len(), gpu_cards().len());
        for card in gpu_cards() {
            assert!(card.source.len() > 10, "{}", card.name);
            assert_eq!(card.memory_mib.is_some(), card.memory_source.is_some(), "{}", card.name);
            assert_eq!(card.cuda_gib.is_some(), card.cuda_source.is_some(), "{}", card.name);
            assert!(card.bandwidth_gb_per_s > 0.0 && card.bf16_tflop_per_s > 0.0);
        }
    }

    #[test]
    fn cards_are_found_by_the_drivers_name() {
        assert_eq!(find_gpu_card("NVIDIA L4").map(|card| card.name.as_str()), Some("L4"));
        assert_eq!(find_gpu_card("NVIDIA L40"), None);
        assert_eq!(find_gpu_card_named("l4"), find_gpu_card("NVIDIA L4"));
        assert_eq!(find_gpu_card_named("nvidia l4"), find_gpu_card("NVIDIA L4"));
    }
}
