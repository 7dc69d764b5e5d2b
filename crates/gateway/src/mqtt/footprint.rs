//! What an idle connection holds in memory, so that it does not grow unseen. The allocator rounds each up to its next size:
//! 256, 320, 384, 448, 512, 640, … bytes. Beside these, a connection has its socket's registration with Tokio (256 bytes), the
//! names of client and session, and its entries in the maps of the gateway.

use std::mem::size_of;
use std::sync::Arc;

use futures::FutureExt;
use futures::future::OptionFuture;

use super::connection::Connection;
use super::handshake::serve;
use super::inbound::Intake;
use super::session::Session;
use super::signal::Signal;
use crate::gateway::{Gateway, Registered};
use crate::transport::{Remote, Stream, task};

/// The size of what `function` gives.
fn size_of_output<F>(_function: impl Fn(Arc<Gateway>, Stream, Remote, Registered) -> F) -> usize {
    size_of::<F>()
}

#[test]
fn an_idle_connection_is_small() {
    let task = |gateway, stream: Stream, remote, registered| {
        let serving = serve(gateway, stream, remote, registered);
        task(Box::pin(std::future::ready(Some(OptionFuture::from(Some(serving)).map(drop)))))
    };
    let sizes = [
        ("the future of its task; Tokio adds 96", size_of_output(task), 112),
        ("the future that serves a connection", size_of_output(serve), 64),
        ("the connection", size_of::<Connection<Stream>>(), 448),
        ("the session, with its counts", size_of::<Session>() + 16, 224),
        ("the signal, with its counts", size_of::<Signal>() + 16, 48),
        ("the stream, a part of the connection", size_of::<Stream>(), 64),
        ("what it gets when it publishes", size_of::<Intake>(), 448),
    ];
    for (what, bytes, bytes_max) in sizes {
        println!("{bytes:>5} {what}");
        assert!(bytes <= bytes_max, "{what} has {bytes} bytes, more than {bytes_max}");
    }
}
