//! Whole runs through the binary.
