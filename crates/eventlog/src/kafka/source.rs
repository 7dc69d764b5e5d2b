//! A topic of somebody else as a source of events: JSON messages of any system, or what Azure IoT Hub and Event Hubs give.
//!
//! ```text
//! kafka://HOST[:PORT][,HOST…]/TOPIC[?group=…&type=…&device=…&from=…&connection_string_file=…&SETTING=VALUE]
//! ```
//!
//! - *Who reads*: the members of a consumer group, each some of the topic's partitions. Gateways that name the same source share it.
//! - *At least once*: a batch of records is handed to the log, and their offsets are committed to Kafka once its events are
//!   durable there. Nothing more is read before that.
//! - *Mostly once*: an event carries a mark of its record's partition, offset and content. Who is given a partition looks at
//!   the newest events of the log for such marks, and passes over what it finds. Two members that take each other for dead,
//!   as one that was suspended and wakes up, may still both bring the same records.
//! - What can be no event (no device id that is one, too large) is passed over, counted and told.

#[cfg(feature = "kafka")]
mod intake;
#[cfg(feature = "kafka")]
mod record;
mod target;

#[cfg(feature = "kafka")]
pub use self::intake::{KafkaSource, RecordMarks, SourceFigures};
pub use self::target::{BadSource, DeviceFrom, SourceTarget};
