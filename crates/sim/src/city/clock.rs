//! Time of day in Martinique: UTC−4, all year.

use catchment_types::Timestamp;

const OFFSET: i64 = -4 * 3600 * Timestamp::SECOND;
const SUNRISE_HOUR: f64 = 5.9;
const SUNSET_HOUR: f64 = 18.1;

/// A moment on the local clock.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct LocalTime {
    /// 0 to 24.
    pub hour: f64,
    /// Saturday or Sunday.
    pub weekend: bool,
}

impl LocalTime {
    pub(super) fn of(now: Timestamp) -> Self {
        let local = Timestamp(now.as_micros() + OFFSET);
        let since_midnight = local.as_micros() - local.floor(Timestamp::DAY).as_micros();
        // The epoch was a Thursday; 0 is Monday.
        let weekday = (local.day() + 3).rem_euclid(7);
        Self { hour: since_midnight as f64 / (3600 * Timestamp::SECOND) as f64, weekend: weekday >= 5 }
    }

    /// A smooth peak of height 1 at `at` hours, `width` hours to each side; it reaches over midnight.
    pub(super) fn peak(&self, at: f64, width: f64) -> f64 {
        let distance = (self.hour - at + 12.0).rem_euclid(24.0) - 12.0;
        (-0.5 * (distance / width).powi(2)).exp()
    }

    /// A wave of amplitude 1 that repeats every `period` hours and is highest at `at` hours.
    pub(super) fn wave(&self, at: f64, period: f64) -> f64 {
        (std::f64::consts::TAU * (self.hour - at) / period).cos()
    }

    /// How high the sun stands: 0 below the horizon, 1 in the zenith.
    pub(super) fn sun(&self) -> f64 {
        let day = (self.hour - SUNRISE_HOUR) / (SUNSET_HOUR - SUNRISE_HOUR);
        if (0.0..=1.0).contains(&day) { (std::f64::consts::PI * day).sin() } else { 0.0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn local_time_is_four_hours_behind() {
        // 2022-02-19T03:30:00Z, a Saturday in UTC and still Friday in Martinique.
        let friday = LocalTime::of(Timestamp(1_645_241_400_000_000));
        assert_eq!(friday, LocalTime { hour: 23.5, weekend: false });
        assert!(LocalTime::of(Timestamp(1_645_255_800_000_000)).weekend);
        assert!(friday.peak(0.0, 1.0) > 0.8 && friday.sun() == 0.0);
        assert!(LocalTime { hour: 12.0, weekend: false }.sun() > 0.99);
    }
}
