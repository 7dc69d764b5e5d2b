//! The least of MQTT 3.1.1 that a load generator needs, so that it costs as little CPU as can be beside the server:
//! CONNECT, PUBLISH at QoS 1, PUBACK, written and read by hand over a plain socket.

use std::io;
use std::net::SocketAddr;

use anyhow::{Context, bail};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const CONNACK: u8 = 0x20;
const PUBACK: u8 = 0x40;
const PUBLISH_QOS_1: u8 = 0x32;

/// Connects a client that keeps no session.
pub(super) async fn connect(
    target: SocketAddr,
    client_id: &str,
    token: Option<&str>,
) -> anyhow::Result<TcpStream> {
    let mut stream =
        TcpStream::connect(target).await.with_context(|| format!("no MQTT server answers at {target}"))?;
    stream.set_nodelay(true)?;
    let mut packet = Vec::new();
    let flags = if token.is_some() { 0xC2 } else { 0x02 };
    let texts: Vec<&str> = match token {
        Some(token) => vec![client_id, "token", token],
        None => vec![client_id],
    };
    let length = 10 + texts.iter().map(|text| 2 + text.len()).sum::<usize>();
    packet.push(0x10);
    put_length(&mut packet, length);
    put_text(&mut packet, "MQTT")?;
    // Level 4, flags, no keep-alive.
    packet.extend_from_slice(&[4, flags, 0, 0]);
    for text in texts {
        put_text(&mut packet, text)?;
    }
    stream.write_all(&packet).await?;
    let mut answer = [0; 4];
    stream.read_exact(&mut answer).await.context("the server closed the connection instead of a CONNACK")?;
    match answer {
        [CONNACK, 2, _, 0] => Ok(stream),
        [CONNACK, 2, _, code] => {
            bail!("the server refuses the connection with code {code}; is a --token needed?")
        }
        other => bail!("the server answered {other:02x?} instead of a CONNACK"),
    }
}

/// Appends a PUBLISH at QoS 1.
pub(super) fn put_publish(out: &mut Vec<u8>, topic: &str, packet_id: u16, payload: &[u8]) -> io::Result<()> {
    out.push(PUBLISH_QOS_1);
    put_length(out, 2 + topic.len() + 2 + payload.len());
    put_text(out, topic)?;
    out.extend_from_slice(&packet_id.to_be_bytes());
    out.extend_from_slice(payload);
    Ok(())
}

/// Takes the whole PUBACKs off the front of `input`, handing each packet id on.
pub(super) fn take_pubacks(
    input: &mut Vec<u8>,
    mut acknowledged: impl FnMut(u16) -> io::Result<()>,
) -> io::Result<()> {
    let whole = input.len() / 4 * 4;
    for packet in input[..whole].chunks_exact(4) {
        match *packet {
            [PUBACK, 2, high, low] => acknowledged(u16::from_be_bytes([high, low]))?,
            _ => return Err(io::Error::other(format!("the server sent {packet:02x?} instead of a PUBACK"))),
        }
    }
    input.drain(..whole);
    Ok(())
}

fn put_text(out: &mut Vec<u8>, text: &str) -> io::Result<()> {
    let length = u16::try_from(text.len()).map_err(io::Error::other)?;
    out.extend_from_slice(&length.to_be_bytes());
    out.extend_from_slice(text.as_bytes());
    Ok(())
}

fn put_length(out: &mut Vec<u8>, mut length: usize) {
    loop {
        let digit = (length % 128) as u8;
        length /= 128;
        out.push(if length > 0 { digit | 0x80 } else { digit });
        if length == 0 {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_publish_is_as_the_standard_says() {
        let mut out = Vec::new();
        put_publish(&mut out, "a/b", 10, &[7; 200]).unwrap();
        assert_eq!(out[..3], [0x32, 0xCF, 0x01]);
        assert_eq!(out[3..10], [0, 3, b'a', b'/', b'b', 0, 10]);
        assert_eq!(out.len(), 3 + 207);
    }

    #[test]
    fn pubacks_are_taken_whole() {
        let mut input = vec![0x40, 2, 0, 1, 0x40, 2, 1, 0, 0x40];
        let mut ids = Vec::new();
        take_pubacks(&mut input, |id| {
            ids.push(id);
            Ok(())
        })
        .unwrap();
        assert_eq!((ids, input), (vec![1, 256], vec![0x40]));
        assert!(take_pubacks(&mut vec![0x20, 2, 0, 0], |_| Ok(())).is_err());
    }
}
