//! One client: its socket, with or without TLS, and what is on its way.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::sync::Arc;
use std::time::Instant;

use mio::net::TcpStream;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection};

use super::wire;

/// How far a client has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stage {
    /// TCP, TLS or CONNACK are not done.
    Opening,
    /// It has its CONNACK.
    Open,
}

/// A client.
#[derive(Debug)]
pub(super) struct Client {
    pub(super) socket: TcpStream,
    tls: Option<Box<ClientConnection>>,
    pub(super) stage: Stage,
    pub(super) topic: Box<str>,
    /// When its connection was due.
    pub(super) since: Instant,
    /// Encoded and not with the system yet.
    out: Vec<u8>,
    /// The start of a packet whose rest has not come.
    input: Vec<u8>,
    /// The system takes nothing more for now.
    pub(super) blocked: bool,
    /// It stands in the queue of those that have something to do.
    pub(super) queued: bool,
    last_id: u16,
    /// Publishes that wait for their PUBACK, in order, and since when.
    pub(super) under_way: VecDeque<(u16, Instant)>,
    /// When messages were due that are not sent.
    pub(super) due: VecDeque<Instant>,
}

/// What a packet says, as far as clients here care.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Heard {
    /// CONNACK, with its return code.
    Connected(u8),
    /// PUBACK.
    Acknowledged(u16),
    /// PUBLISH; with an identifier above QoS 0.
    Message(Option<u16>),
    /// SUBACK; whether the subscription was granted.
    Subscribed(bool),
    /// PINGRESP.
    Pong,
}

impl Client {
    pub(super) fn new(
        socket: TcpStream,
        tls: Option<&(Arc<ClientConfig>, ServerName<'static>)>,
        topic: Box<str>,
        since: Instant,
    ) -> io::Result<Self> {
        let tls = tls.map(|(config, name)| ClientConnection::new(Arc::clone(config), name.clone()));
        Ok(Self {
            socket,
            tls: tls.transpose().map_err(io::Error::other)?.map(Box::new),
            stage: Stage::Opening,
            topic,
            since,
            out: Vec::new(),
            input: Vec::new(),
            blocked: true,
            queued: false,
            last_id: 0,
            under_way: VecDeque::new(),
            due: VecDeque::new(),
        })
    }

    /// The next identifier; with windows below 65,535 the oldest is free again by then.
    pub(super) fn next_id(&mut self) -> u16 {
        self.last_id = self.last_id.checked_add(1).unwrap_or(1);
        self.last_id
    }

    /// Whether everything written so far is with the system.
    pub(super) fn is_written(&self) -> bool {
        self.out.is_empty() && self.tls.as_ref().is_none_or(|tls| !tls.wants_write())
    }

    /// Hands bytes to the system, and keeps what it does not take now.
    pub(super) fn write(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        if let Some(tls) = &mut self.tls {
            while !bytes.is_empty() {
                let taken = tls.writer().write(bytes)?;
                bytes = &bytes[taken..];
                if taken == 0 {
                    break;
                }
                if !flush_tls(tls, &mut self.socket)? {
                    self.blocked = true;
                    break;
                }
            }
            self.out.extend_from_slice(bytes);
            return Ok(());
        }
        if self.out.is_empty() && !self.blocked {
            let taken = write_some(&mut self.socket, bytes)?;
            bytes = &bytes[taken..];
            self.blocked = !bytes.is_empty();
        }
        self.out.extend_from_slice(bytes);
        Ok(())
    }

    /// The socket takes bytes again.
    pub(super) fn writable(&mut self) -> io::Result<()> {
        self.blocked = false;
        let waiting = std::mem::take(&mut self.out);
        if let Some(tls) = &mut self.tls
            && !flush_tls(tls, &mut self.socket)?
        {
            self.blocked = true;
            self.out = waiting;
            return Ok(());
        }
        if !waiting.is_empty() {
            self.write(&waiting)?;
        }
        Ok(())
    }

    /// Reads until nothing is left, and hands each packet on. `Ok(false)`: the server has closed. `to_end`: it is known to have.
    pub(super) fn read(
        &mut self,
        buffer: &mut [u8],
        to_end: bool,
        mut heard: impl FnMut(&mut Self, Heard) -> io::Result<()>,
    ) -> io::Result<bool> {
        loop {
            let read = match self.read_some(buffer) {
                Ok(0) => return Ok(false),
                Ok(read) => read,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(true),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            if self.input.is_empty() {
                let taken = self.hear(&buffer[..read], &mut heard)?;
                self.input.extend_from_slice(&buffer[taken..read]);
            } else {
                let mut input = std::mem::take(&mut self.input);
                input.extend_from_slice(&buffer[..read]);
                let taken = self.hear(&input, &mut heard)?;
                input.drain(..taken);
                self.input = input;
            }
            // A short read of a plain socket has emptied it: what comes later is an event of its own.
            if self.tls.is_none() && read < buffer.len() && !to_end {
                return Ok(true);
            }
        }
    }

    fn read_some(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let Some(tls) = &mut self.tls else { return self.socket.read(buffer) };
        loop {
            match tls.reader().read(buffer) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                other => return other,
            }
            if tls.read_tls(&mut self.socket)? == 0 {
                return Ok(0);
            }
            tls.process_new_packets().map_err(io::Error::other)?;
            if !flush_tls(tls, &mut self.socket)? {
                self.blocked = true;
            }
        }
    }

    fn hear(
        &mut self,
        bytes: &[u8],
        heard: &mut impl FnMut(&mut Self, Heard) -> io::Result<()>,
    ) -> io::Result<usize> {
        let mut at = 0;
        while let Some((first, body)) = wire::split(&bytes[at..])? {
            let end = body.end;
            heard(self, understand(first, &bytes[at..][body])?)?;
            at += end;
        }
        Ok(at)
    }
}

fn understand(first: u8, body: &[u8]) -> io::Result<Heard> {
    Ok(match (first & 0xF0, body) {
        (wire::CONNACK, [_, code]) => Heard::Connected(*code),
        (wire::PUBACK, [high, low]) => Heard::Acknowledged(u16::from_be_bytes([*high, *low])),
        (wire::PUBLISH, body) => Heard::Message(wire::publish_id(first, body)),
        (wire::SUBACK, [_, _, code]) => Heard::Subscribed(*code < 0x80),
        (wire::PING_RESPONSE, []) => Heard::Pong,
        _ => {
            return Err(io::Error::other(format!(
                "the server sent a packet {first:#04x} that was not expected"
            )));
        }
    })
}

fn write_some(socket: &mut TcpStream, bytes: &[u8]) -> io::Result<usize> {
    let mut taken = 0;
    while taken < bytes.len() {
        match socket.write(&bytes[taken..]) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(count) => taken += count,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(taken)
}

/// Whether everything went out.
fn flush_tls(tls: &mut ClientConnection, socket: &mut TcpStream) -> io::Result<bool> {
    while tls.wants_write() {
        match tls.write_tls(socket) {
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_server_says_is_understood() {
        assert_eq!(understand(0x20, &[0, 5]).unwrap(), Heard::Connected(5));
        assert_eq!(understand(0x40, &[1, 2]).unwrap(), Heard::Acknowledged(0x0102));
        assert_eq!(understand(0x32, b"\0\x01a\0\x07x").unwrap(), Heard::Message(Some(7)));
        assert_eq!(understand(0x90, &[0, 1, 0x80]).unwrap(), Heard::Subscribed(false));
        assert!(understand(0x10, &[]).is_err());
    }
}
