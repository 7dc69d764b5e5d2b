//! Answers of queries, kept until the next commit.
//!
//! An answer's name is a hash of what was asked and of the *version* of the data: a counter in Redis that grows with each
//! commit ([`ResultCache::committed`]), and the run of the server, since one that was restarted may have gone back. The
//! version is read before a query runs, and its answer is kept under that: a commit that comes while it runs makes a name under which
//! nothing is. So no answer is given that lacks a row whose commit was told before the question came.

use std::time::Duration;

use async_trait::async_trait;
use catchment_types::DEFAULT_REALM;
use sha2::{Digest as _, Sha256};

use super::client::{RedisClient, RedisFailure};
use super::metrics::RedisMetrics;
use super::probe::run_id;
use crate::answers::{Answers, Lookup};

/// A look-up takes no longer: a query is rather run.
const LOOK_UP_MAX: Duration = Duration::from_millis(200);

/// Keeps answers in Redis. Clones are the same.
#[derive(Debug, Clone)]
pub struct ResultCache {
    client: RedisClient,
    metrics: RedisMetrics,
}

impl ResultCache {
    /// A cache, unless the settings turn it off.
    #[must_use]
    pub fn new(client: RedisClient, metrics: RedisMetrics) -> Option<Self> {
        client.target.config.cache.then_some(Self { client, metrics })
    }

    async fn find(&self, question: &[&[u8]]) -> Result<Lookup, RedisFailure> {
        let mut ask = ::redis::pipe();
        ask.cmd("GET").arg(self.version());
        ask.cmd("INFO").arg("server");
        let (version, info): (Option<u64>, String) = self.client.ask_all(&ask).await?;
        let mut hash = Sha256::new();
        let head = [DEFAULT_REALM.as_bytes(), run_id(&info).as_bytes(), &version.unwrap_or(0).to_le_bytes()];
        for part in head.iter().chain(question) {
            hash.update((part.len() as u64).to_le_bytes());
            hash.update(part);
        }
        let name = self.client.keys.of(&format!("answer:{}", hex::encode(hash.finalize())));
        let answer: Option<Vec<u8>> = self.client.ask(::redis::cmd("GET").arg(&name)).await?;
        Ok(answer.map_or(Lookup::Miss(name), |answer| Lookup::Hit(answer.into())))
    }

    /// Tells that rows are visible now that were not: answers from before are not given any more once this has returned.
    ///
    /// # Errors
    /// Redis does not answer; to be told again until it does. While it does not, no answer is given from it either.
    pub async fn committed(&self) -> Result<(), RedisFailure> {
        self.client.ask::<u64>(::redis::cmd("INCR").arg(self.version())).await.map(|_| ())
    }

    fn version(&self) -> String {
        self.client.keys.of(&format!("version:{DEFAULT_REALM}"))
    }
}

#[async_trait]
impl Answers for ResultCache {
    async fn look_up(&self, question: &[&[u8]]) -> Lookup {
        match tokio::time::timeout(LOOK_UP_MAX, self.find(question)).await {
            Ok(Ok(Lookup::Hit(answer))) => {
                self.metrics.cache_hits.inc();
                Lookup::Hit(answer)
            }
            Ok(Ok(other)) => {
                self.metrics.cache_misses.inc();
                other
            }
            Ok(Err(_)) | Err(_) => {
                self.metrics.cache_failures.inc();
                Lookup::Unavailable
            }
        }
    }

    async fn keep(&self, name: &str, answer: &[u8]) {
        if answer.len() > self.answer_bytes_max() {
            return;
        }
        let mut keep = ::redis::cmd("SET");
        keep.arg(name).arg(answer).arg("EX").arg(self.client.target.config.cache_s_max.max(1));
        if self.client.ask::<()>(&keep).await.is_err() {
            self.metrics.cache_failures.inc();
        }
    }

    fn answer_bytes_max(&self) -> usize {
        self.client.target.config.cache_answer_bytes_max
    }
}
