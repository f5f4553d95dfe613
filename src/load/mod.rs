//! Issues requests at their intended times and bounds those in flight. Does not know engine kinds.
