//! Where a bridge connects to: `mqtt://[user[:password]@]host[:port][/filter]`, `mqtts://` with TLS.
//!
//! User, password and filter may have `%XX` for characters that would end them. The filter is everything after the first
//! `/` behind the host, `#` and all. Nothing shows the password again: not `Display`, not `Debug`, not an error.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::config::Secret;

/// Another broker, and perhaps what to subscribe to there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Address {
    /// Whether TLS is spoken.
    pub tls: bool,
    /// Name or address, without brackets.
    pub host: String,
    /// TCP port; 1883 unless named, 8883 with TLS.
    pub port: u16,
    /// User name.
    pub user: Option<String>,
    /// Its password.
    pub password: Option<Secret>,
    /// What to subscribe to.
    pub filter: Option<String>,
}

/// A text that is no address of a broker. Does not show it: there may be a password in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error(
    "{0}; write mqtt://USER:PASSWORD@HOST:PORT/FILTER, or mqtts:// for TLS; user, password, port and filter may be left out"
)]
pub struct BadAddress(&'static str);

impl FromStr for Address {
    type Err = BadAddress;

    fn from_str(text: &str) -> Result<Self, BadAddress> {
        let scheme = |name: &str| text.strip_prefix(name);
        let (tls, rest) = match (scheme("mqtt://"), scheme("mqtts://")) {
            (Some(rest), _) => (false, rest),
            (_, Some(rest)) => (true, rest),
            _ => return Err(BadAddress("the address of a broker begins with mqtt:// or mqtts://")),
        };
        let (authority, filter) = match rest.split_once('/') {
            Some((authority, filter)) => (authority, Some(filter).filter(|filter| !filter.is_empty())),
            None => (rest, None),
        };
        let (credentials, address) = match authority.rsplit_once('@') {
            Some((credentials, address)) => (Some(credentials), address),
            None => (None, authority),
        };
        let (user, password) = match credentials.map(|text| text.split_once(':').ok_or(text)) {
            None => (None, None),
            Some(Ok((user, password))) => (Some(decoded(user)?), Some(Secret::new(decoded(password)?))),
            Some(Err(user)) => (Some(decoded(user)?), None),
        };
        // The colons of an IPv6 address stand in brackets.
        let (host, port) = match address.rsplit_once(':') {
            Some((host, port)) if !port.contains(']') => {
                let port = port.parse().ok().filter(|&port| port != 0);
                (
                    host,
                    port.ok_or(BadAddress(
                        "the port of the broker's address is not a number from 1 to 65535",
                    ))?,
                )
            }
            _ => (address, if tls { 8883 } else { 1883 }),
        };
        let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        if host.is_empty() {
            return Err(BadAddress("the address of the broker names no host"));
        }
        Ok(Self { tls, host, port, user, password, filter: filter.map(decoded).transpose()? })
    }
}

/// A text with every `%XX` replaced by its byte.
fn decoded(text: &str) -> Result<String, BadAddress> {
    const BAD: BadAddress =
        BadAddress("a % in the broker's address does not begin a byte such as %40; write % as %25");
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        rest = after;
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let (digits, after) = rest.split_first_chunk::<2>().ok_or(BAD)?;
        let digit = |byte: u8| (byte as char).to_digit(16).ok_or(BAD);
        bytes.push((digit(digits[0])? << 4 | digit(digits[1])?) as u8);
        rest = after;
    }
    String::from_utf8(bytes).map_err(|_| BAD)
}

/// Without the password, and without the filter.
impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.tls { "mqtts" } else { "mqtt" };
        let user = self.user.as_ref().map(|user| format!("{user}@")).unwrap_or_default();
        match self.host.contains(':') {
            true => write!(f, "{scheme}://{user}[{}]:{}", self.host, self.port),
            false => write!(f, "{scheme}://{user}{}:{}", self.host, self.port),
        }
    }
}

impl TryFrom<String> for Address {
    type Error = BadAddress;

    fn try_from(text: String) -> Result<Self, BadAddress> {
        text.parse()
    }
}

impl From<Address> for String {
    fn from(address: Address) -> Self {
        let filter = address.filter.as_ref().map(|filter| format!("/{filter}")).unwrap_or_default();
        format!("{address}{filter}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Address {
        text.parse().unwrap()
    }

    #[test]
    fn addresses_are_read_and_shown_without_the_password() {
        let full = read("mqtts://u%40x:p%3Ass@h.example:8884/$share/g/city/#");
        assert_eq!((full.tls, full.host.as_str(), full.port), (true, "h.example", 8884));
        assert_eq!(full.user.as_deref(), Some("u@x"));
        assert_eq!(full.password.as_ref().map(Secret::reveal), Some("p:ss"));
        assert_eq!(full.filter.as_deref(), Some("$share/g/city/#"));
        assert_eq!(full.to_string(), "mqtts://u@x@h.example:8884");
        assert!(!format!("{full:?}").contains("p:ss"));
        assert_eq!(String::from(full), "mqtts://u@x@h.example:8884/$share/g/city/#");
        assert_eq!(read("mqtt://h").port, 1883);
        assert_eq!(read("mqtts://h/").filter, None);
        assert_eq!(read("mqtt://[::1]:1884//a").to_string(), "mqtt://[::1]:1884");
        assert_eq!(read("mqtt://[::1]//a").filter.as_deref(), Some("/a"));
    }

    #[test]
    fn mistakes_do_not_show_what_may_be_a_password() {
        for bad in [
            "http://secret@h",
            "mqtt://",
            "mqtt://u:secret@",
            "mqtt://u:secret@h:port",
            "mqtt://u:secret",
            "mqtt://u:sec%ret@h",
        ] {
            let error = bad.parse::<Address>().unwrap_err().to_string();
            assert!(!error.contains("secret") && !error.contains("sec%"), "{error}");
        }
    }
}
