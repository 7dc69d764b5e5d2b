//! The PROXY header: what a balancer, or somebody who claims to be one, sends first.
#![no_main]

use std::net::SocketAddr;

use catchment_gateway::fuzzing::read_proxy_header;
use libfuzzer_sys::fuzz_target;

/// The longest header of either version.
const BYTES_MAX: usize = 16 + 4096;

fuzz_target!(|bytes: &[u8]| {
    let Some((source, left)) = read_proxy_header(bytes) else { return };
    let header = &bytes[..bytes.len() - left];
    assert!(header.len() <= BYTES_MAX, "{} bytes were read", header.len());
    // Exactly the header is read, whatever follows.
    assert_eq!(read_proxy_header(header), Some((source, 0)));
    assert_eq!(read_proxy_header(&header[..header.len() - 1]), None);
    let Some(source) = source else { return };
    let family = if source.is_ipv4() { "TCP4" } else { "TCP6" };
    let again = format!("PROXY {family} {ip} {ip} {port} 1\r\n", ip = source.ip(), port = source.port());
    // The address of an interface (%1) has no place in a header.
    let plain = SocketAddr::new(source.ip(), source.port());
    assert_eq!(read_proxy_header(again.as_bytes()), Some((Some(plain), 0)), "{again}");
});
