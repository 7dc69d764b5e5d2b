//! MQTT 3.1.1 as bytes: what clients write, and how they split what they read.

use std::io;
use std::ops::Range;

pub(super) const CONNACK: u8 = 0x20;
pub(super) const PUBLISH: u8 = 0x30;
pub(super) const PUBACK: u8 = 0x40;
pub(super) const SUBACK: u8 = 0x90;
pub(super) const PING_RESPONSE: u8 = 0xD0;

pub(super) const PING_REQUEST: [u8; 2] = [0xC0, 0];
pub(super) const DISCONNECT: [u8; 2] = [0xE0, 0];

/// A packet of 4 bytes of length field is the largest there is.
const LENGTH_BYTES_MAX: usize = 4;

/// Appends CONNECT. The keep-alive is 0: nobody is cut for silence.
pub(super) fn put_connect(out: &mut Vec<u8>, client_id: &str, clean: bool, login: Option<(&str, &str)>) {
    let flags = if clean { 0x02 } else { 0 } | if login.is_some() { 0xC0 } else { 0 };
    let login = login.map(|(user, password)| [user, password]).into_iter().flatten();
    let texts: Vec<&str> = std::iter::once(client_id).chain(login).collect();
    out.push(0x10);
    put_length(out, 10 + texts.iter().map(|text| 2 + text.len()).sum::<usize>());
    put_text(out, "MQTT");
    out.extend_from_slice(&[4, flags, 0, 0]);
    texts.into_iter().for_each(|text| put_text(out, text));
}

/// Appends PUBLISH; at QoS 0 without the identifier.
pub(super) fn put_publish(out: &mut Vec<u8>, qos: u8, topic: &str, packet_id: u16, payload: &[u8]) {
    let id_bytes = if qos > 0 { 2 } else { 0 };
    out.push(PUBLISH | qos << 1);
    put_length(out, 2 + topic.len() + id_bytes + payload.len());
    put_text(out, topic);
    if qos > 0 {
        out.extend_from_slice(&packet_id.to_be_bytes());
    }
    out.extend_from_slice(payload);
}

/// Appends SUBSCRIBE of one filter.
pub(super) fn put_subscribe(out: &mut Vec<u8>, packet_id: u16, filter: &str, qos: u8) {
    out.push(0x82);
    put_length(out, 2 + 2 + filter.len() + 1);
    out.extend_from_slice(&packet_id.to_be_bytes());
    put_text(out, filter);
    out.push(qos);
}

/// Appends PUBACK.
pub(super) fn put_puback(out: &mut Vec<u8>, packet_id: u16) {
    out.extend_from_slice(&[PUBACK, 2]);
    out.extend_from_slice(&packet_id.to_be_bytes());
}

fn put_text(out: &mut Vec<u8>, text: &str) {
    // Client ids, topics and passwords here are far below 64 KiB.
    let length = u16::try_from(text.len()).unwrap_or(u16::MAX);
    out.extend_from_slice(&length.to_be_bytes());
    out.extend_from_slice(&text.as_bytes()[..usize::from(length)]);
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

/// Finds the first packet: its first byte, where its body lies, and where the next begins. None: it is not whole.
pub(super) fn split(bytes: &[u8]) -> io::Result<Option<(u8, Range<usize>)>> {
    let Some(&first) = bytes.first() else { return Ok(None) };
    let mut length = 0usize;
    for (at, &digit) in bytes.iter().enumerate().skip(1).take(LENGTH_BYTES_MAX) {
        length |= usize::from(digit & 0x7F) << (7 * (at - 1));
        if digit & 0x80 == 0 {
            let body = at + 1..at + 1 + length;
            return Ok((body.end <= bytes.len()).then_some((first, body)));
        }
    }
    match bytes.len() > LENGTH_BYTES_MAX {
        true => Err(io::Error::new(io::ErrorKind::InvalidData, "the server sent a length of five bytes")),
        false => Ok(None),
    }
}

/// The packet identifier of a PUBLISH above QoS 0.
pub(super) fn publish_id(first: u8, body: &[u8]) -> Option<u16> {
    let topic = usize::from(u16::from_be_bytes([*body.first()?, *body.get(1)?]));
    let id = body.get(2 + topic..4 + topic).filter(|_| first & 0x06 != 0)?;
    Some(u16::from_be_bytes([id[0], id[1]]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packets_are_as_the_standard_says() {
        let mut out = Vec::new();
        put_connect(&mut out, "c", true, Some(("u", "p")));
        assert_eq!(out, *b"\x10\x13\0\x04MQTT\x04\xC2\0\0\0\x01c\0\x01u\0\x01p");
        out.clear();
        put_publish(&mut out, 1, "a/b", 10, &[7; 200]);
        assert_eq!(out[..10], [0x32, 0xCF, 0x01, 0, 3, b'a', b'/', b'b', 0, 10]);
        assert_eq!(out.len(), 3 + 207);
        let (first, body) = split(&out).unwrap().unwrap();
        assert_eq!((first, body.end, publish_id(first, &out[body])), (0x32, out.len(), Some(10)));
        out.clear();
        put_publish(&mut out, 0, "a", 10, b"x");
        assert_eq!(out, *b"\x30\x04\0\x01ax");
        assert_eq!(publish_id(out[0], &out[2..]), None);
        out.clear();
        put_subscribe(&mut out, 1, "#", 1);
        assert_eq!(out, *b"\x82\x06\0\x01\0\x01#\x01");
    }

    #[test]
    fn packets_are_split_whole() {
        assert_eq!(split(&[]).unwrap(), None);
        assert_eq!(split(&[0x40, 2, 0]).unwrap(), None);
        assert_eq!(split(&[0x40, 2, 0, 1, 0x40]).unwrap(), Some((0x40, 2..4)));
        assert_eq!(split(&[0x30, 0x80]).unwrap(), None);
        assert!(split(&[0x30, 0x80, 0x80, 0x80, 0x80, 1]).is_err());
    }
}
