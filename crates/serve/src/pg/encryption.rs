//! Before the start-up packet: a client may ask for TLS (`SSLRequest`), and gets it where there is a certificate.
//!
//! Exactly the request is read before the answer: bytes that somebody put behind it in clear text must not be taken for
//! the client's own words under TLS (CVE-2021-23222).

use std::io;

use async_trait::async_trait;
use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;

/// `SSLRequest`, a whole packet.
const SSL_REQUEST: [u8; 8] = [0, 0, 0, 8, 0x04, 0xD2, 0x16, 0x2F];
/// `GSSENCRequest`, which some clients try first.
const GSS_REQUEST: [u8; 8] = [0, 0, 0, 8, 0x04, 0xD2, 0x16, 0x30];

/// A connection's bytes, under TLS.
pub trait PgStream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> PgStream for S {}

/// Goes over to TLS. The composition root has the certificates.
#[async_trait]
pub trait PgTls: Send + Sync {
    /// Shakes hands with a client that asked for it.
    ///
    /// # Errors
    /// The handshake failed.
    async fn secure(&self, stream: TcpStream) -> io::Result<Box<dyn PgStream>>;
}

/// Where a connection's bytes come from and go to.
pub(super) struct Halves {
    pub(super) read: Box<dyn AsyncRead + Send + Unpin>,
    pub(super) write: Box<dyn AsyncWrite + Send + Unpin>,
    /// What was read already.
    pub(super) ahead: BytesMut,
    pub(super) secured: bool,
}

/// Goes over to TLS if the client asks for it and there is a certificate.
pub(super) async fn begin(mut stream: TcpStream, tls: Option<&dyn PgTls>) -> io::Result<Halves> {
    let mut packet = [0; SSL_REQUEST.len()];
    let mut read = 0;
    if let Some(tls) = tls {
        read = read_request(&mut stream, &mut packet).await?;
        if packet[..read] == GSS_REQUEST {
            stream.write_all(b"N").await?;
            read = read_request(&mut stream, &mut packet).await?;
        }
        if packet[..read] == SSL_REQUEST {
            stream.write_all(b"S").await?;
            let (read, write) = tokio::io::split(tls.secure(stream).await?);
            let ahead = BytesMut::new();
            return Ok(Halves { read: Box::new(read), write: Box::new(write), ahead, secured: true });
        }
    }
    let ahead = BytesMut::from(&packet[..read]);
    let (read, write) = stream.into_split();
    Ok(Halves { read: Box::new(read), write: Box::new(write), ahead, secured: false })
}

/// Reads a whole packet if it has the length of a request, and only the length of any other.
async fn read_request(stream: &mut TcpStream, packet: &mut [u8; 8]) -> io::Result<usize> {
    stream.read_exact(&mut packet[..4]).await?;
    if packet[..4] != SSL_REQUEST[..4] {
        return Ok(4);
    }
    stream.read_exact(&mut packet[4..]).await?;
    Ok(8)
}
