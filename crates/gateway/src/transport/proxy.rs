//! The PROXY protocol, versions 1 and 2, as balancers speak it before the client's own bytes.
//!
//! Source: <https://www.haproxy.org/download/3.0/doc/proxy-protocol.txt>. Version 1 is one line of at most 107 bytes
//! (section 2.1), version 2 a header of 16 bytes, addresses, and TLVs, which are passed over (section 2.2). Exactly the
//! header is read, so that what follows is the client's. Both versions begin with at least 12 bytes that tell them apart.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use thiserror::Error;
use tokio::io::{AsyncRead, AsyncReadExt};

/// What version 2 begins with.
const V2_SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";
/// Longest line of version 1, with its end.
const V1_BYTES_MAX: usize = 107;
/// Longest rest of a version 2 header: addresses and TLVs. Balancers send some hundred bytes, with certificates a few KiB.
const V2_BYTES_MAX: usize = 4096;

/// Why a header is not one.
#[derive(Debug, Error)]
pub(crate) enum ProxyError {
    /// The client sent something else.
    #[error("the connection does not begin with a PROXY header: {0}")]
    Malformed(&'static str),
    /// It ended, or failed.
    #[error("the connection ended within the PROXY header: {0}")]
    Io(#[from] io::Error),
}

/// Reads the header. Gives the client's address; none when the balancer speaks for itself, or does not know.
pub(crate) async fn read(stream: &mut (impl AsyncRead + Unpin)) -> Result<Option<SocketAddr>, ProxyError> {
    let mut start = [0; V2_SIGNATURE.len()];
    stream.read_exact(&mut start).await?;
    if start == V2_SIGNATURE {
        read_v2(stream).await
    } else if start.starts_with(b"PROXY ") {
        read_v1(stream, &start).await
    } else {
        Err(ProxyError::Malformed("neither version 1 nor 2"))
    }
}

async fn read_v1(
    stream: &mut (impl AsyncRead + Unpin),
    start: &[u8],
) -> Result<Option<SocketAddr>, ProxyError> {
    let mut line = [0; V1_BYTES_MAX];
    line[..start.len()].copy_from_slice(start);
    let mut length = start.len();
    // Byte by byte: what follows the line is not ours.
    while !line[..length].ends_with(b"\r\n") {
        if length == V1_BYTES_MAX {
            return Err(ProxyError::Malformed("a line of version 1 without an end"));
        }
        line[length] = stream.read_u8().await?;
        length += 1;
    }
    let text = std::str::from_utf8(&line[..length - 2])
        .map_err(|_| ProxyError::Malformed("a line of version 1 that is not ASCII"))?;
    parse_v1(text).ok_or(ProxyError::Malformed("a line of version 1 with other fields"))
}

/// `PROXY TCP4|TCP6 source destination source-port destination-port`, or `PROXY UNKNOWN …`.
fn parse_v1(line: &str) -> Option<Option<SocketAddr>> {
    let mut words = line.strip_prefix("PROXY ")?.split(' ');
    let family = words.next()?;
    if family == "UNKNOWN" {
        return Some(None);
    }
    let (source, destination) =
        (words.next()?.parse::<IpAddr>().ok()?, words.next()?.parse::<IpAddr>().ok()?);
    let source_port = words.next()?.parse().ok()?;
    words.next()?.parse::<u16>().ok()?;
    let fits = match family {
        "TCP4" => source.is_ipv4() && destination.is_ipv4(),
        "TCP6" => source.is_ipv6() && destination.is_ipv6(),
        _ => false,
    };
    (fits && words.next().is_none()).then(|| Some(SocketAddr::new(source, source_port)))
}

async fn read_v2(stream: &mut (impl AsyncRead + Unpin)) -> Result<Option<SocketAddr>, ProxyError> {
    let mut head = [0; 4];
    stream.read_exact(&mut head).await?;
    let [version_and_command, family, length @ ..] = head;
    let length = usize::from(u16::from_be_bytes(length));
    if length > V2_BYTES_MAX {
        return Err(ProxyError::Malformed("a header of version 2 that is too long"));
    }
    let mut rest = vec![0; length];
    stream.read_exact(&mut rest).await?;
    match version_and_command {
        // LOCAL: a health check of the balancer's own.
        0x20 => Ok(None),
        0x21 => parse_v2(family, &rest)
            .ok_or(ProxyError::Malformed("a header of version 2 that is shorter than its addresses")),
        _ => Err(ProxyError::Malformed("another version or command of version 2")),
    }
}

fn parse_v2(family: u8, rest: &[u8]) -> Option<Option<SocketAddr>> {
    let port = |at: usize| Some(u16::from_be_bytes(rest.get(at..at + 2)?.try_into().ok()?));
    match family {
        // TCP over IPv4: two addresses, two ports.
        0x11 => {
            let source: [u8; 4] = rest.get(..4)?.try_into().ok()?;
            let source_port = port(8)?;
            rest.get(..12)?;
            Some(Some(SocketAddr::new(Ipv4Addr::from(source).into(), source_port)))
        }
        // TCP over IPv6.
        0x21 => {
            let source: [u8; 16] = rest.get(..16)?.try_into().ok()?;
            let source_port = port(32)?;
            rest.get(..36)?;
            Some(Some(SocketAddr::new(Ipv6Addr::from(source).into(), source_port)))
        }
        // Unspecified, Unix sockets, datagrams: the client's address is not to be had.
        _ => Some(None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a header gives, and what of the bytes is left.
    async fn outcome(bytes: &[u8]) -> Result<(Option<String>, usize), String> {
        let mut stream = bytes;
        match read(&mut stream).await {
            Ok(source) => Ok((source.map(|source| source.to_string()), stream.len())),
            Err(error) => Err(error.to_string()),
        }
    }

    fn v2(version_and_command: u8, family: u8, rest: &[u8]) -> Vec<u8> {
        let length = u16::try_from(rest.len()).unwrap().to_be_bytes();
        [&V2_SIGNATURE[..], &[version_and_command, family], &length, rest].concat()
    }

    #[tokio::test]
    async fn version_1_is_read_to_its_end_and_no_further() {
        let read = async |text: &str| outcome(text.as_bytes()).await;
        let source = |text: &str| Some(text.to_owned());
        assert_eq!(
            read("PROXY TCP4 192.0.2.7 10.0.0.1 5000 1883\r\n\x10").await.unwrap(),
            (source("192.0.2.7:5000"), 1)
        );
        assert_eq!(
            read("PROXY TCP6 2001:db8::7 ::1 65535 1883\r\nab").await.unwrap(),
            (source("[2001:db8::7]:65535"), 2)
        );
        assert_eq!(read("PROXY UNKNOWN\r\n").await.unwrap(), (None, 0));
        assert_eq!(read("PROXY UNKNOWN ff:: ff:: 1 2\r\n").await.unwrap(), (None, 0));
        let endless = format!("PROXY TCP4 {}", "1".repeat(200));
        for bad in [
            "PROXY TCP4 192.0.2.7 10.0.0.1 5000\r\n",
            "PROXY TCP4 192.0.2.7 10.0.0.1 5000 1883 9\r\n",
            "PROXY TCP4 ::1 ::1 5000 1883\r\n",
            "PROXY TCP4 192.0.2.7 10.0.0.1 70000 1883\r\n",
            "PROXY TCP4  192.0.2.7 10.0.0.1 5000 1883\r\n",
            "PROXY UDP4 192.0.2.7 10.0.0.1 5000 1883\r\n",
            "PROXX TCP4 192.0.2.7 10.0.0.1 5000 1883\r\n",
            "GET / HTTP/1.1\r\n\r\n",
            endless.as_str(),
        ] {
            assert!(read(bad).await.unwrap_err().contains("does not begin"), "{bad}");
        }
        assert!(read("PROXY TCP4 192").await.unwrap_err().contains("ended"));
    }

    #[tokio::test]
    async fn version_2_is_read_with_what_follows_its_addresses() {
        let v4 = [192, 0, 2, 7, 10, 0, 0, 1, 0x13, 0x88, 0x07, 0x5B];
        let header = [v2(0x21, 0x11, &v4), vec![0x10]].concat();
        assert_eq!(outcome(&header).await.unwrap(), (Some("192.0.2.7:5000".into()), 1));
        // A TLV (PP2_TYPE_AUTHORITY) behind the addresses.
        let with_tlv = v2(0x21, 0x11, &[&v4[..], b"\x02\0\x01x"].concat());
        assert_eq!(outcome(&with_tlv).await.unwrap(), (Some("192.0.2.7:5000".into()), 0));
        let mut v6 = [0; 36];
        (v6[15], v6[33]) = (1, 9);
        assert_eq!(outcome(&v2(0x21, 0x21, &v6)).await.unwrap(), (Some("[::1]:9".into()), 0));
        // LOCAL, unspecified, Unix sockets.
        for unknown in
            [v2(0x20, 0x11, &v4), v2(0x20, 0, &[]), v2(0x21, 0, &[1, 2, 3]), v2(0x21, 0x31, &[0; 216])]
        {
            assert_eq!(outcome(&unknown).await.unwrap(), (None, 0));
        }
        for bad in [
            v2(0x11, 0x11, &v4),
            v2(0x22, 0x11, &v4),
            v2(0x21, 0x11, &v4[..11]),
            v2(0x21, 0x21, &v4),
            v2(0x21, 0x11, &[0; 4097]),
        ] {
            assert!(outcome(&bad).await.unwrap_err().contains("does not begin"), "{bad:?}");
        }
        assert!(outcome(&header[..20]).await.unwrap_err().contains("ended"));
    }
}
