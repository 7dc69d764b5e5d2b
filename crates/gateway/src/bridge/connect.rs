//! Opening a connection to another broker: TCP, TLS, CONNECT, CONNACK.

use std::io;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::config::BridgeConfig;
use super::tls;
use crate::mqtt::{self, Answer, ConnectRequest, FarEnd, FarLink, Framed, QoS, Version};

/// Longest CONNACK.
const ANSWER_BYTES_MAX: usize = 64 << 10;

/// A connection's bytes, with TLS or without.
pub(super) trait Wire: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Wire for T {}

/// A connection that was let in.
pub(super) struct Opened {
    pub(super) stream: Box<dyn Wire>,
    pub(super) answer: Answer,
    /// What came behind the answer.
    pub(super) rest: Vec<u8>,
}

fn failed(reason: &'static str, what: impl Into<String>) -> FarEnd {
    FarEnd { reason, what: what.into() }
}

/// Connects.
pub(super) async fn open(
    config: &BridgeConfig,
    link: &FarLink,
    client_id: &str,
    receive_maximum: u16,
) -> Result<Opened, FarEnd> {
    let limit = Duration::from_secs(config.connect_s_max);
    match tokio::time::timeout(limit, attempt(config, link, client_id, receive_maximum)).await {
        Ok(opened) => opened,
        Err(_) => Err(failed("timeout", format!("not connected within {} s", config.connect_s_max))),
    }
}

async fn attempt(
    config: &BridgeConfig,
    link: &FarLink,
    client_id: &str,
    receive_maximum: u16,
) -> Result<Opened, FarEnd> {
    let password = password(config).map_err(|what| failed("settings", what))?;
    let secured = match config.url.tls {
        true => Some(tls::client_config(config).map_err(|what| failed("settings", what))?),
        false => None,
    };
    let socket = TcpStream::connect((&*config.url.host, config.url.port)).await;
    let socket = socket.map_err(|error| failed("network", error.to_string()))?;
    socket.set_nodelay(true).map_err(|error| failed("network", error.to_string()))?;
    let mut stream: Box<dyn Wire> = match secured {
        None => Box::new(socket),
        Some((tls, name)) => {
            let secured = TlsConnector::from(tls).connect(name, socket).await;
            Box::new(secured.map_err(|error| failed("tls", format!("the TLS handshake failed: {error}")))?)
        }
    };
    let mut output = Vec::new();
    mqtt::connect(
        &mut output,
        &ConnectRequest {
            version: link.version,
            says_bridge: config.says_bridge,
            client_id,
            keep_alive_s: config.keep_alive_s,
            username: config.user(),
            password: password.as_deref(),
            session_expiry_s: config.session_expiry_s,
            receive_maximum,
            packet_bytes_max: u32::try_from(config.packet_bytes_max).unwrap_or(u32::MAX),
            instance: link.stamp.instance(),
        },
    );
    let exchanged = async {
        stream.write_all(&output).await?;
        stream.flush().await?;
        answer(&mut stream, link.version).await
    };
    let (answer, rest) = match exchanged.await {
        Ok(Ok(answered)) => answered,
        Ok(Err(detail)) => return Err(failed("protocol_error", detail)),
        // TLS 1.3 tells of a certificate that is not wanted, or missing, only now.
        Err(error) => {
            let reason = if config.url.tls { "tls" } else { "network" };
            return Err(failed(
                reason,
                format!("the broker ended the connection before it answered: {error}"),
            ));
        }
    };
    judge(&answer, link)?;
    Ok(Opened { stream, answer, rest })
}

/// The password, from wherever; of a file its first line.
pub(super) fn password(config: &BridgeConfig) -> Result<Option<Vec<u8>>, String> {
    let given = config.url.password.as_ref().or(config.password.as_ref());
    match (&config.password_file, given) {
        (Some(path), _) => {
            let bytes = tls::read(path)?;
            let line = bytes.split(|&byte| byte == b'\n').next().unwrap_or_default();
            Ok(Some(line.strip_suffix(b"\r").unwrap_or(line).to_vec()))
        }
        (None, given) => Ok(given.map(|secret| secret.reveal().as_bytes().to_vec())),
    }
}

/// CONNACK and what came behind it; the inner error is the broker's, against the standard.
async fn answer(
    stream: &mut Box<dyn Wire>,
    version: Version,
) -> io::Result<Result<(Answer, Vec<u8>), &'static str>> {
    let mut bytes = Vec::new();
    let mut chunk = [0; 1024];
    loop {
        match mqtt::frame(&bytes, ANSWER_BYTES_MAX) {
            Ok(Framed::Packet(packet)) => {
                let answer = mqtt::decode_connack(&packet, version).map_err(|error| error.detail);
                return Ok(answer.map(|answer| (answer, bytes[packet.length..].to_vec())));
            }
            Ok(Framed::Partial(_)) => {
                let read = stream.read(&mut chunk).await?;
                if read == 0 {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
                bytes.extend_from_slice(&chunk[..read]);
            }
            Err(error) => return Ok(Err(error.detail)),
        }
    }
}

/// Whether we are in, and whether what the broker can do is enough.
fn judge(answer: &Answer, link: &FarLink) -> Result<(), FarEnd> {
    const WRONG: &str = "user or password are wrong, or this user may not connect";
    let (reason, said) = match (link.version, answer.code) {
        (_, 0) => ("", ""),
        (Version::V5, 0x86) => ("bad_credentials", WRONG),
        (Version::V5, 0x87) => ("not_authorized", WRONG),
        (Version::V5, code) if code >= 0x80 => (mqtt::reason_name(code), mqtt::reason_name(code)),
        (_, 1) => ("unsupported_version", "it does not speak this version of MQTT; set version"),
        (_, 2) => ("client_id_not_valid", "the client id is refused; set client_id"),
        (_, 3) => ("server_unavailable", "it is not available"),
        (_, 4) => ("bad_credentials", WRONG),
        (_, 5) => ("not_authorized", WRONG),
        _ => ("unspecified", "no reason is given"),
    };
    if answer.code != 0 {
        let words = if answer.reason.is_empty() { String::new() } else { format!(" ({})", answer.reason) };
        return Err(failed(reason, format!("the broker refused the connection: {said}{words}")));
    }
    let qos_max = link.offered.iter().map(|(_, qos)| *qos).max().unwrap_or(QoS::AtMostOnce);
    if qos_max > answer.qos_max {
        let what =
            format!("the broker takes QoS {} at the most; set qos of [[bridges.out]]", answer.qos_max as u8);
        return Err(failed("qos_not_supported", what));
    }
    if !answer.shares && link.wanted.iter().any(|(filter, ..)| filter.starts_with("$share/")) {
        return Err(failed("shared_not_supported", "the broker has no shared subscriptions"));
    }
    Ok(())
}
