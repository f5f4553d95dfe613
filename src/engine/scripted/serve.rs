//! The scripted server's loop: one thread that waits for sockets and for the
//! next due write, whichever comes first. Waits on a timer of the kernel, to
//! the nanosecond: the timers of an asynchronous runtime count milliseconds.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::io;
use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{SyncSender, TrySendError};

use rustix::buffer::spare_capacity;
use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::net::SocketFlags;
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
    timerfd_settime,
};

use super::Truth;
use super::connection::{Answers, Connection, Progress};
use crate::clock::{Clock, Timestamp};

/// Connections at once; more are closed as they come.
const MAX_CONNECTIONS: usize = 16_384;
/// Connections that may wait to be accepted: a burst opens a thousand at once.
const BACKLOG: i32 = 4096;
/// Connections accepted before requests are looked at again.
const MAX_ACCEPTED: usize = 16;
/// Sockets told of in one call.
const NUM_EVENTS: usize = 256;

const LISTENER: u64 = u64::MAX;
const TIMER: u64 = u64::MAX - 1;
const STOP: u64 = u64::MAX - 2;

/// Everything the loop has.
pub(super) struct Serving {
    epoll: OwnedFd,
    timer: OwnedFd,
    listener: TcpListener,
    /// Ends the loop when its other end is dropped.
    _stop: UnixStream,
    clock: Clock,
    answers: Answers,
    truths: SyncSender<Truth>,
    num_lost: Arc<AtomicU64>,
    slots: Vec<Option<Connection>>,
    free: Vec<usize>,
    /// Due steps by instant; an entry of a connection that is gone is passed over.
    due: BinaryHeap<Reverse<(Timestamp, usize)>>,
    armed: Option<Timestamp>,
    /// Connections that the last wait told of, and whether their clients are still there.
    touched: Vec<(usize, bool)>,
}

impl Serving {
    pub(super) fn new(
        listener: TcpListener,
        stop: UnixStream,
        clock: Clock,
        answers: Answers,
        truths: SyncSender<Truth>,
        num_lost: Arc<AtomicU64>,
    ) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        // Accepted connections inherit it, which spares a call for each.
        rustix::net::sockopt::set_tcp_nodelay(&listener, true)?;
        // The standard library asks for 128.
        rustix::net::listen(&listener, BACKLOG)?;
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let flags = TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK;
        let timer = timerfd_create(TimerfdClockId::Monotonic, flags)?;
        epoll::add(&epoll, &listener, EventData::new_u64(LISTENER), EventFlags::IN)?;
        epoll::add(&epoll, &stop, EventData::new_u64(STOP), EventFlags::IN)?;
        // Told once an expiry, so that nobody needs to read it.
        let edge = EventFlags::IN | EventFlags::ET;
        epoll::add(&epoll, &timer, EventData::new_u64(TIMER), edge)?;
        Ok(Self {
            epoll,
            timer,
            listener,
            _stop: stop,
            clock,
            answers,
            truths,
            num_lost,
            slots: Vec::new(),
            free: Vec::new(),
            due: BinaryHeap::new(),
            armed: None,
            touched: Vec::new(),
        })
    }

    /// Serves until the other end of `stop` is dropped.
    ///
    /// # Errors
    /// When the kernel refuses a call that it granted before.
    pub(super) fn run(&mut self) -> io::Result<()> {
        let mut events = Vec::with_capacity(NUM_EVENTS);
        loop {
            self.write_due();
            self.arm()?;
            events.clear();
            match epoll::wait(&self.epoll, spare_capacity(&mut events), None) {
                Ok(_) => {}
                Err(rustix::io::Errno::INTR) => continue,
                Err(error) => return Err(error.into()),
            }
            // All of a burst is read, and stamped, before any of it is answered.
            let mut to_accept = false;
            for event in &events {
                match event.data.u64() {
                    STOP => return Ok(()),
                    TIMER => self.armed = None,
                    LISTENER => to_accept = true,
                    slot => self.fill(usize::try_from(slot).unwrap_or(usize::MAX), event.flags),
                }
            }
            if to_accept {
                self.accept();
            }
            for index in 0..self.touched.len() {
                let (slot, is_alive) = self.touched[index];
                self.serve(slot, is_alive);
                // Whatever has become due meanwhile goes first.
                self.write_due();
            }
            self.touched.clear();
        }
    }

    fn accept(&mut self) {
        for _ in 0..MAX_ACCEPTED {
            // Any error means that there is none to be had now.
            let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
            let Ok(socket) = rustix::net::accept_with(&self.listener, flags) else { return };
            if self.slots.len() - self.free.len() >= MAX_CONNECTIONS {
                continue;
            }
            let connection = Connection::new(socket.into());
            let slot = self.free.pop().unwrap_or_else(|| {
                self.slots.push(None);
                self.slots.len() - 1
            });
            let data = EventData::new_u64(slot as u64);
            if epoll::add(&self.epoll, &connection.socket, data, EventFlags::IN).is_ok() {
                self.slots[slot] = Some(connection);
            } else {
                self.free.push(slot);
            }
        }
    }

    fn fill(&mut self, slot: usize, flags: EventFlags) {
        let Some(connection) = self.slots.get_mut(slot).and_then(Option::as_mut) else { return };
        let to_read = flags.intersects(EventFlags::IN | EventFlags::HUP | EventFlags::ERR);
        let is_alive = !to_read || connection.fill(&self.clock);
        self.touched.push((slot, is_alive));
    }

    fn serve(&mut self, slot: usize, is_alive: bool) {
        // It may have ended by a write that was due.
        let Some(connection) = self.slots[slot].as_mut() else { return };
        let was_blocked = connection.is_blocked();
        let due = connection.due();
        let progress = match connection.advance(&self.clock) {
            _ if !is_alive => Progress::Closed,
            Progress::Waiting => connection.take_up(&self.clock, &self.answers),
            progress => progress,
        };
        // Otherwise it is in the heap already.
        if connection.due() != due {
            self.schedule(slot);
        }
        self.finish(slot, progress, was_blocked);
    }

    /// Advances every connection whose step is due.
    fn write_due(&mut self) {
        while let Some(Reverse((at, slot))) = self.due.peek().copied() {
            if at > self.clock.now() {
                return;
            }
            self.due.pop();
            let Some(connection) = self.slots[slot].as_mut() else { continue };
            // An entry of the connection that had this slot before.
            if connection.due() != Some(at) {
                continue;
            }
            let was_blocked = connection.is_blocked();
            let progress = connection.advance(&self.clock);
            self.schedule(slot);
            self.finish(slot, progress, was_blocked);
        }
    }

    fn schedule(&mut self, slot: usize) {
        if let Some(at) = self.slots[slot].as_ref().and_then(Connection::due) {
            self.due.push(Reverse((at, slot)));
        }
    }

    fn finish(&mut self, slot: usize, mut progress: Progress, was_blocked: bool) {
        while let Progress::Answered(truth) = progress {
            if let Err(TrySendError::Full(_)) = self.truths.try_send(truth) {
                self.num_lost.fetch_add(1, Ordering::Relaxed);
            }
            let Some(connection) = self.slots[slot].as_mut() else { return };
            progress = if connection.is_over() {
                Progress::Closed
            } else {
                let progress = connection.resume(&self.clock, &self.answers);
                self.schedule(slot);
                progress
            };
        }
        if progress == Progress::Closed {
            // Closing it takes it out of the epoll set.
            self.slots[slot] = None;
            self.free.push(slot);
            return;
        }
        let Some(connection) = &self.slots[slot] else { return };
        if connection.is_blocked() != was_blocked {
            let mut flags = EventFlags::IN;
            flags.set(EventFlags::OUT, connection.is_blocked());
            let data = EventData::new_u64(slot as u64);
            // Refused only where the socket is gone, which the next read tells.
            let _ = epoll::modify(&self.epoll, &connection.socket, data, flags);
        }
    }

    /// Sets the timer to the next due step, unless it is set to that.
    fn arm(&mut self) -> io::Result<()> {
        let Some(Reverse((at, _))) = self.due.peek().copied() else { return Ok(()) };
        if self.armed == Some(at) {
            return Ok(());
        }
        // Zero would switch it off.
        let left = at.since(self.clock.now()).max(std::time::Duration::from_nanos(1));
        let zero = Timespec { tv_sec: 0, tv_nsec: 0 };
        let value = Timespec {
            tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: left.subsec_nanos().into(),
        };
        let once = Itimerspec { it_interval: zero, it_value: value };
        timerfd_settime(&self.timer, TimerfdTimerFlags::empty(), &once)?;
        self.armed = Some(at);
        Ok(())
    }
}
