//! The paged KV cache: block ids and reference counts in [`block_manager`],
//! what blocks hold in [`prefix`], a sequence's blocks in [`block_table`], the
//! tensors in [`cache`], and what fits into how many bytes in [`sizing`].

pub mod block_manager;
pub mod block_table;
pub mod cache;
mod free_list;
pub mod prefix;
pub mod sizing;

pub use block_manager::{BlockError, BlockId, BlockManager};
pub use block_table::{BlockTable, SharedBlocks};
pub use cache::KvCache;
pub use sizing::KvSizing;
