//! What an engine would do that is not there: the scheduler and the block
//! manager of [`crate::infer`] on a virtual clock, which a model of the duration
//! of a step moves on. Computes no token, reads no clock and touches no file.
//!
//! [`users`] say what arrives when; [`engine`] is one step of the real scheduler;
//! [`run`] is the loop over both; [`step_time`] says how long a step takes, from
//! a GPU card ([`roofline`]) or from steps that were measured ([`measured`],
//! [`fit`]); [`observed`] keeps what happens and [`summary`] is what comes of it;
//! [`capacity`] looks for the highest rate that is kept up with.
//!
//! Steps are simulated one by one: with a few dozen sequences one of them reaches
//! the end of a block in nearly every step, so that there is next to nothing to
//! skip that the scheduler would not have to decide again.

pub mod capacity;
pub mod engine;
pub mod fit;
pub mod measured;
pub mod observed;
pub mod roofline;
pub mod run;
pub mod step_time;
pub mod summary;
pub mod users;

pub use run::{Outcome, Pulse, Setup, SimulationError, simulate};
pub use step_time::StepTime;
pub use summary::Simulated;
pub use users::{Content, Load, Prompt, Request, Users};
