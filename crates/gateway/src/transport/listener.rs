//! Accepts connections and brings them to where their protocol can begin.

use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use futures::future::OptionFuture;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::certificate::PeerCertificate;
use super::config::{ClientCertificates, ListenerConfig, NetworkConfig, Protocol};
use super::handshake::Secured;
use super::limits::{Addresses, Burst, Opening, Openings};
use super::metrics::TransportMetrics;
use super::network::Network;
use super::proxy::{self, ProxyError};
use super::stream::{Places, Stream};
use super::tls::{Tls, TlsError};

/// Rest after an error of `accept`, which mostly is a lack of file descriptors.
const ACCEPT_REST: Duration = Duration::from_millis(50);

/// What all listeners of a process share.
#[derive(Debug)]
pub struct Transport {
    tls: Option<Arc<Tls>>,
    metrics: TransportMetrics,
    opening_max: Duration,
    addresses: Arc<Addresses>,
    openings: Arc<Openings>,
    /// Places for HTTP connections.
    http: Arc<Semaphore>,
}

/// Where a connection comes from.
#[derive(Debug, Default)]
pub struct Remote {
    /// The client's address; where a balancer speaks the PROXY protocol, as it tells it.
    pub address: Option<SocketAddr>,
    /// The client's certificate, verified.
    pub certificate: Option<Arc<PeerCertificate>>,
    /// To be dropped once the client has been let in. When it [ends](Opening::ended) before, so does the connection.
    pub opening: Option<Opening>,
}

impl Remote {
    /// Resolves when the connection has to end for a newcomer; never, once the client has been let in.
    pub async fn ended(&self) {
        match &self.opening {
            Some(opening) => opening.ended().await,
            None => std::future::pending().await,
        }
    }
}

/// A connection's task: its opening, then what serves it. No async block, which would keep a place for everything that it ever
/// held.
pub(crate) fn task<O, F>(opening: Pin<Box<O>>) -> impl Future<Output = ()>
where
    O: Future<Output = Option<F>>,
    F: Future<Output = ()>,
{
    opening.map(OptionFuture::from).flatten().map(drop)
}

/// A listener that is bound.
#[derive(Debug)]
pub struct Listener {
    tcp: TcpListener,
    protocol: Protocol,
    mode: ClientCertificates,
    proxy_from: Vec<Network>,
    transport: Arc<Transport>,
    refusals: Burst,
}

impl Transport {
    /// Shared by the listeners that [`Self::listener`] makes.
    #[must_use]
    pub fn new(config: &NetworkConfig, tls: Option<Arc<Tls>>, metrics: TransportMetrics) -> Arc<Self> {
        Arc::new(Self {
            openings: Arc::new(Openings::new(config.opening_max, metrics.opening.clone())),
            tls,
            metrics,
            opening_max: Duration::from_secs(config.opening_s_max),
            addresses: Arc::new(Addresses::new(config.connections_per_address_max)),
            http: Arc::new(Semaphore::new(config.http_connections_max)),
        })
    }

    /// A listener on a bound socket.
    ///
    /// # Errors
    /// It needs certificates that there are none of.
    pub fn listener(
        self: &Arc<Self>,
        tcp: TcpListener,
        config: &ListenerConfig,
    ) -> Result<Listener, TlsError> {
        let default = self.tls.as_ref().map(|tls| tls.config.client_certificates).unwrap_or_default();
        let mode = config.client_certificates.unwrap_or(default);
        if config.protocol.is_tls() {
            let tls = self.tls.as_ref().ok_or(TlsError::Settings(
                "a listener with TLS needs a certificate: set tls.certificate and tls.key",
            ))?;
            tls.material().server_config(mode, config.protocol).ok_or(TlsError::Settings(
                "a listener that asks clients for certificates needs a [[tls.client_ca]]",
            ))?;
        }
        Ok(Listener {
            tcp,
            protocol: config.protocol,
            mode,
            proxy_from: config.proxy_protocol_from.clone(),
            transport: Arc::clone(self),
            refusals: Burst::default(),
        })
    }

    /// Whether there is a certificate to serve with.
    #[must_use]
    pub fn has_tls(&self) -> bool {
        self.tls.is_some()
    }

    /// Goes over to TLS on a connection whose client asked for it within its protocol.
    ///
    /// # Errors
    /// The handshake failed; or there is no certificate.
    pub async fn secure(&self, stream: TcpStream, protocol: Protocol) -> std::io::Result<Stream> {
        let tls = self.tls.as_ref().ok_or(std::io::ErrorKind::Unsupported)?;
        let shaken = tls.handshake(stream, ClientCertificates::Off, protocol).await;
        let Secured { stream, leash, .. } = shaken.map_err(std::io::Error::other)?;
        Ok(Stream::tls(stream, leash, Places::default()))
    }
}

impl Listener {
    /// A listener without TLS, PROXY protocol and limits.
    #[must_use]
    pub fn plain(tcp: TcpListener) -> Self {
        let config = NetworkConfig { connections_per_address_max: 0, ..NetworkConfig::default() };
        Self {
            tcp,
            protocol: Protocol::Mqtt,
            mode: ClientCertificates::Off,
            proxy_from: Vec::new(),
            transport: Transport::new(&config, None, TransportMetrics::default()),
            refusals: Burst::default(),
        }
    }

    /// Accepts until `stop`, and hands each connection to `serve` once it is open. Gives the tasks of those that still are.
    ///
    /// A task lives as long as its connection and has room for the future that `serve` gives: keep that small.
    pub async fn run<S, F>(self, stop: CancellationToken, serve: S) -> JoinSet<()>
    where
        S: Fn(Stream, Remote) -> F + Clone + Send + 'static,
        F: Future<Output = ()> + Send + 'static,
    {
        let listener = Arc::new(self);
        let mut tasks = JoinSet::new();
        loop {
            let accepted = tokio::select! {
                biased;
                () = stop.cancelled() => return tasks,
                Some(_) = tasks.join_next(), if !tasks.is_empty() => continue,
                accepted = listener.tcp.accept() => accepted,
            };
            match accepted {
                Ok((stream, from)) => {
                    let (listener, stop, serve) = (Arc::clone(&listener), stop.clone(), serve.clone());
                    listener.transport.metrics.accepted(listener.protocol);
                    let Some(opening) = listener.transport.openings.enter() else {
                        listener.refuse(from, "busy");
                        continue;
                    };
                    // Boxed, so that what a handshake needs is given back after it.
                    let opening = Box::pin(async move {
                        let (stream, remote) = listener.open(stream, from, opening, &stop).await?;
                        Some(serve(stream, remote))
                    });
                    tasks.spawn(task(opening));
                }
                Err(error) => {
                    if let Some(times) = listener.refusals.note() {
                        let listener = listener.protocol.name();
                        tracing::warn!(%error, listener, times, "cannot accept; is the limit of open files reached?");
                    }
                    tokio::time::sleep(ACCEPT_REST).await;
                }
            }
        }
    }

    async fn open(
        &self,
        stream: TcpStream,
        from: SocketAddr,
        opening: Opening,
        stop: &CancellationToken,
    ) -> Option<(Stream, Remote)> {
        // Acknowledgements and answers are small and must not wait. A socket that is already gone shows later.
        let _ = stream.set_nodelay(true);
        let mut address = from;
        let opened = tokio::select! {
            biased;
            () = stop.cancelled() => return None,
            () = opening.ended() => Err("evicted"),
            opened = tokio::time::timeout(self.transport.opening_max, self.begin(stream, &mut address)) => {
                opened.unwrap_or(Err("timeout"))
            }
        };
        match opened {
            Ok((stream, certificate)) => {
                Some((stream, Remote { address: Some(address), certificate, opening: Some(opening) }))
            }
            Err(reason) => {
                self.refuse(address, reason);
                None
            }
        }
    }

    async fn begin(
        &self,
        mut stream: TcpStream,
        address: &mut SocketAddr,
    ) -> Result<(Stream, Option<Arc<PeerCertificate>>), &'static str> {
        let is_http = matches!(self.protocol, Protocol::Http | Protocol::Https);
        let listener = match is_http {
            true => {
                Some(Arc::clone(&self.transport.http).try_acquire_owned().map_err(|_| "connections_max")?)
            }
            false => None,
        };
        if !self.proxy_from.is_empty() {
            if !self.proxy_from.iter().any(|network| network.contains(address.ip())) {
                return Err("proxy_untrusted");
            }
            let source = proxy::read(&mut stream).await.map_err(|error| {
                tracing::debug!(%error, %address, "no PROXY header");
                match error {
                    ProxyError::Malformed(_) => "proxy_header",
                    ProxyError::Io(_) => "gone",
                }
            })?;
            *address = source.unwrap_or(*address);
        }
        let place = self.transport.addresses.enter(address.ip()).map_err(|()| "address_max")?;
        let places = Places { address: place, listener };
        match &self.transport.tls {
            Some(tls) if self.protocol.is_tls() => {
                let Secured { stream, certificate, leash } =
                    tls.handshake(stream, self.mode, self.protocol).await?;
                Ok((Stream::tls(stream, leash, places), certificate))
            }
            _ => Ok((Stream::plain(stream, places), None)),
        }
    }

    /// Counts a connection that is let go, and says so in the log once a burst.
    fn refuse(&self, from: SocketAddr, reason: &'static str) {
        let listener = self.protocol.name();
        self.transport.metrics.refused(self.protocol, reason);
        tracing::debug!(%from, listener, reason, "connection refused");
        // Clients that leave are no news.
        if reason != "gone"
            && let Some(times) = self.refusals.note()
        {
            tracing::warn!(%from, listener, reason, times, "connections are refused; catchment_listener_refused_total tells why");
        }
    }
}
