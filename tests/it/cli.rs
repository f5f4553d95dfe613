//! Help pages, errors and exit codes of the binary.
