//! Fused operations over candle tensors, each with the CPU body that defines it.
