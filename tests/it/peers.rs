//! Real servers from packages, by explicit switch.
