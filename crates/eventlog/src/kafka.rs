//! Apache Kafka as the event log: one topic, an event a record, with Kafka's partitions and offsets as ours.
//!
//! - *Writing*: an idempotent producer with `acks=all`. A batch's records are handed over together and in order; it is
//!   durable once the brokers have acknowledged all of them. While they do not answer it waits, without a limit in time:
//!   the queue is bounded in bytes, then submitters wait too. Nothing that was taken is given up while the process lives.
//! - *Reading*: partitions are assigned, not subscribed, and fetched only while somebody reads them: a partition that nobody
//!   here reads costs nothing. Where reading begins is told by history.
//! - *Sharing*: processes that share a history deal the partitions out by a consumer group ([`KafkaGroup`]), which takes no
//!   part in reading. What it keeps in Kafka is how far the work is, for us and for whoever looks at the lag.
//! - *Retention*: a topic that we make has none of Kafka's own. What history has committed and what is older than
//!   `log.retention_hours` is deleted by us (DeleteRecords), nothing else. With `trim=false` Kafka's own retention counts.
//! - The topic belongs to one platform. Others may read it: `record` tells how an event is laid out. Who writes to it with
//!   transactions, or compacts it, makes gaps, which are told as skipped.
//!
//! Batches of one process lie together in a partition; with several gateways, records of theirs may lie between.

#[cfg(feature = "kafka")]
mod client;
mod config;
#[cfg(feature = "kafka")]
mod group;
#[cfg(feature = "kafka")]
mod log;
#[cfg(feature = "kafka")]
mod partition;
#[cfg(feature = "kafka")]
mod producer;
#[cfg(feature = "kafka")]
mod readings;
#[cfg(feature = "kafka")]
mod record;
#[cfg(feature = "kafka")]
mod topic;
#[cfg(feature = "kafka")]
mod watch;

pub use self::config::{BadTarget, KafkaConfig, KafkaTarget, Secret, Security};
#[cfg(feature = "kafka")]
pub use self::group::KafkaGroup;
#[cfg(feature = "kafka")]
pub use self::log::{KafkaError, KafkaLog, probe};
#[cfg(feature = "kafka")]
pub use self::readings::KafkaReadings;
#[cfg(feature = "kafka")]
pub use self::topic::Probe;
