//! The socket under QUIC. Received packets wake its task, sent packets do not.
//!
//! The system notifies a task that waits for a socket to be writable of every packet that was sent. Quinn's
//! own tokio socket always waits for both directions, so that each packet of a quiet node causes an extra
//! wake-up although a send hardly ever has to wait. This socket registers for reading permanently, and for
//! writing only while a send has found the system's buffer full.

use std::fmt;
use std::future::Future;
use std::io::{self, IoSliceMut};
use std::net::{SocketAddr, UdpSocket};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use quinn::udp::{RecvMeta, Transmit, UdpSocketState};
use quinn::{AsyncTimer, AsyncUdpSocket, Runtime, TokioRuntime, UdpPoller};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::watch;

use super::arrival::{Arrivals, LastArrival};
use super::beat;
use super::hub::Hub;

/// Tokio as quinn's runtime, with the sockets of this module.
#[derive(Debug)]
pub(super) struct QuietRuntime(Hub);

impl QuietRuntime {
    /// Create the runtime. Call this on the tokio runtime that connections live on.
    pub(super) fn start() -> Self {
        Self(Hub::start())
    }
}

impl Runtime for QuietRuntime {
    fn new_timer(&self, at: Instant) -> Pin<Box<dyn AsyncTimer>> {
        Box::pin(BeatTimer::new(Instant::now(), at))
    }

    fn spawn(&self, future: Pin<Box<dyn Future<Output = ()> + Send>>) {
        self.0.drive(future);
    }

    fn wrap_udp_socket(&self, socket: UdpSocket) -> io::Result<Arc<dyn AsyncUdpSocket>> {
        Ok(QuietSocket::new(socket)?)
    }

    fn now(&self) -> Instant {
        TokioRuntime.now()
    }
}

/// A connection's timer. Its deadline is mostly that of a keep-alive, which the next packet postpones. Such a
/// deadline is moved to a beat. Near deadlines (acknowledgements, losses) are not moved.
///
/// Tokio leaves a postponed timer in its place and wakes there once without need. With many packets per
/// second that is cheaper than a new timer, but not for the last packet before silence.
#[derive(Debug)]
struct BeatTimer {
    timer: Pin<Box<dyn AsyncTimer>>,
    made: Instant,
}

/// Minimum age before a timer is replaced.
const TIMER_AGE: Duration = Duration::from_millis(20);

impl BeatTimer {
    fn new(now: Instant, at: Instant) -> Self {
        Self { timer: TokioRuntime.new_timer(on_beat(at)), made: now }
    }
}

impl AsyncTimer for BeatTimer {
    fn reset(mut self: Pin<&mut Self>, at: Instant) {
        let now = Instant::now();
        if at >= now + beat::FAR && now >= self.made + TIMER_AGE {
            self.set(Self::new(now, at));
        } else {
            self.timer.as_mut().reset(on_beat(at));
        }
    }

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        self.timer.as_mut().poll(cx)
    }
}

fn on_beat(at: Instant) -> Instant {
    beat::after(at.into()).into()
}

/// The socket of a node or a client.
#[derive(Debug)]
pub(super) struct QuietSocket {
    io: AsyncFd<UdpSocket>,
    state: UdpSocketState,
    /// True if a send had to wait and no task has found the socket writable since.
    full: AtomicBool,
    sent: watch::Sender<u64>,
    heard: Arrivals,
}

impl QuietSocket {
    /// Create the socket. Call this on the runtime to wake.
    pub(super) fn new(socket: UdpSocket) -> io::Result<Arc<Self>> {
        let state = UdpSocketState::new((&socket).into())?;
        socket.set_nonblocking(true)?;
        let io = register(socket, Interest::READABLE)?;
        let (sent, heard) = (watch::Sender::new(0), Arrivals::default());
        Ok(Arc::new(Self { io, state, full: AtomicBool::new(false), sent, heard }))
    }

    /// Return a channel that changes with every later send, so that a process can wait for its close packet
    /// before it exits.
    pub(super) fn sends(&self) -> watch::Receiver<u64> {
        self.sent.subscribe()
    }

    /// Watch the time of the last packet from `addr`; initially now.
    pub(super) fn watch(&self, addr: SocketAddr) -> LastArrival {
        self.heard.watch(addr)
    }
}

impl AsyncUdpSocket for QuietSocket {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Box::pin(Writable { socket: self, waiting: None })
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        let sent = self.state.send(self.io.get_ref().into(), transmit);
        if sent.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock) {
            self.full.store(true, Ordering::Release);
        }
        if self.sent.receiver_count() > 0 {
            self.sent.send_modify(|sent| *sent += 1);
        }
        sent
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        loop {
            let mut readable = ready!(self.io.poll_read_ready(cx))?;
            // An error means that there was no packet after all. The next packet wakes the task again.
            if let Ok(received) = readable.try_io(|io| self.state.recv(io.get_ref().into(), bufs, meta)) {
                if let Ok(count) = received {
                    self.heard.note(meta.iter().take(count).map(|packet| packet.addr));
                }
                return Poll::Ready(received);
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.io.get_ref().local_addr()
    }

    fn may_fragment(&self) -> bool {
        self.state.may_fragment()
    }

    fn max_transmit_segments(&self) -> usize {
        self.state.max_gso_segments()
    }

    fn max_receive_segments(&self) -> usize {
        self.state.gro_segments()
    }
}

/// Only this part of the socket is printed.
#[expect(
    deprecated,
    reason = "a UdpSocket owns its descriptor, as the replacement for this function requires"
)]
fn register(socket: UdpSocket, interest: Interest) -> io::Result<AsyncFd<UdpSocket>> {
    AsyncFd::with_interest(socket, interest)
}

type Waiting = Pin<Box<dyn Future<Output = io::Result<()>> + Send + Sync>>;

/// One connection's wait for the socket to be writable.
struct Writable {
    socket: Arc<QuietSocket>,
    waiting: Option<Waiting>,
}

impl UdpPoller for Writable {
    fn poll_writable(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.waiting.is_none() {
            if !self.socket.full.load(Ordering::Acquire) {
                return Poll::Ready(Ok(()));
            }
            // Use a separate descriptor, whose registration ends with the wait.
            let socket = self.socket.io.get_ref().try_clone()?;
            self.waiting = Some(Box::pin(async move {
                let io = register(socket, Interest::WRITABLE)?;
                io.writable().await.map(drop)
            }));
        }
        let Some(waiting) = &mut self.waiting else { return Poll::Ready(Ok(())) };
        let writable = ready!(waiting.as_mut().poll(cx));
        self.waiting = None;
        // A send that finds the buffer full again sets the flag again.
        self.socket.full.store(false, Ordering::Release);
        Poll::Ready(writable)
    }
}

impl fmt::Debug for Writable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Writable").field("waits", &self.waiting.is_some()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::future::poll_fn;

    use super::super::socket;
    use super::*;

    fn transmit(to: SocketAddr, contents: &[u8]) -> Transmit<'_> {
        Transmit { destination: to, ecn: None, contents, segment_size: None, src_ip: None }
    }

    async fn receive(socket: &Arc<dyn AsyncUdpSocket>) -> Vec<u8> {
        let mut buffer = vec![0; 64 << 10];
        let mut meta = [RecvMeta::default()];
        let count = poll_fn(|cx| socket.poll_recv(cx, &mut [IoSliceMut::new(&mut buffer)], &mut meta)).await;
        assert_eq!(count.unwrap(), 1);
        buffer.truncate(meta[0].len);
        buffer
    }

    #[tokio::test]
    async fn a_reader_that_waits_already_receives_a_packet() {
        let runtime = QuietRuntime::start();
        let bind = || runtime.wrap_udp_socket(socket::bind("127.0.0.1:0".parse().unwrap()).unwrap());
        let (one, other) = (bind().unwrap(), bind().unwrap());
        let to = other.local_addr().unwrap();
        let waiting = tokio::spawn(async move { (receive(&other).await, other) });
        tokio::task::yield_now().await;
        one.try_send(&transmit(to, b"first")).unwrap();
        let (first, other) = waiting.await.unwrap();
        assert_eq!(first, b"first");
        one.try_send(&transmit(to, b"second")).unwrap();
        assert_eq!(receive(&other).await, b"second");
    }

    #[tokio::test]
    async fn a_send_that_found_the_buffer_full_continues_when_there_is_room() {
        let socket = socket::bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let socket = QuietSocket::new(socket).unwrap();
        socket.full.store(true, Ordering::Release);
        let mut poller = socket.clone().create_io_poller();
        let writable = poll_fn(|cx| poller.as_mut().poll_writable(cx));
        tokio::time::timeout(Duration::from_secs(60), writable).await.unwrap().unwrap();
        assert!(!socket.full.load(Ordering::Acquire));
    }
}
