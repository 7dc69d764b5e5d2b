//! How ClickHouse is named and reached: a URL, and a section of settings for what is no part of one.
//!
//! ```text
//! clickhouse://[USER[:PASSWORD]@]HOST[:PORT]/DATABASE[?SETTING=VALUE&…]      clickhouses:// is TLS, as secure=true is
//! ```
//!
//! What is spoken is ClickHouse's HTTP interface. Settings of the URL are those of the section ([`ClickHouseConfig`]); the
//! URL is the stronger. A password is better in a file or in the environment than in a URL; none appears in what is
//! displayed or logged.

use catchment_types::{host_and_port, url_decoded};
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use thiserror::Error;

const PORT: u16 = 8123;
const TLS_PORT: u16 = 8443;
const DATABASE_CHARS_MAX: usize = 64;
const FLUSH_INTERVAL_MS_MIN: u64 = 50;
/// So often the time for an insert is doubled.
const SILENCES_MAX: u32 = 4;

/// The section `[engines.clickhouse]`. Every field has a default.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ClickHouseConfig {
    /// Who we are; empty: ClickHouse's user `default`.
    pub user: String,
    /// The user's password.
    #[serde(skip_serializing)]
    pub password: Password,
    /// A file with the password alone, instead.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub password_file: Option<PathBuf>,
    /// Whether TLS is spoken.
    pub secure: bool,
    /// CAs that the server's certificate may lead to besides those of the system, in PEM.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ca_file: Option<PathBuf>,
    /// Rows go to ClickHouse at the latest after this time, milliseconds; at least 50. Queries see them from then on. With
    /// many partitions it is longer: no table gets more than ten inserts a second from one process.
    pub flush_interval_ms: u64,
    /// Most rows of one insert; more go in several.
    pub insert_rows_max: usize,
    /// Payload of one insert, bytes; more goes in several.
    pub insert_bytes_max: usize,
    /// An insert that has no answer after this time is made again, and given twice the time then, milliseconds; at least 1,000.
    pub insert_ms_max: u64,
}

impl Default for ClickHouseConfig {
    fn default() -> Self {
        Self {
            user: String::new(),
            password: Password::default(),
            password_file: None,
            secure: false,
            ca_file: None,
            flush_interval_ms: 1_000,
            insert_rows_max: 500_000,
            insert_bytes_max: 64 << 20,
            insert_ms_max: 30_000,
        }
    }
}

impl ClickHouseConfig {
    /// Time between flushes.
    pub(super) fn flush_interval(&self) -> Duration {
        Duration::from_millis(self.flush_interval_ms.max(FLUSH_INTERVAL_MS_MIN))
    }

    /// Time for an insert, after so many that had no answer in time: where ClickHouse is slow for long, too little time would
    /// never be enough.
    pub(super) fn insert_limit(&self, silences: u32) -> Duration {
        let first = Duration::from_millis(self.insert_ms_max.max(1_000));
        first.saturating_mul(1 << silences.min(SILENCES_MAX))
    }

    fn set(&mut self, name: &str, value: String) -> Result<(), BadClickHouseUrl> {
        let number = |name, value: &str| {
            value.parse().map_err(|_| BadClickHouseUrl::Value { name, expected: "a number" })
        };
        match name {
            "user" => self.user = value,
            "password_file" => self.password_file = Some(value.into()),
            "ca_file" => self.ca_file = Some(value.into()),
            "secure" => {
                let expected = "true or false";
                self.secure =
                    value.parse().map_err(|_| BadClickHouseUrl::Value { name: "secure", expected })?;
            }
            "flush_interval_ms" => self.flush_interval_ms = number("flush_interval_ms", &value)?,
            name => return Err(BadClickHouseUrl::Setting { name: name.to_owned() }),
        }
        Ok(())
    }
}

/// Something that is never shown.
#[derive(Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub struct Password(String);

impl Password {
    /// The password itself.
    #[must_use]
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Password {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_empty() { "none" } else { "***" })
    }
}

/// A database of a server, and how to get there. Displayed without secrets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClickHouseTarget {
    /// Name or address; an IPv6 address in brackets.
    pub host: String,
    /// Of the HTTP interface.
    pub port: u16,
    /// The database, which has a realm's tables.
    pub database: String,
    /// The section, with what the URL says in it.
    pub config: ClickHouseConfig,
}

impl fmt::Display for ClickHouseTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.config.secure { "clickhouses" } else { "clickhouse" };
        write!(f, "{scheme}://{}:{}/{}", self.host, self.port, self.database)
    }
}

/// A URL of ClickHouse that means nothing. Does not repeat it: it may have a password.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum BadClickHouseUrl {
    /// It has another form.
    #[error(
        "a ClickHouse URL is clickhouse://[USER@]HOST[:PORT]/DATABASE[?SETTING=VALUE], but its {part} is {found:?}"
    )]
    Form {
        /// Of the URL.
        part: &'static str,
        /// What is there.
        found: String,
    },
    /// A setting that is unknown, or cannot be in a URL.
    #[error(
        "a ClickHouse URL takes secure, user, password_file, ca_file and flush_interval_ms, not {name:?}; other settings \
         stand in [engines.clickhouse]"
    )]
    Setting {
        /// Its name.
        name: String,
    },
    /// A value that a setting cannot have.
    #[error("the ClickHouse setting {name} must be {expected}")]
    Value {
        /// Its name.
        name: &'static str,
        /// What it can be.
        expected: &'static str,
    },
}

impl ClickHouseTarget {
    /// Understands a URL, which stands over `section`.
    ///
    /// # Errors
    /// Says which part of it is wrong.
    pub fn parse(url: &str, section: &ClickHouseConfig) -> Result<Self, BadClickHouseUrl> {
        let form = |part, found: &str| BadClickHouseUrl::Form { part, found: found.to_owned() };
        let mut config = section.clone();
        let rest = match url.split_once("://") {
            Some(("clickhouse", rest)) => rest,
            Some(("clickhouses", rest)) => {
                config.secure = true;
                rest
            }
            _ => return Err(form("scheme", url.split(':').next().unwrap_or_default())),
        };
        let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
        // A password may have a slash or an @ in it that somebody forgot to encode: the last @ counts.
        let (user, rest) = match rest.rsplit_once('@') {
            Some((user, rest)) => (Some(user), rest),
            None => (None, rest),
        };
        if let Some(user) = user {
            let (name, password) = user.split_once(':').unwrap_or((user, ""));
            config.user = url_decoded(name).ok_or_else(|| form("user", "not UTF-8"))?;
            if !password.is_empty() {
                config.password =
                    Password(url_decoded(password).ok_or_else(|| form("password", "not UTF-8"))?);
                config.password_file = None;
            }
        }
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            config.set(name, url_decoded(value).ok_or_else(|| form("query", "not UTF-8"))?)?;
        }
        let (address, database) = rest.split_once('/').unwrap_or((rest, ""));
        // So it needs no quotes anywhere.
        let is_legal = |c: char| c.is_ascii_alphanumeric() || c == '_';
        if database.is_empty() || database.len() > DATABASE_CHARS_MAX || !database.chars().all(is_legal) {
            return Err(form("database", database));
        }
        let default_port = if config.secure { TLS_PORT } else { PORT };
        let (host, port) = host_and_port(address, default_port).ok_or_else(|| form("host", address))?;
        Ok(Self { host: host.to_owned(), port, database: database.to_owned(), config })
    }

    /// Where HTTP requests go.
    pub(super) fn http_url(&self) -> String {
        let scheme = if self.config.secure { "https" } else { "http" };
        format!("{scheme}://{}:{}/", self.host, self.port)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(url: &str) -> Result<ClickHouseTarget, BadClickHouseUrl> {
        ClickHouseTarget::parse(url, &ClickHouseConfig::default())
    }

    #[test]
    fn urls_are_understood() {
        let target = parsed("clickhouse://db.example:9000/city?flush_interval_ms=250").unwrap();
        assert_eq!(
            (target.host.as_str(), target.port, target.database.as_str()),
            ("db.example", 9000, "city")
        );
        assert_eq!(
            (target.http_url().as_str(), target.config.flush_interval_ms),
            ("http://db.example:9000/", 250)
        );
        assert_eq!(target.to_string(), "clickhouse://db.example:9000/city");
        assert_eq!(parsed("clickhouse://h/d").unwrap().port, 8123);
        assert_eq!(parsed("clickhouse://[::1]/d").unwrap().http_url(), "http://[::1]:8123/");
        for url in ["clickhouses://h/d", "clickhouse://h/d?secure=true"] {
            assert_eq!(parsed(url).unwrap().http_url(), "https://h:8443/");
        }
    }

    #[test]
    fn the_url_stands_over_the_section_and_hides_its_secrets() {
        let section = ClickHouseConfig {
            user: "section".to_owned(),
            password_file: Some("/x".into()),
            ..ClickHouseConfig::default()
        };
        let target = ClickHouseTarget::parse("clickhouse://u%40x:p%3Aw@h/d", &section).unwrap();
        assert_eq!((target.config.user.as_str(), target.config.password.reveal()), ("u@x", "p:w"));
        assert_eq!(target.config.password_file, None);
        let json = serde_json::to_string(&target.config).unwrap();
        for shown in [format!("{target}"), format!("{target:?}"), json] {
            assert!(!shown.contains("p:w"), "{shown}");
        }
    }

    #[test]
    fn mistakes_are_told_without_the_url() {
        let message = |url: &str| parsed(url).unwrap_err().to_string();
        assert!(message("clickhouse://u:secret@/d").contains("its host is \"\""));
        assert!(message("clickhouse://h").contains("its database is \"\""));
        assert!(message("clickhouse://h/a-b").contains("its database is \"a-b\""));
        assert!(message("http://h/d").contains("its scheme is \"http\""));
        assert!(!message("clickhouse://u:secret@h:x/d").contains("secret"));
        assert!(message("clickhouse://h/d?tls=1").contains("not \"tls\""));
        assert!(message("clickhouse://h/d?secure=yes").contains("secure must be true or false"));
    }
}
