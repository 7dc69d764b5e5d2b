//! Redis: latest values that other processes read, push between processes, and answers kept for a while.
//!
//! - [`RedisTarget`], [`RedisConfig`]: how a server is named. `probe` asks what it is.
//! - [`SnapshotWriter`]: brings what changes in this process's shards to Redis; [`RedisSnapshot`] reads it.
//! - [`LiveRelay`]: carries readings and events between the hubs of processes by Pub/Sub.
//! - [`ResultCache`]: answers of queries, until the next commit.
//!
//! # Keys
//! All begin with a prefix (`catchment:` unless set otherwise), so that several installations, or other programs, may share
//! a database. Redis 6 or later, one server or a replicated one behind one address; not Redis Cluster.
//!
//! | key | type | what |
//! | --- | --- | --- |
//! | `snapshot:{realm}:{device}` | hash | the latest of a device, see below |
//! | `devices:{realm}` | sorted set, scores 0 | ids of all devices, for lists in their order |
//! | `metrics:{realm}` | integer | how many metrics all devices have |
//! | `epoch` | integer | of the last take-over of a partition |
//! | `log` | text | which log the offsets are of |
//! | `writer:{process}` | text, expires | missing: Redis was emptied since the process wrote |
//! | `version:{realm}` | integer | grows with each commit; part of the names of answers |
//! | `answer:{hash}` | bytes, expires | an answer that is kept |
//! | `retained`, `retained:{realm}` | set, hash | realms; MQTT's retained messages by topic: a stamp of 16 hexadecimal digits, and the message |
//! | `retained-by:{process}` | integer, expires | missing: Redis was emptied since the process wrote its retained messages |
//! | `roster:{kind}`, `roster:{kind}:{process}` | set, text that expires | what processes say of themselves |
//!
//! A device's hash has a field for each metric, by its name (one that begins with `@` gets another in front), with JSON in
//! exactly this order and without spaces; times are microseconds since 1970, UTC, `offset` is that of the event in the log:
//!
//! ```text
//! speed        {"timestamp":1700000000000000,"received_at":1700000000000123,"offset":17,"value":81.5}
//! ```
//!
//! and five fields of the device itself: `@first_seen` and `@last_seen` (when its first and last events arrived, in
//! microseconds), `@events` (how many), `@offset` (those below it are counted), `@epoch` (of the take-over by whose owner it was
//! written; who has an older one is refused).
//!
//! # Channels
//! `live:{realm}:{device}:{type}` (readings), `tail:{realm}:{device}:{type}` (events), `roster:{kind}` (a change of what a
//! process says); see [`LiveRelay`].

mod cache;
mod client;
mod config;
mod layout;
mod live;
mod metrics;
mod peers;
mod probe;
mod read;
mod restore;
mod retained;
mod roster;
mod writer;

pub use cache::ResultCache;
pub use client::{RedisClient, RedisFailure};
pub use config::{BadTarget, RedisConfig, RedisTarget};
pub use live::LiveRelay;
pub use metrics::RedisMetrics;
pub use peers::PeerChannel;
pub use probe::{Probe, probe};
pub use read::RedisSnapshot;
pub use retained::{FoundRetained, RetainedEntry, SharedRetained};
pub use writer::SnapshotWriter;
