//! The tables of history: names, columns, order and layout.
//!
//! One definition serves the buffers in memory, the Parquet files, the Delta metadata and SQL.

use std::sync::{Arc, LazyLock};

use arrow::datatypes::{DataType, Field, Schema, SchemaRef, TimeUnit};

/// How a table's files are spread over folders, and its retention's unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Period {
    /// One folder `date=YYYY-MM-DD`.
    Day,
    /// One folder `month=YYYY-MM`.
    Month,
}

/// A table of history.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(usize)]
pub enum TableId {
    /// Events as received.
    RawEvents,
    /// Decoded values.
    RawMetrics,
    /// Partial aggregate states of one minute of a metric; several rows may have the same key and merge by sum, min
    /// and max. `aggregated_metrics` is the view that finishes them.
    MetricRollups,
    /// What did not decode.
    Rejects,
}

impl TableId {
    /// All tables, in the order of their numbers.
    pub const ALL: [Self; 4] = [Self::RawEvents, Self::RawMetrics, Self::MetricRollups, Self::Rejects];
    /// How many tables there are.
    pub const COUNT: usize = Self::ALL.len();

    /// Position in arrays indexed by table.
    #[must_use]
    pub const fn index(self) -> usize {
        self as usize
    }

    /// Name in SQL and of the folder.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::RawEvents => "raw_events",
            Self::RawMetrics => "raw_metrics",
            Self::MetricRollups => "metric_rollups",
            Self::Rejects => "rejects",
        }
    }

    /// Column whose time decides the folder and the retention, and by which rows are sorted after `device_id`.
    #[must_use]
    pub const fn time_column(self) -> &'static str {
        match self {
            Self::RawEvents | Self::Rejects => "received_at",
            Self::RawMetrics => "timestamp",
            Self::MetricRollups => "time_bucket",
        }
    }

    /// How its files are spread over folders.
    #[must_use]
    pub const fn period(self) -> Period {
        match self {
            Self::MetricRollups => Period::Month,
            _ => Period::Day,
        }
    }

    /// Columns, with the types they have in memory and in queries.
    #[must_use]
    pub fn schema(self) -> SchemaRef {
        static SCHEMAS: LazyLock<[SchemaRef; TableId::COUNT]> =
            LazyLock::new(|| TableId::ALL.map(make_schema));
        Arc::clone(&SCHEMAS[self.index()])
    }
}

/// The type of every time column: microseconds, UTC.
#[must_use]
pub fn timestamp_type() -> DataType {
    DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into()))
}

fn make_schema(table: TableId) -> SchemaRef {
    let text = |name: &str| Field::new(name, DataType::Utf8View, false);
    let text_or_null = |name: &str| Field::new(name, DataType::Utf8View, true);
    let time = |name: &str| Field::new(name, timestamp_type(), false);
    let float = |name: &str| Field::new(name, DataType::Float64, false);
    let payload = || Field::new("payload", DataType::BinaryView, false);
    let log_partition = || Field::new("log_partition", DataType::Int32, false);
    let log_offset = || Field::new("log_offset", DataType::Int64, false);
    Arc::new(Schema::new(match table {
        TableId::RawEvents => vec![
            text("device_id"),
            time("received_at"),
            time("event_time"),
            text("type"),
            text("topic"),
            text("content_type"),
            payload(),
            log_partition(),
            log_offset(),
        ],
        TableId::RawMetrics => vec![
            text("device_id"),
            time("timestamp"),
            text("metric_name"),
            Field::new("metric_value", DataType::Float64, true),
            text_or_null("text_value"),
            text_or_null("metadata"),
            log_partition(),
            log_offset(),
        ],
        TableId::MetricRollups => vec![
            text("device_id"),
            time("time_bucket"),
            text("metric_name"),
            float("sum_value"),
            float("min_value"),
            float("max_value"),
            Field::new("count", DataType::Int64, false),
        ],
        TableId::Rejects => vec![
            text("device_id"),
            time("received_at"),
            text("type"),
            text("topic"),
            text("reason"),
            text("detail"),
            payload(),
            log_partition(),
            log_offset(),
        ],
    }))
}
