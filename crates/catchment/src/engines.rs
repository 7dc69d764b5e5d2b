//! The one place where engine URLs are resolved.
//!
//! Nothing given, or `file:PATH`, is the embedded engine in one folder. Another scheme names an engine of its own; one that
//! is not in this build answers so by name. Secrets in URLs are never shown.

use std::fmt;
use std::path::{Path, PathBuf};

use catchment_eventlog::kafka::{BadTarget, KafkaConfig, KafkaTarget};
use catchment_store::clickhouse::{BadClickHouseUrl, ClickHouseConfig, ClickHouseTarget};
use catchment_store::redis::{BadTarget as BadRedis, RedisConfig, RedisTarget};
use catchment_store::registry::RegistryPlace;
use catchment_store::storage::Place;
use catchment_store::storage::s3::{BadS3, S3Config, S3Place};
use serde::{Deserialize, Serialize};
use thiserror::Error;

/// Where an engine can be chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Seam {
    Log,
    History,
    Snapshot,
    Registry,
    Archive,
}

impl Seam {
    pub(crate) const ALL: [Self; 5] =
        [Self::Log, Self::History, Self::Snapshot, Self::Registry, Self::Archive];

    /// The flag's name, and the setting's in `[engines]`.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Log => "log",
            Self::History => "history",
            Self::Snapshot => "snapshot",
            Self::Registry => "registry",
            Self::Archive => "archive",
        }
    }

    /// Schemes that name an engine here, with the engine's name.
    const fn schemes(self) -> &'static [(&'static str, &'static str)] {
        match self {
            Self::Log => &[("kafka", "kafka")],
            Self::History => &[("clickhouse", "clickhouse"), ("clickhouses", "clickhouse"), ("s3", "s3")],
            Self::Snapshot => &[("redis", "redis"), ("rediss", "redis")],
            Self::Registry => &[("postgres", "postgres"), ("postgresql", "postgres")],
            Self::Archive => &[("s3", "s3")],
        }
    }

    /// Where the embedded engine keeps things inside the data folder, if it keeps any.
    const fn folder(self) -> Option<&'static str> {
        match self {
            Self::Log => Some("log"),
            Self::History => Some("history"),
            Self::Registry => Some("registry.sqlite"),
            Self::Snapshot | Self::Archive => None,
        }
    }
}

/// The chosen URLs; an empty one is the embedded engine.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct EngineUrls {
    pub(crate) log: String,
    pub(crate) history: String,
    pub(crate) snapshot: String,
    pub(crate) registry: String,
    pub(crate) archive: String,
    /// What is no part of a URL of Kafka.
    pub(crate) kafka: KafkaConfig,
    /// What is no part of a URL of ClickHouse.
    pub(crate) clickhouse: ClickHouseConfig,
    /// What is no part of a URL of S3.
    pub(crate) s3: S3Config,
    /// What is no part of a URL of Redis.
    pub(crate) redis: RedisConfig,
}

impl EngineUrls {
    /// The URL at a seam.
    pub(crate) fn get(&self, seam: Seam) -> Option<&str> {
        let url = match seam {
            Seam::Log => &self.log,
            Seam::History => &self.history,
            Seam::Snapshot => &self.snapshot,
            Seam::Registry => &self.registry,
            Seam::Archive => &self.archive,
        };
        Some(url.as_str()).filter(|url| !url.is_empty())
    }
}

/// What a seam resolves to.
#[derive(Clone, PartialEq, Eq)]
pub(crate) enum Engine {
    /// The embedded engine at this path.
    Embedded(PathBuf),
    /// The embedded engine in this process's memory, rebuilt on start.
    Memory,
    /// A PostgreSQL database, by its URL.
    Postgres(String),
    /// A topic of Kafka.
    Kafka(Box<KafkaTarget>),
    /// A database of ClickHouse.
    ClickHouse(Box<ClickHouseTarget>),
    /// A prefix of a bucket in S3.
    S3(Box<S3Place>),
    /// A database of a Redis server.
    Redis(Box<RedisTarget>),
    /// Nothing.
    Off,
}

impl Engine {
    /// The engine's name, as metrics have it.
    pub(crate) const fn name(&self) -> &'static str {
        match self {
            Self::Embedded(_) => "embedded",
            Self::Memory => "memory",
            Self::Postgres(_) => "postgres",
            Self::Kafka(_) => "kafka",
            Self::ClickHouse(_) => "clickhouse",
            Self::S3(_) => "s3",
            Self::Redis(_) => "redis",
            Self::Off => "off",
        }
    }

    /// Where its files are, if it is one of files: a folder by its whole path, so that others know it by the same name.
    pub(crate) fn place(&self) -> Option<Place> {
        match self {
            Self::Embedded(path) => {
                Some(Place::Folder(std::path::absolute(path).unwrap_or_else(|_| path.clone())))
            }
            Self::S3(place) => Some(Place::S3((**place).clone())),
            _ => None,
        }
    }
}

impl fmt::Display for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Embedded(path) => write!(f, "embedded in {}", path.display()),
            Self::Memory => f.write_str("embedded, in memory"),
            Self::Postgres(url) => RegistryPlace::Postgres(url.clone()).fmt(f),
            Self::Kafka(target) => write!(f, "{target}"),
            Self::ClickHouse(target) => write!(f, "{target}"),
            Self::S3(place) => write!(f, "{place}"),
            Self::Redis(target) => write!(f, "{target}"),
            Self::Off => f.write_str("off"),
        }
    }
}

impl fmt::Debug for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// A URL that no engine of this build answers to.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub(crate) enum BadEngine {
    #[error("the engine {engine} is not in this build; leave --{} away to use the embedded engine", .seam.name())]
    NotBuilt { seam: Seam, engine: &'static str },
    #[error("{url:?} names no engine that --{} knows; it can be left away (embedded), or file:PATH, or {}", .seam.name(), known(*.seam))]
    Unknown { seam: Seam, url: String },
    #[error("--{} takes no file: URL; leave it away", .seam.name())]
    NoFile { seam: Seam },
    #[error("--{}: {reason}", .seam.name())]
    BadTarget { seam: Seam, reason: BadTarget },
    #[error("--{}: {reason}", .seam.name())]
    BadClickHouse { seam: Seam, reason: BadClickHouseUrl },
    #[error("--{}: {reason}", .seam.name())]
    BadS3 { seam: Seam, reason: BadS3 },
    #[error("--{}: {reason}", .seam.name())]
    BadRedis { seam: Seam, reason: BadRedis },
}

/// What the URL at `seam` means, for a data folder.
///
/// # Errors
/// When no engine of this build answers to it.
pub(crate) fn resolve(seam: Seam, urls: &EngineUrls, data: &Path) -> Result<Engine, BadEngine> {
    let Some(url) = urls.get(seam) else {
        return Ok(match (seam, seam.folder()) {
            (_, Some(folder)) => Engine::Embedded(data.join(folder)),
            (Seam::Archive, None) => Engine::Off,
            (_, None) => Engine::Memory,
        });
    };
    let (scheme, rest) = url.split_once(':').unwrap_or(("", url));
    if scheme == "file" {
        let path = rest.strip_prefix("//").unwrap_or(rest);
        return match (path, seam.folder()) {
            (path, None) if seam == Seam::Archive && !path.is_empty() => {
                Ok(Engine::Embedded(PathBuf::from(path)))
            }
            (_, None) => Err(BadEngine::NoFile { seam }),
            ("", Some(folder)) => Ok(Engine::Embedded(data.join(folder))),
            (path, Some(_)) => Ok(Engine::Embedded(PathBuf::from(path))),
        };
    }
    if let (Seam::Registry, "postgres" | "postgresql") = (seam, scheme) {
        return Ok(Engine::Postgres(url.to_owned()));
    }
    if let (Seam::History, "clickhouse" | "clickhouses") = (seam, scheme) {
        let target = ClickHouseTarget::parse(url, &urls.clickhouse);
        return match target {
            Ok(target) => Ok(Engine::ClickHouse(Box::new(target))),
            Err(reason) => Err(BadEngine::BadClickHouse { seam, reason }),
        };
    }
    if cfg!(feature = "kafka") && (seam, scheme) == (Seam::Log, "kafka") {
        let target = KafkaTarget::parse(url, &urls.kafka);
        return match target {
            Ok(target) => Ok(Engine::Kafka(Box::new(target))),
            Err(reason) => Err(BadEngine::BadTarget { seam, reason }),
        };
    }
    if let (Seam::History | Seam::Archive, "s3") = (seam, scheme) {
        let place = S3Place::parse(url, &urls.s3);
        return match place {
            Ok(place) => Ok(Engine::S3(Box::new(place))),
            Err(reason) => Err(BadEngine::BadS3 { seam, reason }),
        };
    }
    if let (Seam::Snapshot, "redis" | "rediss") = (seam, scheme) {
        return match RedisTarget::parse(url, &urls.redis) {
            Ok(target) => Ok(Engine::Redis(Box::new(target))),
            Err(reason) => Err(BadEngine::BadRedis { seam, reason }),
        };
    }
    match seam.schemes().iter().find(|(known, _)| *known == scheme) {
        Some((_, engine)) => Err(BadEngine::NotBuilt { seam, engine }),
        None => Err(BadEngine::Unknown { seam, url: hide_credentials(url) }),
    }
}

/// The URL with what stands between `://` and `@` hidden.
pub(crate) fn hide_credentials(url: &str) -> String {
    match url.split_once("://").map(|(scheme, rest)| (scheme, rest.rsplit_once('@'))) {
        Some((scheme, Some((_, address)))) => format!("{scheme}://***@{address}"),
        _ => url.to_owned(),
    }
}

fn known(seam: Seam) -> String {
    seam.schemes().iter().map(|(scheme, _)| format!("{scheme}://…")).collect::<Vec<_>>().join(" or ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_embedded() {
        let data = Path::new("/d");
        let resolved = |seam| resolve(seam, &EngineUrls::default(), data).unwrap();
        assert_eq!(resolved(Seam::Log), Engine::Embedded("/d/log".into()));
        assert_eq!(resolved(Seam::Registry), Engine::Embedded("/d/registry.sqlite".into()));
        assert_eq!((resolved(Seam::Snapshot), resolved(Seam::Archive)), (Engine::Memory, Engine::Off));
        let resolved = |url: &str| resolve(Seam::Log, &log(url), data);
        assert_eq!(resolved("file:"), Ok(Engine::Embedded("/d/log".into())));
        assert_eq!(resolved("file:///fast/log"), Ok(Engine::Embedded("/fast/log".into())));
    }

    fn log(url: &str) -> EngineUrls {
        EngineUrls { log: url.to_owned(), ..EngineUrls::default() }
    }

    #[test]
    #[cfg(feature = "kafka")]
    fn kafka_is_named_without_its_password() {
        let engine = resolve(Seam::Log, &log("kafka://u:secret@h/t"), Path::new("/d")).unwrap();
        assert_eq!((engine.name(), engine.to_string().as_str()), ("kafka", "kafka://h:9092/t"));
        assert!(!format!("{engine:?}").contains("secret"));
        let error =
            resolve(Seam::Log, &log("kafka://u:secret@h/t?x=1"), Path::new("/d")).unwrap_err().to_string();
        assert!(
            error.starts_with("--log: a Kafka URL takes security,") && !error.contains("secret"),
            "{error}"
        );
    }

    #[test]
    fn clickhouse_is_named_without_its_password() {
        let history = |url: &str| EngineUrls { history: url.to_owned(), ..EngineUrls::default() };
        let engine = resolve(Seam::History, &history("clickhouse://u:secret@h/d"), Path::new("/d")).unwrap();
        assert_eq!((engine.name(), engine.to_string().as_str()), ("clickhouse", "clickhouse://h:8123/d"));
        assert!(!format!("{engine:?}").contains("secret"));
        let error = resolve(Seam::History, &history("clickhouse://u:secret@h"), Path::new("/d")).unwrap_err();
        let error = error.to_string();
        assert!(error.starts_with("--history: a ClickHouse URL is") && !error.contains("secret"), "{error}");
    }

    #[test]
    fn unknown_engines_are_told_what_there_is() {
        let error = resolve(Seam::Log, &log("redis://u:secret@h"), Path::new("/d")).unwrap_err().to_string();
        assert!(error.contains("kafka://…") && !error.contains("secret"), "{error}");
    }

    #[test]
    fn redis_is_named_without_its_password() {
        let urls = |url: &str| EngineUrls { snapshot: url.to_owned(), ..EngineUrls::default() };
        let engine = resolve(Seam::Snapshot, &urls("rediss://u:secret@h/2"), Path::new("/d")).unwrap();
        assert_eq!((engine.name(), engine.to_string().as_str()), ("redis", "rediss://h:6379/2"));
        assert!(!format!("{engine:?}").contains("secret"));
        let error =
            resolve(Seam::Snapshot, &urls("redis://u:secret@h/x"), Path::new("/d")).unwrap_err().to_string();
        assert!(error.starts_with("--snapshot: a Redis URL is") && !error.contains("secret"), "{error}");
    }

    #[test]
    fn a_registry_in_postgresql_hides_its_password() {
        let urls = EngineUrls { registry: "postgresql://u:secret@h/d".to_owned(), ..EngineUrls::default() };
        let engine = resolve(Seam::Registry, &urls, Path::new("/d")).unwrap();
        assert_eq!(engine.to_string(), "postgresql://h/d");
        assert_eq!(format!("{engine:?}"), "postgresql://h/d");
    }

    #[test]
    fn s3_takes_history_and_archive() {
        let urls = EngineUrls {
            history: "s3://lake/city/".to_owned(),
            archive: "s3://cold".to_owned(),
            ..EngineUrls::default()
        };
        let resolved = |seam| resolve(seam, &urls, Path::new("/d")).unwrap();
        assert_eq!(
            (resolved(Seam::History).name(), resolved(Seam::History).to_string().as_str()),
            ("s3", "s3://lake/city")
        );
        assert_eq!(resolved(Seam::Archive).to_string(), "s3://cold");
        for bad in
            ["s3://", "s3://key:secret@lake", "s3://lake/a//b", "s3://lake/../b", "s3://lake/a?x=secret"]
        {
            let urls = EngineUrls { history: bad.to_owned(), ..EngineUrls::default() };
            let error = resolve(Seam::History, &urls, Path::new("/d")).unwrap_err().to_string();
            assert!(error.starts_with("--history: ") && !error.contains("secret"), "{error}");
        }
        let urls = EngineUrls { archive: "file:/cold".to_owned(), ..EngineUrls::default() };
        assert_eq!(resolve(Seam::Archive, &urls, Path::new("/d")), Ok(Engine::Embedded("/cold".into())));
    }

    #[test]
    fn credentials_are_hidden() {
        assert_eq!(hide_credentials("kafka://u:p@h:9092/t"), "kafka://***@h:9092/t");
        assert_eq!(hide_credentials("s3://bucket/x"), "s3://bucket/x");
    }
}
