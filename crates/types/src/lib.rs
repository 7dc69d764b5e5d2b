//! The words of Catchment, shared by every crate: *event*, *reading*, *reject*, *device*, *partition*, *offset*.
//!
//! Nothing here does I/O. Units: every time is a [`Timestamp`], microseconds since the Unix epoch, UTC.

mod event;
mod limits;
mod loopback;
mod names;
mod reading;
mod time;
mod url;

pub use event::{Event, EventBatch, EventBatchBuilder, EventBatchIter, EventTooLarge};
pub use limits::RateLimits;
pub use loopback::{is_loopback_host, is_loopback_origin};
pub use names::{
    BadName, DEFAULT_REALM, DEVICE_ID_BYTES_MAX, Offset, PartitionId, TYPE_BYTES_MAX, check_device_id,
    check_event_type, check_realm, partition_of,
};
pub use reading::{Reading, RejectReason, Value};
pub use time::Timestamp;
pub use url::{host_and_port, url_decoded};
