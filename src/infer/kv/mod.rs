//! KV cache accounting: ids and reference counts in `block_manager`, tensors in `cache`.
