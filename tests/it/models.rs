//! Model files, good and damaged, and the catalog that finds them.
