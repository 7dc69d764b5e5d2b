//! All sockets that clients come to: bound before anything else starts, served once everything does.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use async_trait::async_trait;
use axum::Router;
use catchment_gateway::Gateway;
use catchment_gateway::transport::{Listener, Protocol, Tls, Transport, TransportMetrics};
use catchment_serve::pg::{PgStream, PgTls};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::http;
use crate::settings::Settings;

/// Connections that the system holds until they are accepted; it has a limit of its own (net.core.somaxconn). Where it is reached,
/// clients that come at once in thousands wait for seconds until they try again.
const BACKLOG: u32 = 16_384;

/// Bound listeners.
pub(super) struct Listeners {
    transport: Arc<Transport>,
    /// The one of the PostgreSQL protocol, if this process answers.
    pg: Option<TcpListener>,
    addresses: Vec<(Protocol, SocketAddr)>,
    mqtt: Vec<Listener>,
    http: Vec<Listener>,
    tls: Option<Arc<Tls>>,
    first_request_max: Duration,
}

impl Listeners {
    /// Binds them all, and reads the certificates.
    ///
    /// # Errors
    /// Which address cannot be had, or which file is not good.
    pub(super) fn bind(settings: &Settings, metrics: &TransportMetrics) -> anyhow::Result<Self> {
        let tls = match settings.tls.is_on() {
            true => Some(Tls::load(settings.tls.clone(), metrics.clone())?),
            false => None,
        };
        let transport = Transport::new(&settings.network, tls.clone(), metrics.clone());
        let (mut addresses, mut mqtt, mut http, mut pg) = (Vec::new(), Vec::new(), Vec::new(), None);
        for config in settings.all_listeners() {
            let socket = bind(config.protocol.name(), config.address)?;
            addresses.push((config.protocol, socket.local_addr()?));
            match config.protocol {
                Protocol::Mqtt | Protocol::Mqtts => mqtt.push(transport.listener(socket, &config)?),
                Protocol::Http | Protocol::Https => http.push(transport.listener(socket, &config)?),
                Protocol::Pg => pg = Some(socket),
            }
        }
        let first_request_max = Duration::from_secs(settings.network.opening_s_max);
        Ok(Self { transport, pg, addresses, mqtt, http, tls, first_request_max })
    }

    /// Where they are; the ports are real ones even where 0 was asked for.
    pub(super) fn addresses(&self) -> &[(Protocol, SocketAddr)] {
        &self.addresses
    }

    /// TLS for clients of the PostgreSQL protocol, if there is a certificate.
    pub(super) fn pg_tls(&self) -> Option<Arc<dyn PgTls>> {
        self.transport.has_tls().then(|| Arc::new(Secure(Arc::clone(&self.transport))) as _)
    }

    /// Serves MQTT and HTTP until `stop`. Gives the listener of the PostgreSQL protocol, if there is one.
    pub(super) fn serve(
        self,
        servers: &mut JoinSet<()>,
        gateway: &Arc<Gateway>,
        router: &Router,
        stop: &CancellationToken,
    ) -> Option<TcpListener> {
        for listener in self.http {
            servers.spawn(http::serve(listener, router.clone(), self.first_request_max, stop.clone()));
        }
        for listener in self.mqtt {
            let (gateway, stop) = (Arc::clone(gateway), stop.clone());
            servers.spawn(async move { gateway.serve(listener, stop).await });
        }
        if let Some(tls) = self.tls {
            servers.spawn(tls.follow(stop.clone()));
        }
        self.pg
    }
}

/// What goes over to TLS within the PostgreSQL protocol.
struct Secure(Arc<Transport>);

#[async_trait]
impl PgTls for Secure {
    async fn secure(&self, stream: TcpStream) -> io::Result<Box<dyn PgStream>> {
        Ok(Box::new(self.0.secure(stream, Protocol::Pg).await?))
    }
}

fn bind(flag: &str, address: SocketAddr) -> anyhow::Result<TcpListener> {
    let listen = || {
        let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
        // A restart does not wait for what connections of the last run leave behind.
        socket.set_reuseaddr(true)?;
        socket.bind(address)?;
        socket.listen(BACKLOG)
    };
    listen().with_context(|| {
        format!("{address} cannot be listened on; is another process there? --{flag} ADDR:PORT names another address")
    })
}
