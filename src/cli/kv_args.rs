//! The options of `yardstick run` that vary KV settings.

use clap::Args;

use crate::plan::{KvAxis, KvSweep, Plan, PlanError};

/// A sweep over KV settings.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "A sweep over KV settings")]
pub struct KvArgs {
    /// Measure each engine at every one of these values, loaded one after the
    /// other: of kv_blocks, kv_memory, block_size, max_model_len or
    /// enable_prefix_caching; repeatable, for every combination. An engine that
    /// is started takes a value where {SETTING} stands in its command
    #[arg(long, value_name = "SETTING=V,V,...")]
    sweep_kv: Vec<KvAxis>,
}

impl KvArgs {
    /// Lets what was given override what `plan` says.
    ///
    /// # Errors
    /// [`PlanError::KvSweep`] for settings that cannot be varied together.
    pub fn apply(&self, plan: &mut Plan) -> Result<(), PlanError> {
        if !self.sweep_kv.is_empty() {
            plan.kv_sweep = Some(KvSweep::new(self.sweep_kv.clone())?);
        }
        Ok(())
    }
}
