//! A registry that several processes share: each tells the others of its changes, and follows theirs.
//!
//! PostgreSQL's LISTEN and NOTIFY carry them. A notification says what to look at, not what it is now: who hears it reads the
//! tables. One may be missed (a connection that breaks, a process that dies between its change and telling); so everything
//! is read again after each new connection, and every five minutes.
//!
//! | payload | after it |
//! | --- | --- |
//! | `token ID` | a token was made: it is read |
//! | `withdrawn NAME` | `token:ID`, `device:REALM/ID` or `password:REALM/ID` holds no more: whoever came in by it is sent away |
//! | `access` | realms, rules or bans are read again |
//! | `rules` | decoders, routes or devices have changed |

use std::io::ErrorKind;
use std::sync::Arc;
use std::time::Duration;

use sqlx::postgres::PgListener;

use super::{Registry, RegistryError, RegistryPlace};

const CHANNEL: &str = "catchment_registry";
/// How often everything is read again, whatever was heard.
const REREAD_EVERY: Duration = Duration::from_secs(300);
/// Rest between attempts to listen.
const RETRY: Duration = Duration::from_secs(1);

/// What others are to look at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Change {
    Token(String),
    Withdrawn(String),
    Access,
    Rules,
}

impl Change {
    fn encode(&self) -> String {
        match self {
            Self::Token(id) => format!("token {id}"),
            Self::Withdrawn(name) => format!("withdrawn {name}"),
            Self::Access => "access".to_owned(),
            Self::Rules => "rules".to_owned(),
        }
    }

    fn decode(text: &str) -> Option<Self> {
        let (kind, rest) = text.split_once(' ').unwrap_or((text, ""));
        match kind {
            "token" => Some(Self::Token(rest.to_owned())),
            "withdrawn" => Some(Self::Withdrawn(rest.to_owned())),
            "access" => Some(Self::Access),
            "rules" => Some(Self::Rules),
            _ => None,
        }
    }
}

impl Registry {
    /// Tells the others, if there may be any. The change itself is committed; that it could not be told is logged, and
    /// they find it within five minutes.
    pub(super) async fn tell(&self, change: Change) {
        let RegistryPlace::Postgres(_) = self.place else { return };
        let payload = format!("{} {}", self.node, change.encode());
        let told = sqlx::query("SELECT pg_notify($1, $2)").bind(CHANNEL).bind(payload).execute(&self.pool);
        if let Err(error) = told.await {
            tracing::warn!(%error, "other processes were not told of a change in the registry");
        }
    }

    /// Follows the changes that other processes make. Runs until the registry is dropped; at once over for a file.
    pub async fn follow(self: Arc<Self>) {
        let RegistryPlace::Postgres(url) = &self.place else { return };
        let url = url.clone();
        let weak = Arc::downgrade(&self);
        drop(self);
        loop {
            let heard = listen(&url, &weak).await;
            let Some(registry) = weak.upgrade().filter(|registry| !registry.pool.is_closed()) else { return };
            if let Err(error) = heard
                && registry.trouble.lock().replace(error.to_string()).is_none()
            {
                tracing::warn!(%error, "changes of the registry by other processes are not heard; trying again");
            }
            drop(registry);
            tokio::time::sleep(RETRY).await;
        }
    }

    /// What keeps a shared registry from answering now, if anything does: for those who operate it. Who is known
    /// already comes in all the same.
    #[must_use]
    pub fn trouble(&self) -> Option<String> {
        self.trouble.lock().clone()
    }

    /// Reads everything again. Tokens that are gone are withdrawn.
    async fn reread(&self) -> Result<(), RegistryError> {
        let before: Vec<String> =
            self.tokens.read().values().map(|identity| identity.token_id.clone()).collect();
        self.load_tokens().await?;
        self.load_access().await?;
        self.passwords.forget_all();
        let now: std::collections::HashSet<String> =
            self.tokens.read().values().map(|identity| identity.token_id.clone()).collect();
        for id in before.into_iter().filter(|id| !now.contains(id)) {
            self.withdraw_here(format!("token:{id}"));
        }
        self.changed_here();
        *self.trouble.lock() = None;
        Ok(())
    }

    async fn heard(&self, payload: &str) -> Result<(), RegistryError> {
        let Some((node, change)) = payload.split_once(' ') else { return Ok(()) };
        if node == self.node {
            return Ok(());
        }
        match Change::decode(change) {
            Some(Change::Token(id)) => self.load_token(&id).await?,
            Some(Change::Withdrawn(name)) => {
                self.forget(&name);
                self.withdraw_here(name);
            }
            Some(Change::Access) => self.load_access().await?,
            Some(Change::Rules) => {}
            // A newer version speaks of something else.
            None => return self.reread().await,
        }
        self.changed_here();
        Ok(())
    }

    /// Drops from memory what was withdrawn elsewhere.
    fn forget(&self, name: &str) {
        if let Some(id) = name.strip_prefix("token:") {
            self.tokens.write().retain(|_, identity| identity.token_id != id);
        } else if let Some((realm, device)) =
            name.strip_prefix("device:").and_then(|name| name.split_once('/'))
        {
            self.tokens.write().retain(|_, identity| {
                !(identity.realm == realm && identity.device_id.as_deref() == Some(device))
            });
            self.passwords.forget(realm, device);
        } else if let Some((realm, device)) =
            name.strip_prefix("password:").and_then(|name| name.split_once('/'))
        {
            self.passwords.forget(realm, device);
        }
    }
}

/// Hears until the connection ends.
async fn listen(url: &str, registry: &std::sync::Weak<Registry>) -> Result<(), RegistryError> {
    let mut listener = PgListener::connect(url).await?;
    // Otherwise it would tell of a broken connection only once it has another, or after half a minute without one.
    listener.eager_reconnect(false);
    listener.listen(CHANNEL).await?;
    let mut reread_due = tokio::time::Instant::now();
    loop {
        let heard = tokio::time::timeout_at(reread_due, listener.try_recv()).await;
        let Some(registry) = registry.upgrade().filter(|registry| !registry.pool.is_closed()) else {
            return Ok(());
        };
        match heard {
            Ok(Ok(Some(notification))) => registry.heard(notification.payload()).await?,
            Ok(Ok(None)) => {
                let lost = std::io::Error::new(ErrorKind::ConnectionAborted, "the connection was lost");
                return Err(sqlx::Error::Io(lost).into());
            }
            Ok(Err(error)) => return Err(error.into()),
            Err(_) => {
                registry.reread().await?;
                reread_due = tokio::time::Instant::now() + REREAD_EVERY;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_are_read_as_they_were_told() {
        for change in [
            Change::Token("ab12".to_owned()),
            Change::Withdrawn("device:main/a device".to_owned()),
            Change::Access,
            Change::Rules,
        ] {
            assert_eq!(Change::decode(&change.encode()), Some(change));
        }
        assert_eq!(Change::decode("something else"), None);
    }
}
