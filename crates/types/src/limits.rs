//! Rates that an operator sets for a device or a realm.

use serde::{Deserialize, Serialize};

/// Rates; 0: without a limit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RateLimits {
    /// Messages a second.
    pub messages_per_s: u32,
    /// Bytes of payload a second.
    pub bytes_per_s: u64,
    /// Connections a second.
    pub connects_per_s: u32,
    /// How many seconds' worth may come at once; 0 is 1.
    pub burst_s: u32,
}

impl RateLimits {
    /// Whether nothing is limited.
    #[must_use]
    pub const fn is_unlimited(&self) -> bool {
        self.messages_per_s == 0 && self.bytes_per_s == 0 && self.connects_per_s == 0
    }
}
