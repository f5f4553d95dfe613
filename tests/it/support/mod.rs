//! Parts that several modules share.
