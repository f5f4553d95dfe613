//! Paged equals dense, batched equals single: claims that need no oracle.
