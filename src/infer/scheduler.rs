//! Continuous batching: which sequences take part in the next step. Knows no tensors.
