//! Phases of a case: prepare, make cold or warm up, measure.
