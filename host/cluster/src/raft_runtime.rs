//! Tasks, timers and random numbers for openraft: tokio's, by way of `annulus_ground`.

use std::future::Future;
use std::time::Duration;

use annulus_ground::Source;
use annulus_transport::beat;
use openraft::{AsyncRuntime, OptionalSend, TokioInstant, TokioRuntime};
use rand_core_06::RngCore;
use tokio::task::{JoinError, JoinHandle};
use tokio::time::{Sleep, Timeout};

type OneshotSender<T> = <TokioRuntime as AsyncRuntime>::OneshotSender<T>;

/// Like openraft's own runtime, with three differences: its tasks belong to the node that runs Raft, its random
/// numbers are the node's, and a sleep until a point in time waits for the beat after it. openraft sleeps in
/// this way only for its tick, which is as frequent as heartbeats and mostly wakes the thread for nothing.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct GroundRuntime;

impl AsyncRuntime for GroundRuntime {
    type JoinError = JoinError;
    type JoinHandle<T: OptionalSend + 'static> = JoinHandle<T>;
    type Sleep = Sleep;
    type Instant = TokioInstant;
    type TimeoutError = tokio::time::error::Elapsed;
    type Timeout<R, T: Future<Output = R> + OptionalSend> = Timeout<T>;
    type ThreadLocalRng = Drawn;
    type OneshotSender<T: OptionalSend> = OneshotSender<T>;
    type OneshotReceiver<T: OptionalSend> = tokio::sync::oneshot::Receiver<T>;
    type OneshotReceiverError = tokio::sync::oneshot::error::RecvError;

    fn spawn<T>(future: T) -> JoinHandle<T::Output>
    where
        T: Future + OptionalSend + 'static,
        T::Output: OptionalSend + 'static,
    {
        annulus_ground::spawn(future)
    }

    fn sleep(duration: Duration) -> Sleep {
        TokioRuntime::sleep(duration)
    }

    fn sleep_until(deadline: TokioInstant) -> Sleep {
        TokioRuntime::sleep_until(beat::after(deadline))
    }

    fn timeout<R, F: Future<Output = R> + OptionalSend>(duration: Duration, future: F) -> Timeout<F> {
        TokioRuntime::timeout(duration, future)
    }

    fn timeout_at<R, F: Future<Output = R> + OptionalSend>(deadline: TokioInstant, future: F) -> Timeout<F> {
        TokioRuntime::timeout_at(deadline, future)
    }

    fn is_panic(error: &JoinError) -> bool {
        TokioRuntime::is_panic(error)
    }

    fn thread_rng() -> Drawn {
        Drawn
    }

    fn oneshot<T: OptionalSend>() -> (OneshotSender<T>, tokio::sync::oneshot::Receiver<T>) {
        TokioRuntime::oneshot()
    }
}

/// `annulus_ground`'s random numbers, in openraft's version of the interface.
#[derive(Debug)]
pub struct Drawn;

impl RngCore for Drawn {
    fn next_u32(&mut self) -> u32 {
        annulus_ground::random()
    }

    fn next_u64(&mut self) -> u64 {
        annulus_ground::random()
    }

    fn fill_bytes(&mut self, bytes: &mut [u8]) {
        Source.fill(bytes);
    }

    fn try_fill_bytes(&mut self, bytes: &mut [u8]) -> Result<(), rand_core_06::Error> {
        self.fill_bytes(bytes);
        Ok(())
    }
}
