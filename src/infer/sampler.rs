//! Draws the next token from logits.
