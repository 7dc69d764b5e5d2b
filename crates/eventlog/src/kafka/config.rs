//! How Kafka is named and reached: a URL, and a section of settings for what is no part of one.
//!
//! ```text
//! kafka://[USER[:PASSWORD]@]HOST[:PORT][,HOST[:PORT]…][/TOPIC][?SETTING=VALUE&…]
//! ```
//!
//! Settings of the URL are those of the section ([`KafkaConfig`]) that are one word; the URL is the stronger. A secret is
//! better in a file or in the environment than in a URL; none appears in what is displayed or logged.

use catchment_types::{host_and_port, url_decoded};
use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use thiserror::Error;

const PORT: u16 = 9092;
const TOPIC: &str = "catchment.events";
const TOPIC_CHARS_MAX: usize = 249;
/// Of SASL.
const MECHANISMS: [&str; 3] = ["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"];

/// The section `[engines.kafka]`. Every field has a default.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct KafkaConfig {
    /// How to speak to the brokers. None: in plain text, with SASL if there is a user.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub security: Option<Security>,
    /// Of SASL: PLAIN, SCRAM-SHA-256, SCRAM-SHA-512, …
    pub mechanism: String,
    /// Who we are to SASL; empty: nobody.
    pub user: String,
    /// Its password.
    #[serde(skip_serializing)]
    pub password: Secret,
    /// A file with the password alone, instead.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub password_file: Option<PathBuf>,
    /// CAs that brokers' certificates lead to, in PEM. None: those of the system.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ca_file: Option<PathBuf>,
    /// Our certificate, in PEM, for brokers that ask for one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub certificate_file: Option<PathBuf>,
    /// Its key.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key_file: Option<PathBuf>,
    /// Replicas of a topic that is made. 0: as the brokers have it by default.
    pub replication: u16,
    /// Whether records are deleted that are older than `log.retention_hours` and that history has committed.
    pub trim: bool,
    /// The consumer group of the processes that share a history; empty: `catchment-` and the topic's name.
    pub group: String,
    /// Whether readings and rejects are published, to the topics `{topic}.readings` and `{topic}.rejects`.
    pub publish_readings: bool,
    /// Further settings of librdkafka, by its own names.
    pub client: BTreeMap<String, String>,
}

impl Default for KafkaConfig {
    fn default() -> Self {
        Self {
            security: None,
            mechanism: "PLAIN".to_owned(),
            user: String::new(),
            password: Secret::default(),
            password_file: None,
            ca_file: None,
            certificate_file: None,
            key_file: None,
            replication: 0,
            trim: true,
            group: String::new(),
            publish_readings: false,
            client: BTreeMap::new(),
        }
    }
}

/// How to speak to the brokers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Security {
    /// Neither encrypted nor authenticated.
    Plaintext,
    /// Authenticated, not encrypted.
    SaslPlaintext,
    /// TLS.
    Ssl,
    /// TLS, and authenticated by SASL in it.
    SaslSsl,
}

impl Security {
    const ALL: [Self; 4] = [Self::Plaintext, Self::SaslPlaintext, Self::Ssl, Self::SaslSsl];

    /// As Kafka's clients call it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Plaintext => "plaintext",
            Self::SaslPlaintext => "sasl_plaintext",
            Self::Ssl => "ssl",
            Self::SaslSsl => "sasl_ssl",
        }
    }

    /// Whether SASL is spoken.
    #[must_use]
    pub const fn is_sasl(self) -> bool {
        matches!(self, Self::SaslPlaintext | Self::SaslSsl)
    }

    /// Whether TLS is spoken.
    #[must_use]
    pub const fn is_tls(self) -> bool {
        matches!(self, Self::Ssl | Self::SaslSsl)
    }
}

/// Something that is never shown.
#[derive(Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub struct Secret(String);

impl Secret {
    /// The secret itself.
    #[must_use]
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_empty() { "none" } else { "***" })
    }
}

/// A topic of a cluster, and how to get there. Displayed without secrets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KafkaTarget {
    /// `host:port` of some brokers; the others are learnt from these.
    pub brokers: Vec<String>,
    /// The topic.
    pub topic: String,
    /// The section, with what the URL says in it.
    pub config: KafkaConfig,
}

impl fmt::Display for KafkaTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "kafka://{}/{}", self.brokers.join(","), self.topic)
    }
}

/// A URL of Kafka that means nothing. Does not repeat it: it may have a password.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum BadTarget {
    /// It has another form.
    #[error(
        "a Kafka URL is kafka://HOST:PORT[,HOST:PORT…][/TOPIC][?SETTING=VALUE], but its {part} is {found:?}"
    )]
    Form {
        /// Of the URL.
        part: &'static str,
        /// What is there.
        found: String,
    },
    /// A setting that is unknown, or cannot be in a URL.
    #[error(
        "a Kafka URL takes security, mechanism, user, password_file, ca_file, certificate_file, key_file, replication, \
         trim, group and publish_readings, not {name:?}; other settings stand in [engines.kafka]"
    )]
    Setting {
        /// Its name.
        name: String,
    },
    /// A value that a setting cannot have.
    #[error("the Kafka setting {name} must be {expected}")]
    Value {
        /// Its name.
        name: &'static str,
        /// What it can be.
        expected: &'static str,
    },
}

impl KafkaTarget {
    /// Understands a URL, which stands over `section`.
    ///
    /// # Errors
    /// Says which part of it is wrong.
    pub fn parse(url: &str, section: &KafkaConfig) -> Result<Self, BadTarget> {
        let form = |part, found: &str| BadTarget::Form { part, found: found.to_owned() };
        let rest = url
            .strip_prefix("kafka://")
            .ok_or_else(|| form("scheme", url.split(':').next().unwrap_or("")))?;
        let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (user, rest) = match rest.rsplit_once('@') {
            Some((user, rest)) => (Some(user), rest),
            None => (None, rest),
        };
        let (hosts, topic) = rest.split_once('/').unwrap_or((rest, ""));
        let mut config = section.clone();
        if let Some(user) = user {
            let (name, password) = user.split_once(':').unwrap_or((user, ""));
            config.user = url_decoded(name).ok_or_else(|| form("user", "not UTF-8"))?;
            if !password.is_empty() {
                config.password = Secret(url_decoded(password).ok_or_else(|| form("password", "not UTF-8"))?);
                config.password_file = None;
            }
        }
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            config.set(name, url_decoded(value).ok_or_else(|| form("query", "not UTF-8"))?)?;
        }
        let topic = if topic.is_empty() { TOPIC } else { topic };
        let is_legal = |c: char| c.is_ascii_alphanumeric() || ".-_".contains(c);
        if topic.len() > TOPIC_CHARS_MAX || !topic.chars().all(is_legal) || [".", ".."].contains(&topic) {
            return Err(form("topic", topic));
        }
        let brokers = hosts.split(',').map(|host| broker(host).ok_or_else(|| form("host", host)));
        if !MECHANISMS.contains(&config.mechanism.as_str()) {
            let expected = "PLAIN, SCRAM-SHA-256 or SCRAM-SHA-512";
            return Err(BadTarget::Value { name: "mechanism", expected });
        }
        Ok(Self { brokers: brokers.collect::<Result<_, _>>()?, topic: topic.to_owned(), config })
    }

    /// How to speak to the brokers.
    #[must_use]
    pub fn security(&self) -> Security {
        let unsaid = if self.config.user.is_empty() { Security::Plaintext } else { Security::SaslPlaintext };
        self.config.security.unwrap_or(unsaid)
    }

    /// The consumer group of those who bring the topic's events into a history that they share.
    #[must_use]
    pub fn group(&self) -> String {
        match self.config.group.as_str() {
            "" => format!("catchment-{}", self.topic),
            group => group.to_owned(),
        }
    }
}

impl KafkaConfig {
    fn set(&mut self, name: &str, value: String) -> Result<(), BadTarget> {
        match name {
            "security" => {
                let known = Security::ALL.into_iter().find(|security| security.name() == value);
                let expected = "plaintext, sasl_plaintext, ssl or sasl_ssl";
                self.security = Some(known.ok_or(BadTarget::Value { name: "security", expected })?);
            }
            "mechanism" => self.mechanism = value,
            "user" => self.user = value,
            "password_file" => self.password_file = Some(value.into()),
            "ca_file" => self.ca_file = Some(value.into()),
            "certificate_file" => self.certificate_file = Some(value.into()),
            "key_file" => self.key_file = Some(value.into()),
            "replication" => {
                let expected = "the number of replicas, or 0";
                self.replication =
                    value.parse().map_err(|_| BadTarget::Value { name: "replication", expected })?;
            }
            "trim" => self.trim = flag("trim", &value)?,
            "group" => self.group = value,
            "publish_readings" => self.publish_readings = flag("publish_readings", &value)?,
            name => return Err(BadTarget::Setting { name: name.to_owned() }),
        }
        Ok(())
    }
}

fn flag(name: &'static str, value: &str) -> Result<bool, BadTarget> {
    value.parse().map_err(|_| BadTarget::Value { name, expected: "true or false" })
}

/// `host:port`, with the default port where there is none.
fn broker(text: &str) -> Option<String> {
    let (host, port) = host_and_port(text, PORT)?;
    Some(format!("{host}:{port}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(url: &str) -> Result<KafkaTarget, BadTarget> {
        KafkaTarget::parse(url, &KafkaConfig::default())
    }

    #[test]
    fn urls_are_understood() {
        let target =
            parsed("kafka://a,b.example:9093,[::1]:9094/city.events?replication=3&trim=false").unwrap();
        assert_eq!(target.brokers, ["a:9092", "b.example:9093", "[::1]:9094"]);
        assert_eq!(
            (target.topic.as_str(), target.config.replication, target.config.trim),
            ("city.events", 3, false)
        );
        assert_eq!(target.to_string(), "kafka://a:9092,b.example:9093,[::1]:9094/city.events");
        assert_eq!(parsed("kafka://h").unwrap().topic, TOPIC);
        assert_eq!(parsed("kafka://h").unwrap().security(), Security::Plaintext);
        assert_eq!(parsed("kafka://h/city").unwrap().group(), "catchment-city");
        let target = parsed("kafka://h/city?group=other&publish_readings=true").unwrap();
        assert_eq!((target.group().as_str(), target.config.publish_readings), ("other", true));
    }

    #[test]
    fn the_url_stands_over_the_section_and_hides_its_secrets() {
        let section = KafkaConfig { user: "section".to_owned(), replication: 2, ..KafkaConfig::default() };
        let target = KafkaTarget::parse("kafka://u%40x:p%3Aw@h/t", &section).unwrap();
        assert_eq!((target.config.user.as_str(), target.config.password.reveal()), ("u@x", "p:w"));
        assert_eq!((target.config.replication, target.security()), (2, Security::SaslPlaintext));
        for shown in [format!("{target}"), format!("{target:?}"), toml::to_string(&target.config).unwrap()] {
            assert!(!shown.contains("p:w"), "{shown}");
        }
    }

    #[test]
    fn mistakes_are_told_without_the_url() {
        let message = |url: &str| parsed(url).unwrap_err().to_string();
        assert!(message("kafka://u:secret@/t").contains("its host is \"\""));
        assert!(!message("kafka://u:secret@h:x/t").contains("secret"));
        assert!(message("kafka://h/a/b").contains("its topic is \"a/b\""));
        assert!(message("kafka://h?acks=0").contains("not \"acks\""));
        assert!(message("kafka://h?security=tls").contains("sasl_ssl"));
        assert!(message("kafka://h?trim=maybe").contains("trim must be true or false"));
        assert!(message("kafka://u:p@h?mechanism=GSSAPI").contains("mechanism must be PLAIN, SCRAM-SHA-256"));
    }
}
