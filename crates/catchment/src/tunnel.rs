//! TLS for the worlds' MQTT client, which speaks none by itself: it connects to a socket of this process on loopback, and
//! what it says there goes on to the server under TLS. Its own TLS would bring a second, older copy of what verifies
//! certificates.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsConnector;

use crate::trust::Roots;

/// How long the connection and the handshake may take.
const CONNECT_MAX: Duration = Duration::from_secs(10);

/// A way to one server.
struct Tunnel {
    host: String,
    port: u16,
    name: ServerName<'static>,
    tls: TlsConnector,
}

/// Opens a way to `host`, which lasts as long as the runtime. Gives the address to connect to instead.
///
/// # Errors
/// The host has no name that a certificate could have, or there is no socket.
pub(crate) async fn open(host: &str, port: u16, roots: &Roots) -> anyhow::Result<SocketAddr> {
    let name = ServerName::try_from(host.to_owned()).with_context(|| format!("{host} is no host"))?;
    let config: ClientConfig = roots.for_tls()?;
    let tunnel =
        Arc::new(Tunnel { host: host.to_owned(), port, name, tls: TlsConnector::from(Arc::new(config)) });
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    let address = listener.local_addr()?;
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            let tunnel = Arc::clone(&tunnel);
            tokio::spawn(async move { tunnel.carry(client).await });
        }
    });
    Ok(address)
}

impl Tunnel {
    async fn carry(&self, mut client: TcpStream) {
        let connected = tokio::time::timeout(CONNECT_MAX, self.connect()).await;
        match connected.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())) {
            // How it ends is the client's to tell.
            Ok(mut server) => drop(tokio::io::copy_bidirectional(&mut client, &mut server).await),
            Err(error) => tracing::warn!("no TLS connection to {}:{}: {error}", self.host, self.port),
        }
    }

    async fn connect(&self) -> io::Result<tokio_rustls::client::TlsStream<TcpStream>> {
        let stream = TcpStream::connect((self.host.as_str(), self.port)).await?;
        stream.set_nodelay(true)?;
        self.tls.connect(self.name.clone(), stream).await
    }
}
