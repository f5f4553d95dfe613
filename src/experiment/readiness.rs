//! What state an engine is in as far as a run has brought it there. Two things
//! that are easily taken for one: that it holds its model, and that it runs at
//! its speed.

/// One engine.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Readiness {
    resident: bool,
    /// Largest burst for which it was warmed up since it was loaded.
    warmed_up_to: u32,
}

impl Readiness {
    /// It was stopped, unloaded, or has gone by itself.
    pub(super) const fn left(&mut self) {
        *self = Self { resident: false, warmed_up_to: 0 };
    }

    /// It was made cold, and will have loaded with the first request.
    pub(super) const fn loaded_anew(&mut self) {
        *self = Self { resident: true, warmed_up_to: 0 };
    }

    /// It was warmed up with bursts of that size.
    pub(super) fn warmed_up(&mut self, burst: u32) {
        self.resident = true;
        self.warmed_up_to = self.warmed_up_to.max(burst);
    }

    /// It was asked for something.
    pub(super) const fn asked(&mut self) {
        self.resident = true;
    }

    /// Whether it may hold memory.
    pub(super) const fn is_resident(self) -> bool {
        self.resident
    }

    /// Whether a warm case with bursts of that size has to warm it up before.
    pub(super) const fn needs_warm_up(self, burst: u32) -> bool {
        self.warmed_up_to < burst
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cold_case_leaves_an_engine_resident_and_not_warmed_up() {
        let mut engine = Readiness::default();
        assert!(!engine.is_resident() && engine.needs_warm_up(1));
        engine.warmed_up(4);
        engine.loaded_anew();
        assert!(engine.is_resident() && engine.needs_warm_up(1));
        engine.left();
        assert_eq!(engine, Readiness::default());
    }

    #[test]
    fn larger_burst_than_any_before_warms_up_again() {
        let mut engine = Readiness::default();
        engine.warmed_up(4);
        assert!(!engine.needs_warm_up(4) && engine.needs_warm_up(5));
        engine.warmed_up(2);
        assert!(!engine.needs_warm_up(4));
    }
}
