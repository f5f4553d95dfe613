//! What the benches of the embedded engine share: which model, and the floor
//! of the machine that its numbers are held against.

#![allow(dead_code, reason = "every bench takes its share of it")]

pub mod floor;
pub mod model;
