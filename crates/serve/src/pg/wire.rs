//! Bytes of one connection: frames in, messages out, both bounded.
//!
//! A frame is a type byte, a length of four bytes that counts itself, and a body. The first frames of a connection have no type
//! byte. Reading and writing may be dropped at any await without losing or tearing a frame, so that a statement can be
//! interrupted while it waits for either.

use std::io;

use bytes::{Buf, BufMut, BytesMut};
use pgwire::messages::{DecodeContext, PgWireBackendMessage, PgWireFrontendMessage, ProtocolVersion};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::error::{Fault, PgError, code};

/// Largest start-up frame, in bytes, as in PostgreSQL.
const STARTUP_BYTES_MAX: usize = 10_000;
/// How much of what a client sends ahead is kept while a statement runs, in bytes.
const AHEAD_BYTES_MAX: usize = 1 << 20;
/// Room for input to begin with, in bytes.
const READ_BYTES: usize = 8 << 10;
/// Output is handed to the socket in pieces of about this size, in bytes.
const WRITE_BYTES: usize = 64 << 10;

/// What a client sends.
pub(super) struct Reader {
    half: Box<dyn AsyncRead + Send + Unpin>,
    buffer: BytesMut,
    context: DecodeContext,
    message_bytes_max: usize,
}

impl Reader {
    /// `ahead`: what was read already.
    pub(super) fn new(
        half: Box<dyn AsyncRead + Send + Unpin>,
        ahead: BytesMut,
        message_bytes_max: usize,
    ) -> Self {
        let mut context = DecodeContext::new(ProtocolVersion::PROTOCOL3_0);
        context.awaiting_frontend_ssl = false;
        context.awaiting_frontend_startup = false;
        let mut buffer = ahead;
        buffer.reserve(READ_BYTES);
        Self { half, buffer, context, message_bytes_max }
    }

    /// The next frame without a type byte, with its length; nothing when the client has left before one began.
    pub(super) async fn startup_frame(&mut self) -> Result<Option<BytesMut>, Fault> {
        loop {
            if let Some(frame) = take_frame(&mut self.buffer, 0, STARTUP_BYTES_MAX)? {
                if frame.len() < 8 {
                    return Err(malformed("start-up packet").into());
                }
                return Ok(Some(frame));
            }
            if !self.fill().await? {
                return Ok(None);
            }
        }
    }

    /// The next message; nothing when the client has left between messages.
    pub(super) async fn message(&mut self) -> Result<Option<PgWireFrontendMessage>, Fault> {
        loop {
            if let Some(mut frame) = take_frame(&mut self.buffer, 1, self.message_bytes_max)? {
                if !is_well_formed(&frame) {
                    return Err(malformed("message").into());
                }
                return match PgWireFrontendMessage::decode(&mut frame, &self.context) {
                    Ok(Some(message)) => Ok(Some(message)),
                    Ok(None) => Err(malformed("message").into()),
                    Err(error) => Err(PgError::fatal(code::PROTOCOL_VIOLATION, error.to_string()).into()),
                };
            }
            if !self.fill().await? {
                return Ok(None);
            }
        }
    }

    /// Resolves when the client has gone. What it sends meanwhile is kept, up to a limit.
    pub(super) async fn gone(&mut self) -> io::Error {
        loop {
            if self.buffer.len() >= AHEAD_BYTES_MAX {
                // From here on only a failing write tells.
                std::future::pending::<()>().await;
            }
            match self.half.read_buf(&mut self.buffer).await {
                Ok(0) => return io::ErrorKind::UnexpectedEof.into(),
                Ok(_) => {}
                Err(error) => return error,
            }
        }
    }

    async fn fill(&mut self) -> Result<bool, Fault> {
        match self.half.read_buf(&mut self.buffer).await? {
            0 if self.buffer.is_empty() => Ok(false),
            0 => Err(Fault::Gone(io::ErrorKind::UnexpectedEof.into())),
            _ => Ok(true),
        }
    }
}

fn malformed(what: &str) -> PgError {
    PgError::fatal(code::PROTOCOL_VIOLATION, format!("invalid {what}"))
}

/// Takes a whole frame off the buffer, if it is there. Its length follows `offset` bytes.
fn take_frame(buffer: &mut BytesMut, offset: usize, bytes_max: usize) -> Result<Option<BytesMut>, PgError> {
    let Some(mut length) = buffer.get(offset..offset + 4) else { return Ok(None) };
    let length = length.get_u32() as usize;
    if length < 4 || length > bytes_max {
        let message = format!("message length {length} is not within 4 and {bytes_max} bytes");
        return Err(PgError::fatal(code::PROTOCOL_VIOLATION, message));
    }
    if buffer.len() < offset + length {
        buffer.reserve(offset + length - buffer.len());
        return Ok(None);
    }
    Ok(Some(buffer.split_to(offset + length)))
}

/// Whether the counts inside a frame stay inside it. The codec trusts them.
fn is_well_formed(frame: &[u8]) -> bool {
    fn check(frame: &[u8]) -> Option<()> {
        let mut body = frame.get(5..)?;
        match frame[0] {
            b'P' => {
                skip_text(&mut body)?;
                skip_text(&mut body)?;
                skip_array(&mut body, 4)
            }
            b'B' => {
                skip_text(&mut body)?;
                skip_text(&mut body)?;
                skip_array(&mut body, 2)?;
                for _ in 0..take_count(&mut body)? {
                    let length = i32::from_be_bytes(body.get(..4)?.try_into().ok()?);
                    body = body.get(4 + usize::try_from(length).unwrap_or(0)..)?;
                }
                skip_array(&mut body, 2)
            }
            b'E' => {
                skip_text(&mut body)?;
                (body.len() == 4).then_some(())
            }
            b'D' | b'C' => {
                body = body.get(1..)?;
                skip_text(&mut body)
            }
            b'Q' | b'p' | b'f' => body.contains(&0).then_some(()),
            _ => Some(()),
        }
    }
    fn skip_text(body: &mut &[u8]) -> Option<()> {
        let end = body.iter().position(|byte| *byte == 0)?;
        *body = &body[end + 1..];
        Some(())
    }
    fn take_count(body: &mut &[u8]) -> Option<usize> {
        let count = u16::from_be_bytes(body.get(..2)?.try_into().ok()?);
        *body = &body[2..];
        Some(usize::from(count))
    }
    fn skip_array(body: &mut &[u8], item_bytes: usize) -> Option<()> {
        let count = take_count(body)?;
        *body = body.get(count * item_bytes..)?;
        Some(())
    }
    check(frame).is_some()
}

/// What a client gets.
pub(super) struct Writer {
    half: Box<dyn AsyncWrite + Send + Unpin>,
    buffer: BytesMut,
}

impl Writer {
    pub(super) fn new(half: Box<dyn AsyncWrite + Send + Unpin>) -> Self {
        Self { half, buffer: BytesMut::with_capacity(WRITE_BYTES) }
    }

    /// Appends a message.
    pub(super) fn put(&mut self, message: PgWireBackendMessage) {
        let start = self.buffer.len();
        if let Err(error) = message.encode(&mut self.buffer) {
            // Only a message over the protocol's own limits cannot be encoded; the client must not wait for it.
            self.buffer.truncate(start);
            let told = PgError::fatal(
                code::LIMIT_EXCEEDED,
                format!("the answer does not fit the protocol: {error}"),
            );
            if told.into_message().encode(&mut self.buffer).is_err() {
                self.buffer.truncate(start);
            }
        }
    }

    /// Appends a message whose body `fill` writes. It is all written, or nothing when `fill` fails.
    pub(super) fn put_with<E>(
        &mut self,
        kind: u8,
        fill: impl FnOnce(&mut BytesMut) -> Result<(), E>,
    ) -> Result<(), E> {
        let start = self.buffer.len();
        self.buffer.put_u8(kind);
        self.buffer.put_u32(0);
        if let Err(error) = fill(&mut self.buffer) {
            self.buffer.truncate(start);
            return Err(error);
        }
        // A row is made of values that fit into memory; beyond 4 GiB the limits on answers have long struck.
        let length = u32::try_from(self.buffer.len() - start - 1).unwrap_or(u32::MAX);
        self.buffer[start + 1..start + 5].copy_from_slice(&length.to_be_bytes());
        Ok(())
    }

    /// Whether it is time to hand over what has been put.
    pub(super) fn is_full(&self) -> bool {
        self.buffer.len() >= WRITE_BYTES
    }

    /// Hands everything to the socket. May be dropped: what was not written stays.
    pub(super) async fn flush(&mut self) -> io::Result<()> {
        while !self.buffer.is_empty() {
            if self.half.write_buf(&mut self.buffer).await? == 0 {
                return Err(io::ErrorKind::WriteZero.into());
            }
        }
        // Under TLS a write may still be on its way to the socket.
        self.half.flush().await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: u8, body: &[u8]) -> BytesMut {
        let mut frame = BytesMut::new();
        frame.put_u8(kind);
        frame.put_u32(u32::try_from(body.len() + 4).unwrap());
        frame.put_slice(body);
        frame
    }

    #[test]
    fn frames_wait_for_their_end_and_have_limits() {
        let whole = frame(b'Q', b"select 1\0");
        let mut part = BytesMut::from(&whole[..whole.len() - 1]);
        assert!(take_frame(&mut part, 1, 100).unwrap().is_none());
        part.put_u8(0);
        part.put_slice(b"next");
        assert_eq!(take_frame(&mut part, 1, 100).unwrap().unwrap(), whole);
        assert_eq!(&part[..], b"next");
        assert!(take_frame(&mut frame(b'Q', &[0; 100]), 1, 50).is_err());
        assert!(take_frame(&mut BytesMut::from(&b"Q\0\0\0\x03"[..]), 1, 50).is_err());
    }

    #[test]
    fn counts_that_lie_are_refused() {
        assert!(is_well_formed(&frame(b'P', b"s\0select 1\0\0\x01\0\0\0\x17")));
        assert!(!is_well_formed(&frame(b'P', b"s\0select 1\0\0\x02\0\0\0\x17")));
        assert!(!is_well_formed(&frame(b'P', b"s\0select 1")));
        assert!(is_well_formed(&frame(b'B', b"\0s\0\0\0\0\x02\0\0\0\x01x\xff\xff\xff\xff\0\x01\0\x01")));
        assert!(!is_well_formed(&frame(b'B', b"\0s\0\0\0\0\x01\0\0\0\x09x\0\0")));
        assert!(!is_well_formed(&frame(b'E', b"p\0\0\0")));
        assert!(!is_well_formed(&frame(b'D', b"")));
        assert!(!is_well_formed(&frame(b'Q', b"select 1")));
    }
}
