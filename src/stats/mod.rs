//! From raw lines to numbers. Pure: reads no clock, touches no file.

pub mod summary;
pub mod warnings;

pub use summary::Summary;
