//! Parts that several modules share.

pub mod scripted;
pub mod wire;
