//! Ends waits that have become too long, for all connections of the process by
//! one thread that looks every 50 ms. A timer a wait would be armed and taken
//! back for every token, which costs as much as parsing it. Knows no socket.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, OnceLock, PoisonError, Weak};
use std::task::{Context, Waker};
use std::time::Duration;

/// How often waits are looked at.
const TICK: Duration = Duration::from_millis(50);

/// Counts looks. What happened at the current one is at most a tick old.
static TICKS: AtomicU64 = AtomicU64::new(0);

/// The waits of the process.
struct Watch {
    waits: Mutex<Vec<Weak<Wait>>>,
    /// Told when there is a first wait: without any the thread sleeps.
    begun: Condvar,
}

struct Wait {
    /// The look at which it last was in order.
    tick: AtomicU64,
    limit: u64,
    waker: Mutex<Option<Waker>>,
}

/// The patience of one connection: wakes its task once nothing has happened for
/// its limit, and a tick or two. What that means the task decides by its clock.
pub(super) struct Patience {
    wait: Arc<Wait>,
    /// A copy of the waker in `wait`, compared without the lock.
    known: Option<Waker>,
}

impl Patience {
    /// Patience of `limit`; watched from the first [`Patience::wait`] on.
    pub(super) fn new(limit: Duration) -> Self {
        let ticks = limit.as_nanos().div_ceil(TICK.as_nanos());
        let limit = u64::try_from(ticks).unwrap_or(u64::MAX);
        let wait = Wait { tick: AtomicU64::new(0), limit, waker: Mutex::new(None) };
        Self { wait: Arc::new(wait), known: None }
    }

    /// Something has happened: the limit counts anew.
    pub(super) fn renew(&self) {
        self.wait.tick.store(TICKS.load(Ordering::Relaxed), Ordering::Relaxed);
    }

    /// Has the task of `cx` woken, again and again, once the limit is over.
    ///
    /// # Errors
    /// When the thread that watches cannot be started.
    pub(super) fn wait(&mut self, cx: &Context<'_>) -> io::Result<()> {
        if self.known.as_ref().is_some_and(|known| known.will_wake(cx.waker())) {
            return Ok(());
        }
        let is_first = self.known.replace(cx.waker().clone()).is_none();
        *self.wait.waker.lock().unwrap_or_else(PoisonError::into_inner) = self.known.clone();
        if is_first {
            let watch = watch()?;
            let mut waits = watch.waits.lock().unwrap_or_else(PoisonError::into_inner);
            waits.push(Arc::downgrade(&self.wait));
            watch.begun.notify_one();
        }
        Ok(())
    }
}

/// The watch, with its thread from the first call on.
fn watch() -> io::Result<&'static Watch> {
    static WATCH: OnceLock<Watch> = OnceLock::new();
    static STARTED: Mutex<bool> = Mutex::new(false);
    let watch =
        WATCH.get_or_init(|| Watch { waits: Mutex::new(Vec::new()), begun: Condvar::new() });
    let mut started = STARTED.lock().unwrap_or_else(PoisonError::into_inner);
    if !*started {
        std::thread::Builder::new().name("patience".to_owned()).spawn(|| look(watch))?;
        *started = true;
    }
    Ok(watch)
}

/// Looks at every wait, every tick, as long as there are any.
fn look(watch: &Watch) {
    loop {
        let waits = watch.waits.lock().unwrap_or_else(PoisonError::into_inner);
        let mut waits = watch
            .begun
            .wait_while(waits, |waits| waits.is_empty())
            .unwrap_or_else(PoisonError::into_inner);
        let now = TICKS.fetch_add(1, Ordering::Relaxed) + 1;
        waits.retain(|wait| {
            let Some(wait) = wait.upgrade() else { return false };
            if now.saturating_sub(wait.tick.load(Ordering::Relaxed)) > wait.limit
                && let Some(waker) =
                    wait.waker.lock().unwrap_or_else(PoisonError::into_inner).as_ref()
            {
                waker.wake_by_ref();
            }
            true
        });
        drop(waits);
        std::thread::sleep(TICK);
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::task::Poll;

    use super::*;

    /// How often the task was polled when `enough` says so.
    async fn polls(patience: &mut Patience, mut enough: impl FnMut(u32) -> bool) -> u32 {
        let mut polls = 0;
        poll_fn(|cx| {
            patience.wait(cx).unwrap();
            polls += 1;
            if enough(polls) { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
        polls
    }

    #[tokio::test]
    async fn task_is_woken_once_nothing_has_happened_for_the_limit_and_then_again() {
        let mut patience = Patience::new(TICK * 4);
        patience.renew();
        let began = TICKS.load(Ordering::Relaxed);
        let mut woken_at = Vec::new();
        polls(&mut patience, |polls| {
            woken_at.push(TICKS.load(Ordering::Relaxed));
            polls == 3
        })
        .await;
        assert!(woken_at[1] > began + 4, "{began} {woken_at:?}");
        assert!(woken_at[2] > woken_at[1]);
    }

    #[tokio::test]
    async fn what_happens_in_between_counts_anew() {
        let mut quiet = Patience::new(TICK * 2);
        let mut lively = Patience::new(TICK * 6);
        quiet.renew();
        lively.renew();
        // Each wakes the task; the lively one is renewed whenever the quiet one does.
        let lively = &mut lively;
        let mut lively_ticks = 0;
        polls(&mut quiet, |polls| {
            lively.renew();
            let seen = lively.wait.tick.load(Ordering::Relaxed);
            lively_ticks = TICKS.load(Ordering::Relaxed) - seen;
            polls == 8
        })
        .await;
        assert!(lively_ticks <= 1, "{lively_ticks}");
    }
}
