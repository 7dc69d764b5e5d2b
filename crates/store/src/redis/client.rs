//! Connections to one server: one for commands, which comes back by itself, and others for subscriptions.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use ::redis::aio::{ConnectionManager, ConnectionManagerConfig, PubSub};
use ::redis::{Client, Cmd, ErrorKind, FromRedisValue, Pipeline, RedisError};
use thiserror::Error;

use super::config::{BadTarget, RedisTarget};
use super::layout::Keys;

/// How long a command may take. Longer than any takes: who waits for it gives up then.
const RESPONSE_MAX: Duration = Duration::from_secs(5);
const CONNECT_MAX: Duration = Duration::from_secs(3);
/// Between two attempts to connect; a command that comes meanwhile fails with the one under way.
const RECONNECT_MIN: Duration = Duration::from_millis(50);

/// A command failed. It can be tried again.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{place}: {message}")]
pub struct RedisFailure {
    /// The server.
    place: Arc<str>,
    /// What happened.
    message: String,
    /// Whether it answers, but not to us.
    is_refusal: bool,
}

impl RedisFailure {
    /// Whether the server answers, but takes neither user nor password, or does not allow what we do: to try again is of no use.
    #[must_use]
    pub fn is_refusal(&self) -> bool {
        self.is_refusal
    }
}

/// A server that is spoken to. Clones share the connection for commands.
#[derive(Clone)]
pub struct RedisClient {
    client: Client,
    commands: ConnectionManager,
    place: Arc<str>,
    pub(super) keys: Arc<Keys>,
    pub(super) target: Arc<RedisTarget>,
    /// A name of this process, new with each start.
    pub(super) process: Arc<str>,
}

impl fmt::Debug for RedisClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RedisClient({})", self.place)
    }
}

impl RedisClient {
    /// Makes a client, which connects when it is used; to be called inside a Tokio runtime.
    ///
    /// # Errors
    /// Certificates cannot be used.
    pub fn new(target: &RedisTarget) -> Result<Self, BadTarget> {
        let client = target.client()?;
        let config = ConnectionManagerConfig::new()
            .set_min_delay(RECONNECT_MIN)
            .set_number_of_retries(1)
            .set_response_timeout(Some(RESPONSE_MAX))
            .set_connection_timeout(Some(CONNECT_MAX));
        let commands = ConnectionManager::new_lazy_with_config(client.clone(), config)
            .map_err(|error| BadTarget::Url(error.to_string()))?;
        Ok(Self {
            client,
            commands,
            place: target.to_string().into(),
            keys: Arc::new(Keys::new(&target.config.prefix)),
            target: Arc::new(target.clone()),
            process: hex::encode(rand::random::<[u8; 8]>()).into(),
        })
    }

    /// Where the server is, for people.
    #[must_use]
    pub fn place(&self) -> &str {
        &self.place
    }

    /// Asks whether it answers.
    ///
    /// # Errors
    /// It does not, or not to us.
    pub async fn ping(&self) -> Result<(), RedisFailure> {
        self.ask::<String>(&::redis::cmd("PING")).await.map(|_| ())
    }

    pub(super) async fn ask<T: FromRedisValue>(&self, command: &Cmd) -> Result<T, RedisFailure> {
        command.query_async(&mut self.commands.clone()).await.map_err(|error| self.failure(&error))
    }

    pub(super) async fn ask_all<T: FromRedisValue>(&self, commands: &Pipeline) -> Result<T, RedisFailure> {
        commands.query_async(&mut self.commands.clone()).await.map_err(|error| self.failure(&error))
    }

    /// The connection for commands, for what is no single one of them.
    pub(super) fn commands(&self) -> ConnectionManager {
        self.commands.clone()
    }

    /// A connection of its own, for subscriptions.
    pub(super) async fn subscriber(&self) -> Result<PubSub, RedisFailure> {
        match tokio::time::timeout(CONNECT_MAX, self.client.get_async_pubsub()).await {
            Ok(Ok(connection)) => Ok(connection),
            Ok(Err(error)) => Err(self.failure(&error)),
            Err(_) => Err(self.failed(format!("no connection within {CONNECT_MAX:?}"))),
        }
    }

    pub(super) fn failure(&self, error: &RedisError) -> RedisFailure {
        let is_refusal = error.kind() == ErrorKind::AuthenticationFailed
            || error.code().is_some_and(|code| ["NOAUTH", "WRONGPASS", "NOPERM"].contains(&code));
        RedisFailure { is_refusal, ..self.failed(error.to_string()) }
    }

    pub(super) fn failed(&self, message: String) -> RedisFailure {
        RedisFailure { place: Arc::clone(&self.place), message, is_refusal: false }
    }
}
