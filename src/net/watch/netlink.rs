//! What Linux says of its network by itself, over a routing socket (rtnetlink(7)), and of its sleep, by cancelling a timer on the
//! wall clock (timerfd_create(2), `TFD_TIMER_CANCEL_ON_SET`). Needs no rights and runs in any network namespace: it sees the one
//! in which it was opened. Asks for the interfaces and addresses once, to know later what is new; changes nothing.

use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, netlink};
use rustix::time::{
    ClockId, Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, clock_gettime, timerfd_create,
    timerfd_settime,
};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::Change;
use super::sleep::Sleep;

mod table;

use table::{GET_ADDRESS, GET_LINK, Table};

/// Groups of messages: links, addresses, routes and rules of both families.
const GROUPS: u32 = 0x1 | 0x10 | 0x40 | 0x80 | 0x100 | 0x400 | 0x4_0000;
/// The kernel's messages fit: it makes its answers as large as what is read with, up to this.
const BUFFER_BYTES: usize = 32 * 1_024;
/// Reads until an answer must be over: a hundred thousand interfaces or so.
const READS: usize = 1_000;
/// When the timer would run out: never.
const FAR_SECONDS: i64 = 1 << 40;

/// The two files the kernel tells with, and what it has told.
#[derive(Debug)]
pub(super) struct Source {
    socket: AsyncFd<OwnedFd>,
    table: Table,
    buffer: Vec<u8>,
    timer: AsyncFd<OwnedFd>,
    sleep: Sleep,
}

impl Source {
    /// Starts listening.
    pub fn open() -> io::Result<Self> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = rustix::net::socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, None)?;
        rustix::net::bind(&socket, &netlink::SocketAddrNetlink::new(0, GROUPS))?;
        let timer = timerfd_create(TimerfdClockId::Realtime, TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK)?;
        arm(&timer)?;
        let mut source = Self {
            socket: readable(socket)?,
            table: Table::default(),
            buffer: vec![0; BUFFER_BYTES],
            timer: readable(timer)?,
            sleep: Sleep::new(clock(ClockId::Boottime), clock(ClockId::Monotonic)),
        };
        source.learn()?;
        Ok(source)
    }

    /// The next change. Cancel-safe.
    pub async fn see(&mut self) -> io::Result<Change> {
        loop {
            tokio::select! {
                biased;
                ready = self.timer.readable() => {
                    let mut ready = ready?;
                    // Cancelled: the wall clock was set, or ran on during a sleep. Which of them the other clocks tell.
                    let _ = ready.try_io(|timer| Ok(rustix::io::read(timer.get_ref(), &mut [0; 8])?));
                    arm(self.timer.get_ref())?;
                }
                ready = self.socket.readable() => {
                    let read = |socket: &AsyncFd<OwnedFd>| Ok(rustix::net::recv(socket.get_ref(), &mut self.buffer[..], RecvFlags::empty())?);
                    match ready?.try_io(read) {
                        Ok(Ok((_, bytes))) if self.table.take(&self.buffer[..bytes.min(BUFFER_BYTES)]).changed => {
                            return Ok(Change::Network);
                        }
                        // So much happened that the kernel could not keep it.
                        Ok(Err(error)) if is(&error, Errno::NOBUFS) => {
                            self.learn()?;
                            return Ok(Change::Network);
                        }
                        Ok(Err(error)) if !is(&error, Errno::INTR) => return Err(error),
                        _ => {}
                    }
                }
            }
            if self.sleep.slept(clock(ClockId::Boottime), clock(ClockId::Monotonic)) {
                return Ok(Change::Slept);
            }
        }
    }

    /// Asks for what there is. The kernel answers while it is read from, so nothing is waited for.
    fn learn(&mut self) -> io::Result<()> {
        self.table = Table::default();
        for request in [GET_LINK, GET_ADDRESS] {
            rustix::net::send(self.socket.get_ref(), &table::request(request), SendFlags::empty())?;
            for _ in 0..READS {
                match rustix::net::recv(self.socket.get_ref(), &mut self.buffer[..], RecvFlags::empty()) {
                    Ok((_, bytes)) if self.table.take(&self.buffer[..bytes.min(BUFFER_BYTES)]).done => break,
                    Ok(_) | Err(Errno::NOBUFS | Errno::INTR) => {}
                    // Whoever could not be asked is not known yet, and is reported once for nothing.
                    Err(Errno::AGAIN) => break,
                    Err(error) => return Err(error.into()),
                }
            }
        }
        Ok(())
    }
}

/// tokio deprecated this for types whose file may change under it, and has no other way that is not `unsafe`. An `OwnedFd` is one
/// open file from the beginning to the end, which is all that is asked for.
#[expect(deprecated, reason = "sound for an OwnedFd")]
fn readable(file: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    AsyncFd::with_interest(file, Interest::READABLE)
}

fn is(error: &io::Error, errno: Errno) -> bool {
    error.raw_os_error() == Some(errno.raw_os_error())
}

/// Sets the timer to run out never, and to be cancelled when the wall clock jumps.
fn arm(timer: &OwnedFd) -> io::Result<()> {
    let zero = Timespec { tv_sec: 0, tv_nsec: 0 };
    let never = Itimerspec { it_interval: zero, it_value: Timespec { tv_sec: FAR_SECONDS, tv_nsec: 0 } };
    timerfd_settime(timer, TimerfdTimerFlags::ABSTIME | TimerfdTimerFlags::CANCEL_ON_SET, &never)?;
    Ok(())
}

fn clock(id: ClockId) -> Duration {
    let time = clock_gettime(id);
    Duration::new(time.tv_sec.unsigned_abs(), u32::try_from(time.tv_nsec).unwrap_or_default())
}
