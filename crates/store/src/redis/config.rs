//! How a Redis server is named: a URL, and a section of settings for what is no part of one.
//!
//! ```text
//! redis://[[USER]:PASSWORD@]HOST[:PORT][/DB]        rediss://… with TLS
//! ```
//!
//! A secret is better in a file or in the environment than in a URL; none appears in what is displayed or logged.

use std::fmt;
use std::path::PathBuf;

use ::redis::{
    Client, ConnectionAddr, ConnectionInfo, IntoConnectionInfo, RedisConnectionInfo, TlsCertificates,
};
use serde::{Deserialize, Serialize};
use thiserror::Error;

/// The section `[engines.redis]`. Every field has a default.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RedisConfig {
    /// What all keys and channels begin with.
    pub prefix: String,
    /// A file with the password alone, for a URL that has none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub password_file: Option<PathBuf>,
    /// CAs that the server's certificate leads to, in PEM. None: those of the system.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ca_file: Option<PathBuf>,
    /// Milliseconds for which changes are gathered before they are written.
    pub write_interval_ms: u64,
    /// Whether answers of queries are kept.
    pub cache: bool,
    /// Largest answer that is kept, in bytes.
    pub cache_answer_bytes_max: usize,
    /// How long an answer is kept at most, in seconds.
    pub cache_s_max: u64,
}

impl Default for RedisConfig {
    fn default() -> Self {
        Self {
            prefix: "catchment:".to_owned(),
            password_file: None,
            ca_file: None,
            write_interval_ms: 20,
            cache: true,
            cache_answer_bytes_max: 1 << 20,
            cache_s_max: 60,
        }
    }
}

/// Something that a URL or the section says and that cannot be.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum BadTarget {
    /// Not of this form.
    #[error("a Redis URL is redis://[[USER]:PASSWORD@]HOST[:PORT][/DB], or rediss://… with TLS: {0}")]
    Url(String),
    /// A name that keys cannot begin with.
    #[error("engines.redis.prefix is {0:?}; it has 1 to 64 letters, digits, and - _ . :")]
    Prefix(String),
    /// A file that the section names.
    #[error("engines.redis.{setting} names {}: {reason}", .path.display())]
    File {
        /// Which setting.
        setting: &'static str,
        /// The file.
        path: PathBuf,
        /// Why it does not do.
        reason: String,
    },
}

/// A database of a server, and how to get there. Displayed without secrets.
#[derive(Clone)]
pub struct RedisTarget {
    pub(super) info: ConnectionInfo,
    pub(super) config: RedisConfig,
}

impl RedisTarget {
    /// Reads a URL, and the password's file if the section names one.
    ///
    /// # Errors
    /// Says what is wrong, without what is secret.
    pub fn parse(url: &str, config: &RedisConfig) -> Result<Self, BadTarget> {
        let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_.:".contains(c);
        if !(1..=64).contains(&config.prefix.len()) || !config.prefix.chars().all(is_plain) {
            return Err(BadTarget::Prefix(config.prefix.clone()));
        }
        if url.contains(['?', '#']) {
            return Err(BadTarget::Url("there are no settings behind the database".to_owned()));
        }
        // The library's message names the part, not its text.
        let mut info = url.into_connection_info().map_err(|error| BadTarget::Url(error.to_string()))?;
        if let ConnectionAddr::Unix(_) = info.addr() {
            return Err(BadTarget::Url("there is no host".to_owned()));
        }
        if let (Some(path), None) = (&config.password_file, info.redis_settings().password()) {
            let password = std::fs::read_to_string(path).map_err(|error| BadTarget::File {
                setting: "password_file",
                path: path.clone(),
                reason: error.to_string(),
            })?;
            let settings =
                info.redis_settings().clone().set_password(password.trim_end_matches(['\r', '\n']));
            info = info.set_redis_settings(settings);
        }
        let target = Self { info, config: config.clone() };
        target.client()?;
        Ok(target)
    }

    /// A client, which connects when it is used.
    pub(super) fn client(&self) -> Result<Client, BadTarget> {
        let url = |error: ::redis::RedisError| BadTarget::Url(error.to_string());
        let (true, Some(path)) = (self.is_tls(), &self.config.ca_file) else {
            return Client::open(self.info.clone()).map_err(url);
        };
        let bad = |reason: String| BadTarget::File { setting: "ca_file", path: path.clone(), reason };
        let ca = std::fs::read(path).map_err(|error| bad(error.to_string()))?;
        let certificates = TlsCertificates { client_tls: None, root_cert: Some(ca) };
        Client::build_with_tls(self.info.clone(), certificates).map_err(|error| bad(error.to_string()))
    }

    fn is_tls(&self) -> bool {
        matches!(self.info.addr(), ConnectionAddr::TcpTls { .. })
    }

    /// The section's settings.
    #[must_use]
    pub fn config(&self) -> &RedisConfig {
        &self.config
    }

    fn settings(&self) -> &RedisConnectionInfo {
        self.info.redis_settings()
    }
}

impl PartialEq for RedisTarget {
    fn eq(&self, other: &Self) -> bool {
        let secrets = |target: &Self| {
            (target.settings().username().map(str::to_owned), target.settings().password().map(str::to_owned))
        };
        self.info.addr() == other.info.addr()
            && self.settings().db() == other.settings().db()
            && secrets(self) == secrets(other)
            && self.config == other.config
    }
}

impl Eq for RedisTarget {}

impl fmt::Display for RedisTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.is_tls() { "rediss" } else { "redis" };
        write!(f, "{scheme}://{}/{}", self.info.addr(), self.settings().db())
    }
}

impl fmt::Debug for RedisTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(url: &str) -> Result<RedisTarget, BadTarget> {
        RedisTarget::parse(url, &RedisConfig::default())
    }

    #[test]
    fn urls_are_read_and_shown_without_secrets() {
        let target = parsed("redis://u:se%23cret@h:7000/3").unwrap();
        assert_eq!(target.to_string(), "redis://h:7000/3");
        assert_eq!(format!("{target:?}"), "redis://h:7000/3");
        assert_eq!(target.settings().password(), Some("se#cret"));
        assert_eq!(parsed("redis://h").unwrap().to_string(), "redis://h:6379/0");
        assert_ne!(parsed("redis://:a@h").unwrap(), parsed("redis://:b@h").unwrap());
        for bad in ["redis://", "redis://u:secret@h/x", "redis://u:secret@h:port", "redis://u:secret@h?db=1"]
        {
            let error = parsed(bad).unwrap_err().to_string();
            assert!(!error.contains("secret"), "{bad}: {error}");
        }
    }

    #[test]
    fn the_section_is_checked() {
        let with = |config: RedisConfig| RedisTarget::parse("redis://h", &config);
        let spaced = RedisConfig { prefix: "a b".to_owned(), ..RedisConfig::default() };
        assert!(matches!(with(spaced), Err(BadTarget::Prefix(_))));
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("password");
        std::fs::write(&file, "secret\n").unwrap();
        let config = RedisConfig { password_file: Some(file), ..RedisConfig::default() };
        assert_eq!(with(config).unwrap().settings().password(), Some("secret"));
        let absent = RedisConfig { password_file: Some(dir.path().join("none")), ..RedisConfig::default() };
        assert!(matches!(with(absent), Err(BadTarget::File { setting: "password_file", .. })));
    }
}
