//! A guest's standard error: its last bytes become part of the error message when the guest traps.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use annulus_core::wording::one_line;
use parking_lot::Mutex;
use tokio::io::AsyncWrite;
use wasmtime_wasi::cli::{IsTerminal, StdoutStream};

/// Number of bytes kept from the end: enough for a panic message with its source location.
const TAIL_BYTES: usize = 2048;

/// The start of the last line of Rust's panic messages.
const BACKTRACE_HINT: &str = "note: run with `RUST_BACKTRACE";

/// The tail of a guest's stderr. WASI writes to it, and the host state reads it.
#[derive(Clone, Default)]
pub(super) struct Stderr {
    tail: Arc<Mutex<Vec<u8>>>,
}

impl Stderr {
    /// Return the kept bytes as one line of text, and clear them.
    pub(super) fn take(&self) -> String {
        let bytes = std::mem::take(&mut *self.tail.lock());
        let text = String::from_utf8_lossy(&bytes);
        // A panic message has several lines. Join them into one, for the log.
        let lines =
            text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with(BACKTRACE_HINT));
        one_line(&lines.collect::<Vec<_>>().join(" "), usize::MAX).into_owned()
    }

    fn push(&self, bytes: &[u8]) {
        let mut tail = self.tail.lock();
        tail.extend_from_slice(&bytes[bytes.len().saturating_sub(TAIL_BYTES)..]);
        let excess = tail.len().saturating_sub(TAIL_BYTES);
        tail.drain(..excess);
    }
}

impl IsTerminal for Stderr {
    fn is_terminal(&self) -> bool {
        false
    }
}

impl StdoutStream for Stderr {
    fn async_stream(&self) -> Box<dyn AsyncWrite + Send + Sync> {
        Box::new(self.clone())
    }

    // The default implementation passes the bytes to a task. They must be stored before the trap that they explain
    // is reported.
    fn p2_stream(&self) -> Box<dyn wasmtime_wasi::p2::OutputStream> {
        Box::new(self.clone())
    }
}

#[wasmtime_wasi::async_trait]
impl wasmtime_wasi::p2::Pollable for Stderr {
    async fn ready(&mut self) {}
}

impl wasmtime_wasi::p2::OutputStream for Stderr {
    fn write(&mut self, bytes: bytes::Bytes) -> wasmtime_wasi::p2::StreamResult<()> {
        self.push(&bytes);
        Ok(())
    }

    fn flush(&mut self) -> wasmtime_wasi::p2::StreamResult<()> {
        Ok(())
    }

    fn check_write(&mut self) -> wasmtime_wasi::p2::StreamResult<usize> {
        Ok(64 << 10)
    }
}

impl AsyncWrite for Stderr {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.push(bytes);
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
