//! What a process does, and what it has to share with others for that.

use anyhow::ensure;
use serde::{Deserialize, Deserializer, Serialize};

use super::Settings;
use crate::engines::Seam;

/// A part of the work that a process can take on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum ProcessRole {
    /// Takes devices in: MQTT, HTTP ingest, bridges.
    Gateway,
    /// Decodes the log into snapshot and history.
    Distributor,
    /// Answers: REST, WebSocket, SQL, the PostgreSQL protocol.
    Api,
}

impl ProcessRole {
    pub(crate) const ALL: [Self; 3] = [Self::Gateway, Self::Distributor, Self::Api];

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Gateway => "gateway",
            Self::Distributor => "distributor",
            Self::Api => "api",
        }
    }

    /// The engines that a process of only this role shares with those of the others, by the schemes of their URLs.
    const fn shares(self) -> &'static [(Seam, &'static [&'static str])] {
        const LOG: (Seam, &[&str]) = (Seam::Log, &["kafka"]);
        const REGISTRY: (Seam, &[&str]) = (Seam::Registry, &["postgres", "postgresql"]);
        const HISTORY: (Seam, &[&str]) = (Seam::History, &["clickhouse", "clickhouses"]);
        const SNAPSHOT: (Seam, &[&str]) = (Seam::Snapshot, &["redis", "rediss"]);
        match self {
            Self::Gateway => &[LOG, REGISTRY],
            Self::Distributor | Self::Api => &[LOG, REGISTRY, HISTORY, SNAPSHOT],
        }
    }
}

impl Settings {
    /// Whether this process does this.
    pub(crate) fn has_role(&self, role: ProcessRole) -> bool {
        self.roles.contains(&role)
    }

    /// Whether other processes do a part of the work.
    pub(crate) fn is_split(&self) -> bool {
        ProcessRole::ALL.into_iter().any(|role| !self.has_role(role))
    }

    /// Checks that a process that leaves work to others shares the engines that they meet at.
    ///
    /// # Errors
    /// Names what is missing and why.
    pub(crate) fn check_roles(&self) -> anyhow::Result<()> {
        ensure!(
            !self.roles.is_empty(),
            "this process has no role; the roles are gateway, distributor and api"
        );
        if !self.is_split() {
            return Ok(());
        }
        let roles = self.roles.iter().map(|role| role.name()).collect::<Vec<_>>().join(",");
        for &(seam, schemes) in self.roles.iter().flat_map(|role| role.shares()) {
            let scheme =
                self.engines.get(seam).and_then(|url| url.split_once(':')).map_or("", |(scheme, _)| scheme);
            ensure!(
                schemes.contains(&scheme),
                "--roles {roles} leaves work to other processes, and those have to find it at an engine that all share: \
                 --{} has to be {}://…",
                seam.name(),
                schemes[0],
            );
        }
        Ok(())
    }
}

/// A list, or its items in one text with commas between, as flags and environment variables have it.
pub(super) fn roles<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<ProcessRole>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Form {
        Text(String),
        List(Vec<String>),
    }
    let names = match Form::deserialize(deserializer)? {
        Form::Text(text) => text.split(',').map(|name| name.trim().to_owned()).collect(),
        Form::List(list) => list,
    };
    let parse = |name: String| {
        ProcessRole::ALL.into_iter().find(|role| role.name() == name).ok_or_else(|| {
            serde::de::Error::custom(format!(
                "there is no role {name:?}; the roles are gateway, distributor and api"
            ))
        })
    };
    names.into_iter().map(parse).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_is_left_to_others_at_shared_engines_only() {
        let mut settings = Settings::default();
        assert!(settings.check_roles().is_ok());
        settings.roles = vec![ProcessRole::Gateway];
        let refusal = |settings: &Settings| settings.check_roles().unwrap_err().to_string();
        assert!(refusal(&settings).contains("--log has to be kafka://…"), "{}", refusal(&settings));
        settings.engines.log = "kafka://h/t".to_owned();
        settings.engines.registry = "postgres://h/d".to_owned();
        assert!(settings.check_roles().is_ok());
        settings.roles = vec![ProcessRole::Gateway, ProcessRole::Api];
        assert!(refusal(&settings).contains("--roles gateway,api"), "{}", refusal(&settings));
        assert!(refusal(&settings).contains("--history has to be clickhouse://…"), "{}", refusal(&settings));
        settings.engines.history = "clickhouse://h/d".to_owned();
        assert!(refusal(&settings).contains("--snapshot has to be redis://…"), "{}", refusal(&settings));
        settings.engines.snapshot = "redis://h".to_owned();
        assert!(settings.check_roles().is_ok());
        settings.roles.clear();
        assert!(refusal(&settings).contains("has no role"), "{}", refusal(&settings));
    }
}
