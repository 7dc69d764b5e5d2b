//! When what was written counts as durable.

use serde::{Deserialize, Serialize};

/// When an append counts as durable, and is acknowledged.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SyncPolicy {
    /// After fdatasync, one for each group of appends. Survives loss of power.
    #[default]
    Fsync,
    /// Once handed to the operating system, which is made to write it out every so many milliseconds. Survives a
    /// crash of the process; loss of power costs at most that time.
    IntervalMs(u32),
    /// Once handed to the operating system, which writes it out when it likes. Survives a crash of the process.
    Never,
}
