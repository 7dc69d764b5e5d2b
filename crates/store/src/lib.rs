//! What Catchment keeps behind the log, and how it is read: snapshot, live, history, rollups, registry.
//!
//! - [`shard`]: the memory of one partition: latest values, open rollup states, rows that are not in files yet.
//! - [`history`]: the Delta tables on disk, and queries over memory and files as one table.
//! - [`clickhouse`]: history in a ClickHouse server instead.
//! - [`export`]: history's rows by day and month, to be brought elsewhere.
//! - [`snapshot`]: how latest values and devices are read, whatever has them.
//! - [`storage`]: where the tables are: a local folder, or S3.
//! - [`live`]: push of readings to subscribers.
//! - [`registry`]: devices, decoders and tokens.

pub mod clickhouse;
pub mod delta;
pub mod export;
pub mod history;
pub mod live;
pub mod registry;
pub mod shard;
pub mod snapshot;
pub mod storage;
pub mod tables;
