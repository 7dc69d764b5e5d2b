//! What the fuzz targets in `fuzz/targets` need of the inside of this crate, in forms that say no more than is compared or
//! asserted there. No part of the crate's interface: hidden, and free to change with every commit.

mod matching;
mod packet;

use std::net::SocketAddr;
use std::sync::Arc;

use futures::FutureExt;

pub use self::matching::Matching;
pub use self::packet::{Connect, Fault, Packet, Publish, decode, encode_again};
use crate::config::MqttConfig;
use crate::gateway::Gateway;
use crate::metrics::GatewayMetrics;
use crate::mqtt::{self, Broker, Keeper, fuzz as journal};

/// Asserts what must hold of every session, subscription and retained message between two packets.
pub fn check(gateway: &Gateway) {
    gateway.each_broker(Broker::check);
}

/// A file of the session journal with these records, as if written with this nonce.
#[must_use]
pub fn journal_file(records: &[&[u8]], nonce: u32) -> Vec<u8> {
    journal::file(records, nonce)
}

/// Reads a file of the session journal, adds its records up, writes them anew, and puts them into a broker. Asserts that
/// writing anew loses nothing. Gives the number of records that were understood; none: it is no journal.
#[must_use]
pub fn read_journal(file: &[u8]) -> Option<usize> {
    let (image, understood) = journal::read(file)?;
    let config = MqttConfig::default();
    let keeper = Arc::new(Keeper::volatile(&config));
    let broker = Arc::new(Broker::new(
        "main",
        &config,
        GatewayMetrics::default(),
        Arc::clone(&keeper),
        Arc::default(),
    ));
    mqtt::restore(&image, &keeper, |_| Arc::clone(&broker));
    broker.check();
    Some(understood)
}

/// Reads a PROXY header. Gives the client's address if it tells one, and how many bytes are left; none: it is no header, or
/// not a whole one.
#[must_use]
pub fn read_proxy_header(bytes: &[u8]) -> Option<(Option<SocketAddr>, usize)> {
    let mut rest = bytes;
    // A slice is never waited for.
    let source = crate::transport::read_proxy_header(&mut rest).now_or_never()?.ok()?;
    Some((source, rest.len()))
}
