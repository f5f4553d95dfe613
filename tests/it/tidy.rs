//! The architecture's invariants, as far as a test can hold them.
