//! Where to publish to.

use std::fmt;
use std::net::SocketAddr;
use std::str::FromStr;

use thiserror::Error;

const MQTT_PORT: u16 = 1883;
const MQTTS_PORT: u16 = 8883;

/// An MQTT server, written `mqtt://[user[:password]@]host[:port]`, or `mqtts://…` with TLS. Displays without the password.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MqttTarget {
    /// Name or address.
    pub host: String,
    /// TCP port, 1883 unless named, and 8883 with TLS.
    pub port: u16,
    /// Whether it is to be reached by TLS.
    pub tls: bool,
    /// Where to connect to instead, without TLS: who is there goes on to the server.
    pub via: Option<SocketAddr>,
    /// User name and password, where the server asks for them.
    pub credentials: Option<(String, String)>,
}

/// An address that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum BadTarget {
    /// Another scheme, or none.
    #[error(
        "the address {0:?} begins with neither mqtt:// nor mqtts://; write for instance mqtt://127.0.0.1:1883"
    )]
    Scheme(String),
    /// No host.
    #[error("the address {0:?} names no host; write for instance mqtt://127.0.0.1:1883")]
    Host(String),
    /// Not a port.
    #[error("{0:?} is not a port: a number from 1 to 65535")]
    Port(String),
}

impl MqttTarget {
    /// A server without TLS that asks for no credentials.
    #[must_use]
    pub fn new(host: String, port: u16) -> Self {
        Self { host, port, tls: false, via: None, credentials: None }
    }

    /// Where to connect to.
    pub(crate) fn address(&self) -> (String, u16) {
        match self.via {
            Some(via) => (via.ip().to_string(), via.port()),
            None => (self.host.clone(), self.port),
        }
    }
}

impl FromStr for MqttTarget {
    type Err = BadTarget;

    fn from_str(text: &str) -> Result<Self, BadTarget> {
        let (tls, rest) = match text.split_once("://") {
            Some(("mqtt", rest)) => (false, rest),
            Some(("mqtts", rest)) => (true, rest),
            _ => return Err(BadTarget::Scheme(text.to_owned())),
        };
        let rest = rest.trim_end_matches('/');
        let (credentials, address) = match rest.rsplit_once('@') {
            Some((user, address)) => {
                let (user, password) = user.split_once(':').unwrap_or((user, ""));
                (Some((user.to_owned(), password.to_owned())), address)
            }
            None => (None, rest),
        };
        // The colons of an IPv6 address stand in brackets.
        let (host, port) = match address.rsplit_once(':') {
            Some((host, port)) if !port.contains(']') => {
                (host, port.parse().map_err(|_| BadTarget::Port(port.to_owned()))?)
            }
            _ => (address, if tls { MQTTS_PORT } else { MQTT_PORT }),
        };
        let host = host.trim_start_matches('[').trim_end_matches(']');
        if host.is_empty() {
            return Err(BadTarget::Host(text.to_owned()));
        }
        Ok(Self { host: host.to_owned(), port, tls, via: None, credentials })
    }
}

impl fmt::Display for MqttTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let user = self.credentials.as_ref().map(|(user, _)| format!("{user}@")).unwrap_or_default();
        let scheme = if self.tls { "mqtts" } else { "mqtt" };
        if self.host.contains(':') {
            write!(f, "{scheme}://{user}[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{scheme}://{user}{}:{}", self.host, self.port)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_and_shown() {
        let shown = |text: &str| text.parse::<MqttTarget>().map(|target| target.to_string());
        assert_eq!(shown("mqtt://localhost").unwrap(), "mqtt://localhost:1883");
        assert_eq!(shown("mqtt://u:secret@h:1900/").unwrap(), "mqtt://u@h:1900");
        assert_eq!(shown("mqtt://[::1]:1884").unwrap(), "mqtt://[::1]:1884");
        assert_eq!(shown("mqtt://[::1]").unwrap(), "mqtt://[::1]:1883");
        assert_eq!(shown("mqtts://u:p@h").unwrap(), "mqtts://u@h:8883");
        assert_eq!(shown("http://h"), Err(BadTarget::Scheme("http://h".into())));
        assert_eq!(shown("mqtt://:1883"), Err(BadTarget::Host("mqtt://:1883".into())));
        assert_eq!(shown("mqtt://h:x"), Err(BadTarget::Port("x".into())));
    }
}
