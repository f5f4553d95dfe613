//! The embedded engine behind OpenAI-compatible HTTP.
