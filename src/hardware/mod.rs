//! What this machine is, as far as it can be read without a vendor library at build time.
