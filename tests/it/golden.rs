//! The embedded engine against a reference implementation, on the real model.
