//! `yardstick serve` over real sockets.
