//! What to measure: a validated plan and its ordered cases.
