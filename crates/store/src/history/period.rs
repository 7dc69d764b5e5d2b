//! Days and months: how rows are spread over folders.
//!
//! A period is a day number or a month number since the epoch; its name is the folder's and the partition column's
//! value. Times outside the years 1 to 9999, which no folder can name, count as the first or the last period.

use std::ops::Range;

use arrow::datatypes::DataType;
use catchment_types::Timestamp;
use jiff::civil::Date;

use crate::tables::Period;

const FIRST: Date = Date::constant(1, 1, 1);
const LAST: Date = Date::constant(9999, 12, 31);
const EPOCH: Date = Date::constant(1970, 1, 1);

impl Period {
    /// Name of the partition column.
    #[must_use]
    pub const fn column(self) -> &'static str {
        match self {
            Self::Day => "date",
            Self::Month => "month",
        }
    }

    /// Type of the partition column.
    #[must_use]
    pub const fn column_type(self) -> DataType {
        match self {
            Self::Day => DataType::Date32,
            Self::Month => DataType::Utf8,
        }
    }

    /// The name, and the times (microseconds, end excluded), of the period that a time falls in.
    pub(crate) fn of(self, time: i64) -> (String, Range<i64>) {
        let day = Timestamp(time).day().clamp(day_number(FIRST), day_number(LAST));
        let date = date_of_day(day);
        let (first, next, name) = match self {
            Self::Day => (date, date.tomorrow().unwrap_or(LAST), date.to_string()),
            Self::Month => (
                date.first_of_month(),
                date.last_of_month().tomorrow().unwrap_or(LAST),
                format!("{:04}-{:02}", date.year(), date.month()),
            ),
        };
        let start = if first == FIRST { i64::MIN } else { day_number(first) * Timestamp::DAY };
        let end = if next == LAST { i64::MAX } else { day_number(next) * Timestamp::DAY };
        (name, start..end)
    }

    /// The times (microseconds, end excluded) of a period; none when it is not a name of a period.
    pub(crate) fn times(self, name: &str) -> Option<Range<i64>> {
        Some(self.of(self.end(name)?.saturating_sub(1)).1)
    }

    /// When a period of this name ends, microseconds; none when it is not a name of a period.
    pub(crate) fn end(self, name: &str) -> Option<i64> {
        let date: Date = match self {
            Self::Day => name.parse().ok()?,
            Self::Month => format!("{name}-01").parse().ok()?,
        };
        Some(self.of(day_number(date) * Timestamp::DAY).1.end)
    }
}

fn day_number(date: Date) -> i64 {
    i64::from(EPOCH.until(date).map_or(0, |span| span.get_days()))
}

fn date_of_day(day: i64) -> Date {
    EPOCH.checked_add(jiff::Span::new().try_days(day).unwrap_or_default()).unwrap_or(EPOCH)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn periods_have_names_and_ends() {
        let noon = |text: &str| text.parse::<jiff::Timestamp>().unwrap().as_microsecond();
        let time = noon("2026-11-23T12:00:00Z");
        let (name, range) = Period::Day.of(time);
        assert_eq!(name, "2026-11-23");
        assert_eq!(range, noon("2026-11-23T00:00:00Z")..noon("2026-11-24T00:00:00Z"));
        let (name, range) = Period::Month.of(time);
        assert_eq!(name, "2026-11");
        assert_eq!(range, noon("2026-11-01T00:00:00Z")..noon("2026-12-01T00:00:00Z"));
        assert_eq!(Period::Month.end("2024-02"), Some(noon("2024-03-01T00:00:00Z")));
        assert_eq!(Period::Day.end("1969-12-31"), Some(0));
        assert_eq!(Period::Day.end("x"), None);
    }

    #[test]
    fn absurd_times_have_a_folder() {
        assert_eq!(Period::Day.of(i64::MIN).0, "0001-01-01");
        assert_eq!(Period::Day.of(i64::MAX).0, "9999-12-31");
        assert_eq!(Period::Month.of(i64::MAX).1.end, i64::MAX);
        assert!(Period::Day.of(i64::MIN).1.contains(&i64::MIN));
    }
}
