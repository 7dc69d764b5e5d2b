//! WebSockets of the platform.

use std::net::TcpStream;
use std::time::Duration;

use anyhow::{Context, anyhow};
use tungstenite::client::IntoClientRequest;
use tungstenite::{Error, HandshakeError, WebSocket};

use super::Client;
use crate::trust::Wire;

/// Opens a WebSocket to the platform. With a timeout, reading gives up after that long so that the caller can look around.
pub(crate) fn open_websocket(
    client: &Client,
    path: &str,
    read_max: Option<Duration>,
) -> anyhow::Result<WebSocket<Wire>> {
    let (host, port) = client.address();
    let scheme = if client.roots.is_some() { "wss" } else { "ws" };
    let mut request = format!("{scheme}://{host}:{port}{path}").into_client_request()?;
    if let Some(token) = &client.token {
        request.headers_mut().insert("authorization", format!("Bearer {token}").parse()?);
    }
    let stream = TcpStream::connect(format!("{host}:{port}"))
        .with_context(|| format!("no answer from {host}:{port}; is `catchment serve` running there?"))?;
    stream.set_nodelay(true)?;
    let wire = match &client.roots {
        Some(roots) => roots.secure(host, stream)?,
        None => Wire::Plain(stream),
    };
    let (socket, _) = tungstenite::client(request, wire).map_err(|error| match error {
        HandshakeError::Failure(Error::Http(response)) => {
            let body = response.body().as_deref().map(String::from_utf8_lossy).unwrap_or_default();
            anyhow!("the platform refuses the WebSocket ({}): {body}", response.status())
        }
        error => anyhow!("the WebSocket cannot be opened: {error}"),
    })?;
    socket.get_ref().socket().set_read_timeout(read_max)?;
    Ok(socket)
}

/// Whether reading merely took too long.
pub(crate) fn is_timeout(error: &Error) -> bool {
    matches!(error, Error::Io(error)
        if matches!(error.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut))
}
