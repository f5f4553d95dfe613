//! When the requests of a case are released.

/// The rule by which a case's requests are released.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LoadShape {
    /// A closed loop: the first `concurrency` at once, then one as one ends.
    Closed {
        /// Requests in flight at once.
        concurrency: u32,
    },
}
