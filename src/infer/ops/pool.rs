//! Threads that stay: a step forks some two hundred times, each time for a few
//! microseconds of work, which is too short to wake a sleeping thread for.
//!
//! A worker that has nothing to do spins for a while before it sleeps. The
//! caller takes part in the work, and never waits for a worker that has not
//! begun: on a busy machine a job ends when its tasks have, not when every
//! thread was scheduled.

use std::cell::{Cell, RefCell};
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{JoinHandle, Thread};

/// Rounds that an idle worker spins before it sleeps, a few tens of microseconds.
const SPINS: u32 = 20_000;

/// Rounds after which who waits for another thread offers it the processor.
const POLITE: u32 = 2_000;

/// A fixed number of threads that run the tasks of one job at a time. The
/// thread that hands out a job is one of them.
#[derive(Debug)]
pub struct Pool {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
    wakers: Vec<Thread>,
}

#[derive(Debug)]
struct Shared {
    /// Generation of the job, whether it can be joined, and how many workers
    /// have: what makes the fields below safe to read.
    state: AtomicU64,
    job: JobCell,
    /// Each thread's next task. A thread owns a stretch of neighbouring tasks,
    /// so that it reads memory in order, and helps the others when it is done.
    next: Box<[Next]>,
    asleep: AtomicUsize,
    /// Whether a thread is handing out a job.
    busy: AtomicBool,
    stop: AtomicBool,
    panic: Mutex<Option<Box<dyn std::any::Any + Send>>>,
}

/// On a cache line of its own: each is written by its thread all the time.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Next(AtomicUsize);

/// Workers inside the job: the low bits of the state.
const ACTIVE: u64 = 0xffff;
/// Set while workers may still join.
const OPEN: u64 = 1 << 16;
/// The generation counts in the bits above.
const GENERATION: u64 = 1 << 17;

#[derive(Debug, Clone, Copy)]
struct Job {
    run: *const (dyn Fn(usize) + Sync),
    num_tasks: usize,
}

#[derive(Debug)]
struct JobCell(std::cell::UnsafeCell<Option<Job>>);

// SAFETY: written only while the state is closed and no worker is active, read
// only by workers that are counted as active; see `Pool::run`.
unsafe impl Sync for JobCell {}
// SAFETY: the pointer inside is used by active workers alone, during `Pool::run`.
unsafe impl Send for JobCell {}

thread_local! {
    static CURRENT: RefCell<Option<Arc<Pool>>> = const { RefCell::new(None) };
    static INSIDE: Cell<bool> = const { Cell::new(false) };
}

impl Pool {
    /// A pool of `threads`, the caller included: `threads - 1` are started.
    ///
    /// # Errors
    /// When the system gives no more threads.
    pub fn new(threads: usize) -> std::io::Result<Self> {
        let shared = Arc::new(Shared {
            state: AtomicU64::new(0),
            job: JobCell(std::cell::UnsafeCell::new(None)),
            next: (0..threads.max(1)).map(|_| Next::default()).collect(),
            asleep: AtomicUsize::new(0),
            busy: AtomicBool::new(false),
            stop: AtomicBool::new(false),
            panic: Mutex::new(None),
        });
        let mut pool = Self { shared, workers: Vec::new(), wakers: Vec::new() };
        for index in 1..threads {
            let shared = Arc::clone(&pool.shared);
            let worker = std::thread::Builder::new()
                .name(format!("yardstick-op-{index}"))
                .spawn(move || shared.work(index))?;
            pool.wakers.push(worker.thread().clone());
            pool.workers.push(worker);
        }
        Ok(pool)
    }

    /// Threads, the caller included.
    #[must_use]
    pub const fn threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Makes this the pool of [`run`] on this thread for as long as `f` takes.
    pub fn install<T>(self: &Arc<Self>, f: impl FnOnce() -> T) -> T {
        struct Restore(Option<Arc<Pool>>);
        impl Drop for Restore {
            fn drop(&mut self) {
                CURRENT.set(self.0.take());
            }
        }
        let _restore = Restore(CURRENT.replace(Some(Arc::clone(self))));
        f()
    }

    /// Runs tasks `0..num_tasks`, each once, on all threads; returns when all
    /// are done. The caller alone runs them while another one uses the pool.
    fn run(&self, num_tasks: usize, task: &(dyn Fn(usize) + Sync)) {
        struct Free<'a>(&'a AtomicBool);
        impl Drop for Free<'_> {
            fn drop(&mut self) {
                self.0.store(false, Ordering::Release);
            }
        }
        let shared = &*self.shared;
        if shared.busy.swap(true, Ordering::Acquire) {
            return (0..num_tasks).for_each(task);
        }
        let _free = Free(&shared.busy);
        // SAFETY: only the lifetime is erased. The pointer is read by workers
        // that are counted as active, and this function returns, or unwinds,
        // only after it has closed the job and seen that none is.
        let run: *const (dyn Fn(usize) + Sync) = unsafe {
            std::mem::transmute::<&(dyn Fn(usize) + Sync), &'static (dyn Fn(usize) + Sync)>(task)
        };
        // SAFETY: the state is closed and no worker is active, since the last
        // `run` left it so, and `busy` keeps every other thread out.
        unsafe { *shared.job.0.get() = Some(Job { run, num_tasks }) };
        for (owner, next) in shared.next.iter().enumerate() {
            next.0.store(stretch(owner, num_tasks, shared.next.len()).start, Ordering::Relaxed);
        }
        let before = shared.state.load(Ordering::Relaxed);
        let open = (before & !(ACTIVE | OPEN)).wrapping_add(GENERATION) | OPEN;
        shared.state.store(open, Ordering::SeqCst);
        if shared.asleep.load(Ordering::SeqCst) > 0 {
            self.wakers.iter().for_each(Thread::unpark);
        }
        let mine = catch_unwind(AssertUnwindSafe(|| shared.take_tasks(0, num_tasks, task)));
        if mine.is_err() {
            shared.give_up(num_tasks);
        }
        shared.state.fetch_and(!OPEN, Ordering::AcqRel);
        let mut rounds = 0_u32;
        while shared.state.load(Ordering::Acquire) & ACTIVE > 0 {
            pause(&mut rounds);
        }
        let theirs = shared.panic.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(panic) = mine.err().or(theirs) {
            resume_unwind(panic);
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        self.wakers.iter().for_each(Thread::unpark);
        for worker in self.workers.drain(..) {
            // A worker catches the panics of its tasks and has none of its own.
            let _ = worker.join();
        }
    }
}

impl Shared {
    /// Runs what the thread owns, then what others have not begun.
    fn take_tasks(&self, thread: usize, num_tasks: usize, task: &(dyn Fn(usize) + Sync)) {
        let threads = self.next.len();
        for owner in (thread..threads).chain(0..thread) {
            let end = stretch(owner, num_tasks, threads).end;
            loop {
                let index = self.next[owner].0.fetch_add(1, Ordering::Relaxed);
                if index >= end {
                    break;
                }
                task(index);
            }
        }
    }

    /// Leaves no task to begin.
    fn give_up(&self, num_tasks: usize) {
        self.next.iter().for_each(|next| next.0.store(num_tasks, Ordering::Relaxed));
    }

    /// A worker's life.
    fn work(&self, thread: usize) {
        INSIDE.set(true);
        let mut seen = 0;
        while let Some(state) = self.wait_for_job(seen) {
            // A job that was closed meanwhile needs no one.
            if self
                .state
                .compare_exchange(state, state + 1, Ordering::AcqRel, Ordering::Relaxed)
                .is_err()
            {
                continue;
            }
            seen = state & !(ACTIVE | OPEN);
            // SAFETY: this worker is active, so the job stays as it is.
            if let Some(Job { run, num_tasks }) = unsafe { *self.job.0.get() } {
                // SAFETY: `Pool::run` keeps the closure alive while a worker is active.
                let run = unsafe { &*run };
                if let Err(panic) =
                    catch_unwind(AssertUnwindSafe(|| self.take_tasks(thread, num_tasks, run)))
                {
                    self.give_up(num_tasks);
                    *self.panic.lock().unwrap_or_else(PoisonError::into_inner) = Some(panic);
                }
            }
            self.state.fetch_sub(1, Ordering::AcqRel);
        }
    }

    /// The state with an open job that is not `seen`; `None` at the end of the pool.
    fn wait_for_job(&self, seen: u64) -> Option<u64> {
        let fresh = || {
            let state = self.state.load(Ordering::Acquire);
            (state & OPEN != 0 && state & !(ACTIVE | OPEN) != seen).then_some(state)
        };
        loop {
            for _ in 0..SPINS {
                if let Some(state) = fresh() {
                    return Some(state);
                }
                std::hint::spin_loop();
            }
            if self.stop.load(Ordering::SeqCst) {
                return None;
            }
            // Announced before the last look, so that either this thread sees
            // the job or the job's owner sees the sleeper.
            self.asleep.fetch_add(1, Ordering::SeqCst);
            let state = self.state.load(Ordering::SeqCst);
            let is_fresh = state & OPEN != 0 && state & !(ACTIVE | OPEN) != seen;
            if !is_fresh && !self.stop.load(Ordering::SeqCst) {
                std::thread::park();
            }
            self.asleep.fetch_sub(1, Ordering::SeqCst);
        }
    }
}

fn pause(rounds: &mut u32) {
    *rounds += 1;
    if rounds.is_multiple_of(POLITE) {
        std::thread::yield_now();
    } else {
        std::hint::spin_loop();
    }
}

/// Runs tasks `0..num_tasks`, each once, on the pool that is installed on this
/// thread; one after another where there is none, or inside another task.
pub fn run(num_tasks: usize, task: impl Fn(usize) + Sync) {
    let pool =
        if num_tasks > 1 && !INSIDE.get() { CURRENT.with_borrow(Clone::clone) } else { None };
    match pool.filter(|pool| pool.threads() > 1) {
        Some(pool) => {
            struct Leave;
            impl Drop for Leave {
                fn drop(&mut self) {
                    INSIDE.set(false);
                }
            }
            INSIDE.set(true);
            let _leave = Leave;
            pool.run(num_tasks, &task);
        }
        None => (0..num_tasks).for_each(task),
    }
}

/// The task that is `index`-th from the end of the stretch of whoever owns it: for
/// tasks that cost more the later they are, so that none is left for the end.
#[must_use]
pub const fn last_first(index: usize, num_tasks: usize, threads: usize) -> usize {
    let owner = ((index + 1) * threads - 1) / num_tasks;
    let own = stretch(owner, num_tasks, threads);
    own.start + own.end - 1 - index
}

/// The tasks that a thread owns.
const fn stretch(owner: usize, num_tasks: usize, threads: usize) -> Range<usize> {
    owner * num_tasks / threads..(owner + 1) * num_tasks / threads
}

/// Runs `task(i, chunk)` for every `chunk_len` elements of `values`, the last
/// chunk perhaps shorter, as [`run`] does.
pub fn for_each_chunk<T: Send>(
    values: &mut [T],
    chunk_len: usize,
    task: impl Fn(usize, &mut [T]) + Sync,
) {
    struct Start<T>(*mut T);
    // SAFETY: tasks take disjoint stretches of what it points to.
    unsafe impl<T: Send> Sync for Start<T> {}
    impl<T> Start<T> {
        const fn get(&self) -> *mut T {
            self.0
        }
    }
    let (len, chunk_len) = (values.len(), chunk_len.max(1));
    let start = Start(values.as_mut_ptr());
    run(len.div_ceil(chunk_len), |index| {
        let first = index * chunk_len;
        // SAFETY: `first` is below `len`, each index is run once, and `values`
        // is borrowed until all of them have.
        let chunk = unsafe {
            let count = chunk_len.min(len - first);
            std::slice::from_raw_parts_mut(start.get().add(first), count)
        };
        task(index, chunk);
    });
}

/// Threads of the pool that is installed on this thread, one where there is none.
#[must_use]
pub fn threads() -> usize {
    CURRENT.with_borrow(|pool| pool.as_ref().map_or(1, |pool| pool.threads()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pool(threads: usize) -> Arc<Pool> {
        Arc::new(Pool::new(threads).unwrap())
    }

    fn count(num_tasks: usize) -> Vec<usize> {
        let counts: Vec<_> = (0..num_tasks).map(|_| AtomicUsize::new(0)).collect();
        run(num_tasks, |task| {
            counts[task].fetch_add(1, Ordering::Relaxed);
        });
        counts.into_iter().map(AtomicUsize::into_inner).collect()
    }

    #[test]
    fn every_task_runs_once_whatever_the_number_of_threads() {
        for threads in [1, 2, 5] {
            let pool = pool(threads);
            assert_eq!(pool.threads(), threads);
            pool.install(|| {
                for num_tasks in (0..300).chain([5000]) {
                    assert!(count(num_tasks).iter().all(|count| *count == 1));
                }
            });
        }
        assert_eq!(threads(), 1, "nothing stays installed");
        assert_eq!(count(3), [1, 1, 1], "without a pool too");
    }

    #[test]
    fn stretches_turned_around_hold_the_same_tasks() {
        for (num_tasks, threads) in [(1, 1), (7, 2), (7, 3), (2, 5), (96, 4), (97, 16)] {
            for owner in 0..threads {
                let stretch = stretch(owner, num_tasks, threads);
                let turned = stretch.clone().map(|index| last_first(index, num_tasks, threads));
                assert!(turned.eq(stretch.rev()), "{num_tasks} tasks, {threads} threads");
            }
        }
    }

    #[test]
    fn chunks_cover_a_slice_once() {
        let pool = pool(2);
        for (len, chunk_len) in [(0, 3), (1, 3), (3, 3), (1000, 7)] {
            let mut values = vec![0; len];
            pool.install(|| {
                for_each_chunk(&mut values, chunk_len, |index, chunk| {
                    chunk.iter_mut().for_each(|value| *value += index + 1);
                });
            });
            assert!(values.iter().enumerate().all(|(i, value)| *value == i / chunk_len + 1));
        }
    }

    #[test]
    fn sleeping_workers_wake_for_a_job() {
        let pool = pool(2);
        let deep_sleep = || pool.shared.asleep.load(Ordering::SeqCst) == 1;
        for _ in 0..3 {
            while !deep_sleep() {
                std::thread::yield_now();
            }
            // Each task waits for the other: one thread alone would never end.
            let arrived = AtomicUsize::new(0);
            pool.install(|| {
                run(2, |_| {
                    arrived.fetch_add(1, Ordering::SeqCst);
                    while arrived.load(Ordering::SeqCst) < 2 {
                        std::thread::yield_now();
                    }
                });
            });
        }
    }

    #[test]
    fn a_panic_reaches_the_caller_and_leaves_the_pool_usable() {
        let pool = pool(3);
        for bad in 0..20 {
            let result = catch_unwind(AssertUnwindSafe(|| {
                pool.install(|| run(20, |task| assert_ne!(task, bad, "as ordered")));
            }));
            assert!(result.is_err());
            pool.install(|| assert_eq!(count(50), vec![1; 50]));
        }
    }

    #[test]
    fn tasks_of_tasks_run_too() {
        let pool = pool(2);
        let total = AtomicUsize::new(0);
        let count = |_| {
            total.fetch_add(1, Ordering::Relaxed);
        };
        pool.install(|| run(4, |_| run(5, count)));
        assert_eq!(total.into_inner(), 20);
    }

    #[test]
    fn threads_that_share_a_pool_do_not_mix_their_jobs() {
        let pool = pool(2);
        std::thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    pool.install(|| {
                        for _ in 0..500 {
                            assert_eq!(count(7), [1; 7]);
                        }
                    });
                });
            }
        });
    }
}
