//! The HTTP server: REST, WebSockets, ingest and MQTT over WebSocket on each of its listeners.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{ConnectInfo, Request};
use catchment_gateway::transport::{Listener, Remote, Stream};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;

/// How long a client may be silent between requests, and take over the head of one.
const HEAD_MAX: Duration = Duration::from_secs(75);
/// Requests at one time on a connection of HTTP/2.
const STREAMS_MAX: u32 = 100;

/// Serves until `stop`; then accepts nothing more and returns once the requests under way are answered.
pub(crate) async fn serve(listener: Listener, router: Router, first_max: Duration, stop: CancellationToken) {
    let stopping = stop.clone();
    let serve = move |stream, remote| connection(stream, remote, router.clone(), first_max, stopping.clone());
    let mut connections = listener.run(stop, serve).await;
    while connections.join_next().await.is_some() {}
}

async fn connection(
    stream: Stream,
    remote: Remote,
    router: Router,
    first_max: Duration,
    stop: CancellationToken,
) {
    let has_asked = CancellationToken::new();
    let asked = has_asked.clone();
    let (address, certificate) = (remote.address, remote.certificate.clone());
    let service = service_fn(move |request: Request<Incoming>| {
        asked.cancel();
        let mut request = request.map(Body::new);
        if let Some(address) = address {
            request.extensions_mut().insert(ConnectInfo(address));
        }
        if let Some(certificate) = &certificate {
            request.extensions_mut().insert(Arc::clone(certificate));
        }
        router.clone().oneshot(request)
    });
    let mut builder = Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(HEAD_MAX);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS_MAX)
        .keep_alive_interval(HEAD_MAX)
        .keep_alive_timeout(HEAD_MAX);
    let connection = builder.serve_connection_with_upgrades(TokioIo::new(stream), service);
    let mut connection = std::pin::pin!(connection);
    // The first request has a limit of its own: before it, this is a socket and no more.
    let is_client = async {
        tokio::select! {
            () = has_asked.cancelled() => true,
            () = remote.ended() => false,
            () = tokio::time::sleep(first_max) => false,
        }
    };
    tokio::select! {
        ended = connection.as_mut() => return report(ended, address),
        is_client = is_client => if !is_client { return },
        () = stop.cancelled() => {}
    }
    drop(remote);
    tokio::select! {
        ended = connection.as_mut() => return report(ended, address),
        () = stop.cancelled() => {}
    }
    connection.as_mut().graceful_shutdown();
    report(connection.await, address);
}

/// What happens to a connection concerns that connection.
fn report<E: std::fmt::Display>(ended: Result<(), E>, address: Option<SocketAddr>) {
    if let Err(error) = ended {
        tracing::debug!(%error, ?address, "an HTTP connection broke");
    }
}
