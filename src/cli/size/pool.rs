//! How large the simulated KV pool is: as it is asked for, as a run had it, or
//! what a card's memory leaves.

use std::num::NonZeroUsize;

use anyhow::Context as _;
use clap::Args;

use super::args::SettingsArgs;
use super::simulate::BF16;
use crate::cli::Failure;
use crate::engine::embedded;
use crate::hardware::GpuCard;
use crate::infer::kv::KvSizing;
use crate::infer::{ComputeDtype, EngineConfig, KvBudget, ModelConfig};
use crate::record::RunData;
use crate::units::{self, GIB, MIB, format_bytes};

/// Memory that is neither weights nor K and V: activations, context and graphs. The
/// study's engine took 1.29 GiB of an L4 for a model of 3B.
const RESERVE: u64 = GIB + 300 * MIB;

/// Share of the card's memory, unless it is given.
const UTILIZATION: f64 = 0.9;

/// Options of the pool, beside those that `size` has anyway.
#[derive(Debug, Clone, Args)]
pub struct PoolArgs {
    /// KV pool in blocks [default: that of --steps-from, or what is left of the card's memory]
    #[arg(long, value_name = "N", conflicts_with = "kv_cache_memory_bytes")]
    kv_blocks: Option<NonZeroUsize>,
    /// Memory of the card that is neither weights nor KV pool [default: 1.29GiB]
    #[arg(long, value_name = "SIZE", value_parser = units::parse_bytes)]
    reserve_memory: Option<u64>,
}

/// A pool and where its size comes from.
pub(super) struct Pool {
    pub sizing: KvSizing,
    pub source: String,
}

/// The settings of an engine of a run, and the blocks that its pool had.
pub(super) fn of_run(run: &RunData, engine: &str) -> anyhow::Result<(EngineConfig, Option<usize>)> {
    let mut engines = (0_u32..).zip(&run.manifest.engines);
    let (index, record) = engines
        .find(|(_, record)| record.spec.name == engine)
        .context("the engine is not in the manifest")?;
    let config = embedded::engine_config(&record.spec)?;
    let blocks = run.steps.iter().filter(|step| step.engine == index);
    let blocks = blocks.map(|step| step.num_used_blocks.saturating_add(step.num_free_blocks)).max();
    Ok((config, blocks.and_then(|blocks| usize::try_from(blocks).ok())))
}

/// Sizes the pool, and puts what sizes it into `config`.
pub(super) fn resolve(
    args: &PoolArgs,
    settings: &SettingsArgs,
    config: &mut EngineConfig,
    model: &ModelConfig,
    card: Option<&GpuCard>,
    measured_blocks: Option<usize>,
) -> anyhow::Result<Pool> {
    let dtype = config.dtype.unwrap_or(ComputeDtype::Bf16);
    let source = match (args.kv_blocks, settings.kv_cache_memory_bytes(), measured_blocks, card) {
        (Some(blocks), ..) => {
            config.kv = KvBudget::Blocks(blocks.get());
            "--kv-blocks".to_owned()
        }
        (None, Some(bytes), ..) => {
            config.kv = KvBudget::Bytes(bytes);
            "--kv-cache-memory-bytes".to_owned()
        }
        (None, None, Some(blocks), _) => {
            config.kv = KvBudget::Blocks(blocks);
            "as in the run".to_owned()
        }
        (None, None, None, Some(card)) => {
            let (bytes, told) = args.left_of(settings, card, model)?;
            config.kv = KvBudget::Bytes(bytes);
            told
        }
        (None, None, None, None) => {
            return Err(Failure::new("how large the KV pool is cannot be told")
                .with_hint("give --kv-blocks or --kv-cache-memory-bytes")
                .into());
        }
    };
    Ok(Pool { sizing: KvSizing::new(config, dtype, model, None)?, source })
}

impl PoolArgs {
    /// Bytes that weights and reserve leave of a card, and how that was reckoned.
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_precision_loss,
        clippy::cast_sign_loss,
        reason = "a share of a memory is a memory"
    )]
    fn left_of(
        &self,
        settings: &SettingsArgs,
        card: &GpuCard,
        model: &ModelConfig,
    ) -> Result<(u64, String), Failure> {
        let utilization = settings.gpu_memory_utilization.unwrap_or(UTILIZATION);
        let Some(mib) = card.memory_mib else {
            return Err(Failure::new(format!("the memory of {} is not known", card.name))
                .with_hint("give --kv-blocks or --kv-cache-memory-bytes"));
        };
        let usable = (mib.saturating_mul(MIB) as f64 * utilization) as u64;
        let weights = model.num_parameters().saturating_mul(BF16 as u64);
        let reserve = self.reserve_memory.unwrap_or(RESERVE);
        let told = format!(
            "{} of {}, less {} of bf16 weights and {} kept for the rest",
            utilization,
            format_bytes(mib.saturating_mul(MIB)),
            format_bytes(weights),
            format_bytes(reserve)
        );
        match usable.checked_sub(weights.saturating_add(reserve)) {
            Some(bytes) if bytes > 0 => Ok((bytes, told)),
            _ => Err(Failure::new(format!("{} leaves no KV pool: {told}", card.name)).with_hint(
                "choose a larger card, raise --gpu-memory-utilization, or give --kv-cache-memory-bytes",
            )),
        }
    }
}
