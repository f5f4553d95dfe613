//! Wakes the driver at an instant, more exactly than the runtime's own timer,
//! which counts in milliseconds. On Linux a timer descriptor wakes the poll that
//! also waits for the sockets, within tens of microseconds and without spinning.

use std::time::Duration;

use crate::clock::{Clock, Timestamp};

/// How long before the instant the runtime's timer hands over to yielding,
/// where there is no timer descriptor: its granularity, and a half.
const MARGIN: Duration = Duration::from_micros(1_500);

/// A timer for one driver.
pub(super) struct Timer {
    clock: Clock,
    #[cfg(target_os = "linux")]
    descriptor: Option<linux::Descriptor>,
}

impl Timer {
    /// A timer on `clock`. Must be called on the runtime that waits.
    pub(super) fn new(clock: &Clock) -> Self {
        Self {
            clock: clock.clone(),
            // Without one, as where descriptors have run out, the runtime's timer serves.
            #[cfg(target_os = "linux")]
            descriptor: linux::Descriptor::new().ok(),
        }
    }

    /// Returns as soon as possible after `at`, never before.
    pub(super) async fn until(&mut self, at: Timestamp) {
        #[cfg(target_os = "linux")]
        if let Some(descriptor) = &self.descriptor {
            while self.clock.now() < at {
                if descriptor.sleep(at.since(self.clock.now())).await.is_err() {
                    break;
                }
            }
        }
        self.coarse(at).await;
    }

    /// Sleeps to a little before `at`, then lets others run until it has come.
    async fn coarse(&self, at: Timestamp) {
        let left = at.since(self.clock.now());
        if left > MARGIN {
            tokio::time::sleep(left.saturating_sub(MARGIN)).await;
        }
        while self.clock.now() < at {
            tokio::task::yield_now().await;
        }
    }
}

#[cfg(target_os = "linux")]
mod linux {
    use std::io;
    use std::os::fd::OwnedFd;
    use std::time::Duration;

    use rustix::time::{
        Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
        timerfd_settime,
    };
    use tokio::io::Interest;
    use tokio::io::unix::AsyncFd;

    /// A timer descriptor of the machine's monotonic clock.
    pub(super) struct Descriptor(AsyncFd<OwnedFd>);

    impl Descriptor {
        #[expect(
            deprecated,
            reason = "the sound successor is an unsafe function; an owned descriptor that is \
                      never taken out again keeps its promise"
        )]
        pub(super) fn new() -> io::Result<Self> {
            let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
            let descriptor = timerfd_create(TimerfdClockId::Monotonic, flags)?;
            Ok(Self(AsyncFd::with_interest(descriptor, Interest::READABLE)?))
        }

        /// Waits for `duration`. May be dropped and called again.
        pub(super) async fn sleep(&self, duration: Duration) -> io::Result<()> {
            let nothing = Timespec { tv_sec: 0, tv_nsec: 0 };
            // A timer of zero would never fire.
            let duration = duration.max(Duration::from_nanos(1));
            let once = Itimerspec {
                it_interval: nothing,
                it_value: Timespec {
                    tv_sec: i64::try_from(duration.as_secs()).unwrap_or(i64::MAX),
                    tv_nsec: duration.subsec_nanos().into(),
                },
            };
            timerfd_settime(self.0.get_ref(), TimerfdTimerFlags::empty(), &once)?;
            loop {
                let mut ready = self.0.readable().await?;
                let mut count = [0_u8; 8];
                match ready.try_io(|fd| Ok(rustix::io::read(fd.get_ref(), &mut count)?)) {
                    Ok(read) => return read.map(|_| ()),
                    // Woken for an earlier setting: wait for this one.
                    Err(_would_block) => {}
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_instant_is_announced_before_it_has_come() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let clock = Clock::real();
            let mut timer = Timer::new(&clock);
            for micros in [0, 1, 90, 700, 2_300] {
                let at = clock.now().plus(Duration::from_micros(micros));
                timer.until(at).await;
                assert!(clock.now() >= at);
                let at = clock.now().plus(Duration::from_micros(micros));
                timer.coarse(at).await;
                assert!(clock.now() >= at);
            }
        });
    }

    #[test]
    fn wait_that_was_given_up_does_not_shorten_the_next() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let clock = Clock::real();
            let mut timer = Timer::new(&clock);
            let soon = clock.now().plus(Duration::from_millis(3));
            tokio::select! {
                biased;
                () = timer.until(soon) => {}
                () = tokio::time::sleep(Duration::from_millis(1)) => {}
            }
            let later = clock.now().plus(Duration::from_millis(9));
            timer.until(later).await;
            assert!(clock.now() >= later);
        });
    }
}
