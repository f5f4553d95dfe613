//! The report as people open it.
