//! What waits for a client to read it.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::AsyncWrite;
use tokio::time::Sleep;

use super::connection::KEPT_BYTES_MAX;
use crate::metrics::GatewayMetrics;

/// Bytes on their way to the client.
#[derive(Debug)]
pub(super) struct Output {
    pub(super) bytes: Vec<u8>,
    sent: usize,
    unflushed: bool,
    /// Sent and not reported.
    unreported: u64,
    /// Runs while the client takes nothing.
    stalled: Option<Pin<Box<Sleep>>>,
}

impl Output {
    /// Starts with bytes to send.
    pub(super) fn new(bytes: Vec<u8>) -> Self {
        Self { bytes, sent: 0, unflushed: false, unreported: 0, stalled: None }
    }

    /// Bytes that are not sent yet.
    pub(super) fn len(&self) -> usize {
        self.bytes.len() - self.sent
    }

    /// Counts what was sent since the last report.
    pub(super) fn report(&mut self, metrics: &GatewayMetrics) {
        if self.unreported > 0 {
            metrics.sent_bytes.inc_by(std::mem::take(&mut self.unreported));
        }
    }

    /// Writes until everything is with the system. Ready then, or with `TimedOut` when the client has taken nothing for
    /// `stall_max`.
    pub(super) fn poll_send<S: AsyncWrite + Unpin>(
        &mut self,
        stream: &mut S,
        stall_max: Duration,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<()>> {
        while self.sent < self.bytes.len() {
            let Poll::Ready(written) = Pin::new(&mut *stream).poll_write(cx, &self.bytes[self.sent..]) else {
                return self.poll_stalled(stall_max, cx);
            };
            let written = written?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.sent += written;
            self.unreported += written as u64;
            self.unflushed = true;
            self.stalled = None;
        }
        self.sent = 0;
        self.bytes.clear();
        if self.bytes.capacity() > KEPT_BYTES_MAX {
            self.bytes = Vec::new();
        }
        if self.unflushed {
            let Poll::Ready(flushed) = Pin::new(stream).poll_flush(cx) else {
                return self.poll_stalled(stall_max, cx);
            };
            flushed?;
            self.unflushed = false;
            self.stalled = None;
        }
        Poll::Ready(Ok(()))
    }

    fn poll_stalled(&mut self, stall_max: Duration, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let timer = self.stalled.get_or_insert_with(|| Box::pin(tokio::time::sleep(stall_max)));
        ready!(timer.as_mut().poll(cx));
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }
}
