//! What is asked of an engine: prompts of known length, distinct for each request.
