//! A connection's bytes, with or without TLS, and the places that it holds as long as it lives.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::OwnedSemaphorePermit;
use tokio_rustls::server::TlsStream;

use super::leash::Leashed;
use super::limits::AddressPlace;

/// A client's connection.
#[derive(Debug)]
pub struct Stream {
    bytes: Bytes,
    _address: Option<AddressPlace>,
    rare: Option<Box<Rare>>,
}

/// What few connections have.
#[derive(Debug)]
struct Rare {
    /// Of clients with a certificate: what ends the connection once the certificate is no longer good.
    leash: Option<Leashed>,
    _listener: Option<OwnedSemaphorePermit>,
}

#[derive(Debug)]
enum Bytes {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

/// What a connection counts against while it is open.
#[derive(Debug, Default)]
pub(super) struct Places {
    pub(super) address: Option<AddressPlace>,
    pub(super) listener: Option<OwnedSemaphorePermit>,
}

impl Stream {
    pub(super) fn plain(stream: TcpStream, places: Places) -> Self {
        Self::new(Bytes::Plain(stream), None, places)
    }

    pub(super) fn tls(stream: TlsStream<TcpStream>, leash: Option<Leashed>, places: Places) -> Self {
        Self::new(Bytes::Tls(Box::new(stream)), leash, places)
    }

    fn new(bytes: Bytes, leash: Option<Leashed>, places: Places) -> Self {
        let Places { address, listener } = places;
        let is_rare = leash.is_some() || listener.is_some();
        let rare = is_rare.then(|| Box::new(Rare { leash, _listener: listener }));
        Self { bytes, _address: address, rare }
    }

    fn is_cut(&self, cx: &Context<'_>) -> bool {
        let leash = self.rare.as_ref().and_then(|rare| rare.leash.as_ref());
        leash.is_some_and(|leash| leash.is_cut(cx))
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.is_cut(cx) {
            let message = "the client's certificate is no longer good";
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::PermissionDenied, message)));
        }
        match &mut self.bytes {
            Bytes::Plain(stream) => Pin::new(stream).poll_read(cx, buffer),
            Bytes::Tls(stream) => Pin::new(stream).poll_read(cx, buffer),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match &mut self.bytes {
            Bytes::Plain(stream) => Pin::new(stream).poll_write(cx, bytes),
            Bytes::Tls(stream) => Pin::new(stream).poll_write(cx, bytes),
        }
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match &mut self.bytes {
            Bytes::Plain(stream) => Pin::new(stream).poll_write_vectored(cx, slices),
            Bytes::Tls(stream) => Pin::new(stream).poll_write_vectored(cx, slices),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match &self.bytes {
            Bytes::Plain(stream) => stream.is_write_vectored(),
            Bytes::Tls(stream) => stream.is_write_vectored(),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.bytes {
            Bytes::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Bytes::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.bytes {
            Bytes::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Bytes::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}
