//! MQTT over WebSocket: the bytes of binary frames, in order, are the MQTT stream; frames need not align with packets.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use axum::extract::ws::{Message, WebSocket, WebSocketUpgrade};
use axum::extract::{ConnectInfo, State};
use axum::http::{Extensions, HeaderMap, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures::{Sink, Stream};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::gateway::Gateway;
use crate::http::{ErrorBody, refuse_foreign_page};
use crate::transport::{PeerCertificate, Remote};

/// The library's own read buffer would be 128 KiB a connection.
const READ_BUFFER_BYTES: usize = 4 << 10;
/// Largest frame that is sent.
const FRAME_BYTES_MAX: usize = 64 << 10;

/// `GET /mqtt`.
pub(crate) async fn upgrade(
    State(gateway): State<Arc<Gateway>>,
    extensions: Extensions,
    headers: HeaderMap,
    uri: Uri,
    upgrade: WebSocketUpgrade,
) -> Response {
    // A client shows its credentials only in CONNECT, so that a foreign page with good ones is refused here too.
    if let Err(error) = refuse_foreign_page(&gateway, &headers, &uri) {
        return error.into_response();
    }
    let message_bytes_max = gateway.config.mqtt.packet_bytes_max;
    let upgrade = upgrade
        .protocols(["mqtt"])
        .read_buffer_size(READ_BUFFER_BYTES)
        .write_buffer_size(0)
        .max_write_buffer_size(2 * FRAME_BYTES_MAX)
        .max_message_size(message_bytes_max)
        .max_frame_size(message_bytes_max);
    if upgrade.selected_protocol().is_none() {
        let error = ErrorBody::new("subprotocol", "the WebSocket's subprotocol must be mqtt")
            .hint("send Sec-WebSocket-Protocol: mqtt");
        return error.with(StatusCode::BAD_REQUEST).into_response();
    }
    let remote = Remote {
        address: extensions.get::<ConnectInfo<SocketAddr>>().map(|info| info.0),
        certificate: extensions.get::<Arc<PeerCertificate>>().cloned(),
        // The listener's part is over once there is a request.
        opening: None,
    };
    upgrade.on_upgrade(move |socket| async move {
        gateway.serve_stream(WebSocketStream { socket, received: Bytes::new() }, remote).await;
    })
}

/// A WebSocket as a stream of bytes.
struct WebSocketStream {
    socket: WebSocket,
    /// What is left of the last frame.
    received: Bytes,
}

impl AsyncRead for WebSocketStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        while self.received.is_empty() {
            match ready!(Pin::new(&mut self.socket).poll_next(cx)) {
                Some(Ok(Message::Binary(bytes))) => self.received = bytes,
                Some(Ok(Message::Ping(_) | Message::Pong(_))) => {}
                Some(Ok(Message::Close(_))) | None => return Poll::Ready(Ok(())),
                Some(Ok(Message::Text(_))) => {
                    return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, "a text frame")));
                }
                Some(Err(error)) => return Poll::Ready(Err(io::Error::other(error))),
            }
        }
        let length = buffer.remaining().min(self.received.len());
        buffer.put_slice(&self.received.split_to(length));
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for WebSocketStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let mut socket = Pin::new(&mut self.socket);
        ready!(socket.as_mut().poll_ready(cx)).map_err(io::Error::other)?;
        let frame = &bytes[..bytes.len().min(FRAME_BYTES_MAX)];
        socket.start_send(Message::Binary(Bytes::copy_from_slice(frame))).map_err(io::Error::other)?;
        Poll::Ready(Ok(frame.len()))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_flush(cx).map_err(io::Error::other)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_close(cx).map_err(io::Error::other)
    }
}
