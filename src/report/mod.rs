//! A run as people and machines read it: one table model, a renderer per format.
