//! MQTT's retained messages where gateways find them that come later, or have missed some.
//!
//! Each gateway has all of them; Redis has what a new one begins with. A message is kept with a stamp, and a later stamp is never
//! replaced by an earlier one ([`retained.lua`](retained.lua)); so the order in which gateways write does not matter. That a topic
//! has no message any more is a message too, for as long as the gateways think fit.

use std::sync::Arc;

use ::redis::{Cmd, Script};

use super::client::{RedisClient, RedisFailure};

const PUT_SCRIPT: &str = include_str!("retained.lua");
const STAMPS_SCRIPT: &str = include_str!("stamps.lua");
const FORGET_SCRIPT: &str = include_str!("forget.lua");
/// Hexadecimal digits of a stamp: texts of the same length are ordered as their numbers, in every locale.
const STAMP_DIGITS: usize = 16;
/// Bytes of messages after which a call of the script ends, so that others have their turn.
const PUT_BYTES: usize = 1 << 20;
/// How long the mark of a process stays that has written all it has, in seconds.
const MARK_S: u64 = 60;

/// A field of a hash, and what stands in it.
type Field = (Vec<u8>, Vec<u8>);

/// A retained message to be kept.
#[derive(Debug)]
pub struct RetainedEntry {
    /// Its topic.
    pub topic: String,
    /// The later of two of a topic counts.
    pub stamp: u64,
    /// The message.
    pub bytes: Vec<u8>,
}

/// A retained message that was found.
#[derive(Debug)]
pub struct FoundRetained {
    topic: Vec<u8>,
    value: Vec<u8>,
}

impl FoundRetained {
    /// The message.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        self.value.get(STAMP_DIGITS..).unwrap_or_default()
    }
}

/// The retained messages in Redis.
#[derive(Debug)]
pub struct SharedRetained {
    client: RedisClient,
    put: Script,
    stamps: Script,
    forget: Script,
}

impl SharedRetained {
    /// Those of a server.
    #[must_use]
    pub fn new(client: RedisClient) -> Self {
        let (put, stamps, forget) = (PUT_SCRIPT, STAMPS_SCRIPT, FORGET_SCRIPT);
        Self { client, put: Script::new(put), stamps: Script::new(stamps), forget: Script::new(forget) }
    }

    /// Keeps messages of a realm.
    ///
    /// # Errors
    /// Redis is away: some of them may not be kept.
    pub async fn put(&self, realm: &str, entries: &[RetainedEntry]) -> Result<(), RedisFailure> {
        let mut rest = entries;
        while !rest.is_empty() {
            let mut put = self.put.key(self.hash(realm));
            put.key(self.realms_key()).arg(realm);
            let mut bytes = 0;
            while let Some((entry, further)) = rest.split_first().filter(|_| bytes < PUT_BYTES) {
                put.arg(&*entry.topic).arg(format!("{:0STAMP_DIGITS$x}", entry.stamp)).arg(&*entry.bytes);
                bytes += entry.bytes.len();
                rest = further;
            }
            self.invoke::<()>(&put).await?;
        }
        Ok(())
    }

    /// Which of these messages are not there, and no later one either.
    ///
    /// # Errors
    /// Redis is away.
    pub async fn missing(&self, realm: &str, entries: &[RetainedEntry]) -> Result<Vec<bool>, RedisFailure> {
        let mut ask = self.stamps.key(self.hash(realm));
        for entry in entries {
            ask.arg(&*entry.topic);
        }
        let there: Vec<String> = self.invoke(&ask).await?;
        let is_missing = |(entry, there): (&RetainedEntry, &String)| {
            u64::from_str_radix(there, 16).ok() < Some(entry.stamp)
        };
        Ok(entries.iter().zip(&there).map(is_missing).collect())
    }

    /// Realms that have, or had, retained messages.
    ///
    /// # Errors
    /// Redis is away.
    pub async fn realms(&self) -> Result<Vec<String>, RedisFailure> {
        self.client.ask(::redis::cmd("SMEMBERS").arg(self.realms_key())).await
    }

    /// Some of the messages of a realm; `cursor` is 0 at first, and then what came with those before; 0: that was all.
    ///
    /// # Errors
    /// Redis is away.
    pub async fn scan(&self, realm: &str, cursor: u64) -> Result<(u64, Vec<FoundRetained>), RedisFailure> {
        let mut scan = Cmd::new();
        scan.arg("HSCAN").arg(self.hash(realm)).arg(cursor).arg("COUNT").arg(500);
        let (next, found): (u64, Vec<Field>) = self.client.ask(&scan).await?;
        Ok((next, found.into_iter().map(|(topic, value)| FoundRetained { topic, value }).collect()))
    }

    /// Forgets a message that was found, unless it was replaced since.
    ///
    /// # Errors
    /// Redis is away.
    pub async fn forget(&self, realm: &str, found: &FoundRetained) -> Result<(), RedisFailure> {
        let mut forget = self.forget.key(self.hash(realm));
        forget.arg(&*found.topic).arg(&*found.value);
        self.invoke(&forget).await
    }

    /// Leaves a mark that this process has written all it has. It is gone when Redis loses what it had.
    ///
    /// # Errors
    /// Redis is away.
    pub async fn mark(&self) -> Result<(), RedisFailure> {
        self.client.ask(::redis::cmd("SET").arg(self.mark_key()).arg(1).arg("EX").arg(MARK_S)).await
    }

    /// Whether the mark of this process is still there; then it stays for another while.
    ///
    /// # Errors
    /// Redis is away.
    pub async fn is_marked(&self) -> Result<bool, RedisFailure> {
        self.client.ask(::redis::cmd("EXPIRE").arg(self.mark_key()).arg(MARK_S)).await
    }

    async fn invoke<T: ::redis::FromRedisValue>(
        &self,
        script: &::redis::ScriptInvocation<'_>,
    ) -> Result<T, RedisFailure> {
        script.invoke_async(&mut self.client.commands()).await.map_err(|error| self.client.failure(&error))
    }

    fn hash(&self, realm: &str) -> String {
        self.client.keys.of(&format!("retained:{realm}"))
    }

    fn realms_key(&self) -> String {
        self.client.keys.of("retained")
    }

    fn mark_key(&self) -> String {
        let process: &Arc<str> = &self.client.process;
        self.client.keys.of(&format!("retained-by:{process}"))
    }
}
