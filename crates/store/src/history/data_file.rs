//! A Parquet file of a table: what is known of it without opening it, and its form in the Delta log.

use std::collections::BTreeMap;
use std::sync::Arc;

use catchment_types::Timestamp;
use serde_json::{Value, json};

use crate::delta::actions::Add;
use crate::tables::TableId;

/// A file that counts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct DataFile {
    /// Relative to the table's folder: `date=2026-11-23/….parquet`.
    pub(super) path: String,
    /// Name of its day or month.
    pub(super) period: String,
    /// Size, bytes.
    pub(super) bytes: u64,
    /// When it was written.
    pub(super) written_at: Timestamp,
    /// What its statistics tell; none when another program wrote the file without.
    pub(super) stats: Option<FileStats>,
}

/// What a file's statistics tell.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct FileStats {
    /// Number of rows.
    pub(super) rows: u64,
    /// Lowest time, microseconds; not above any row's.
    pub(super) time_min: i64,
    /// Highest time, microseconds; not below any row's.
    pub(super) time_max: i64,
    /// First device.
    pub(super) device_min: String,
    /// Last device.
    pub(super) device_max: String,
}

/// A table's files, in the order of their paths.
pub(super) type FileList = Arc<Vec<Arc<DataFile>>>;

impl DataFile {
    /// The file's entry in a commit. `data_change`: whether its rows are new.
    pub(super) fn to_add(&self, table: TableId, data_change: bool) -> Add {
        Add {
            path: self.path.clone(),
            partition_values: BTreeMap::from([(
                table.period().column().to_owned(),
                Some(self.period.clone()),
            )]),
            size: i64::try_from(self.bytes).unwrap_or(i64::MAX),
            modification_time: self.written_at.as_micros() / 1000,
            data_change,
            stats: self.stats.as_ref().map(|stats| stats.to_json(table)),
            tags: None,
        }
    }

    /// The file of an entry in a commit.
    pub(super) fn from_add(table: TableId, add: &Add) -> Self {
        let period = add.partition_values.get(table.period().column()).cloned().flatten();
        Self {
            path: add.path.clone(),
            period: period.unwrap_or_default(),
            bytes: u64::try_from(add.size).unwrap_or_default(),
            written_at: Timestamp(add.modification_time.saturating_mul(1000)),
            stats: add.stats.as_deref().and_then(|stats| FileStats::from_json(table, stats)),
        }
    }
}

impl FileStats {
    /// Delta's readers take times in statistics as cut to milliseconds: so the upper bound is rounded up.
    fn to_json(&self, table: TableId) -> String {
        let time = table.time_column();
        let bounds = |device: &str, millis: i64| {
            let mut bounds = serde_json::Map::new();
            bounds.insert("device_id".to_owned(), Value::from(device));
            // Outside of what a text can say, the bound is left out.
            if let Ok(text) = jiff::Timestamp::from_millisecond(millis) {
                bounds.insert(time.to_owned(), Value::from(format!("{text:.3}")));
            }
            bounds
        };
        json!({
            "numRecords": self.rows,
            "minValues": bounds(&self.device_min, self.time_min.div_euclid(1000)),
            "maxValues": bounds(&self.device_max, self.time_max.div_euclid(1000) + i64::from(self.time_max.rem_euclid(1000) > 0)),
            "nullCount": { "device_id": 0, time: 0 },
        })
        .to_string()
    }

    fn from_json(table: TableId, text: &str) -> Option<Self> {
        let stats: Value = serde_json::from_str(text).ok()?;
        let time = |bounds: &str, missing: i64| match stats[bounds][table.time_column()].as_str() {
            Some(text) => text.parse::<jiff::Timestamp>().ok().map(jiff::Timestamp::as_microsecond),
            None => Some(missing),
        };
        Some(Self {
            rows: stats["numRecords"].as_u64()?,
            time_min: time("minValues", i64::MIN)?,
            time_max: time("maxValues", i64::MAX)?,
            device_min: stats["minValues"]["device_id"].as_str()?.to_owned(),
            device_max: stats["maxValues"]["device_id"].as_str()?.to_owned(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(time_min: i64, time_max: i64) -> DataFile {
        DataFile {
            path: "date=2026-11-23/a.parquet".to_owned(),
            period: "2026-11-23".to_owned(),
            bytes: 12,
            written_at: Timestamp(1_700_000_000_123_000),
            stats: Some(FileStats {
                rows: 3,
                time_min,
                time_max,
                device_min: "a\"\u{e9}".to_owned(),
                device_max: "z".to_owned(),
            }),
        }
    }

    #[test]
    fn entries_round_trip_with_bounds_rounded_outwards() {
        let exact = file(1_700_000_000_123_000, 1_700_000_000_124_000);
        let read =
            |file: &DataFile| DataFile::from_add(TableId::RawEvents, &file.to_add(TableId::RawEvents, true));
        assert_eq!(read(&exact), exact);
        assert_eq!(read(&file(1_700_000_000_123_999, 1_700_000_000_123_001)), exact);
        assert_eq!(read(&file(-1, -1)), file(-1000, 0));
        let absurd = read(&file(i64::MIN, i64::MAX)).stats.unwrap();
        assert_eq!((absurd.time_min, absurd.time_max), (i64::MIN, i64::MAX));
    }

    #[test]
    fn foreign_statistics_are_not_trusted_blindly() {
        let mut add = file(0, 0).to_add(TableId::RawEvents, true);
        for stats in [None, Some("{}"), Some("x"), Some(r#"{"numRecords":1}"#)] {
            add.stats = stats.map(str::to_owned);
            assert_eq!(DataFile::from_add(TableId::RawEvents, &add).stats, None);
        }
    }
}
