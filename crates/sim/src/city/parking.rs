//! Parking: a garage fills and empties car by car towards what is usual at the hour. `OffStreetParking`.

use rand::rngs::StdRng;
use serde_json::{Map, Value, json};

use super::clock::LocalTime;
use super::{Moment, Sensor, Site, attributes};
use crate::random::{arrivals, round};

/// How long it takes until a garage is as full as it should be, seconds.
const SETTLE_S: f64 = 900.0;
/// Mean stay of those who come and go whatever the hour, seconds.
const STAY_S: f64 = 5400.0;

/// Who parks here.
#[derive(Debug, Clone, Copy)]
pub(super) enum Use {
    /// Full in working hours.
    Offices,
    /// Full at lunch and in the evening, more at the weekend.
    Leisure,
}

impl Use {
    fn usual(self, local: &LocalTime) -> f64 {
        match (self, local.weekend) {
            (Self::Offices, false) => 0.08 + 0.58 * local.peak(10.2, 1.9) + 0.52 * local.peak(14.6, 1.9),
            (Self::Offices, true) => 0.06 + 0.22 * local.peak(11.0, 2.0),
            (Self::Leisure, false) => 0.10 + 0.55 * local.peak(12.8, 1.6) + 0.50 * local.peak(19.8, 1.8),
            (Self::Leisure, true) => 0.14 + 0.55 * local.peak(12.5, 2.4) + 0.78 * local.peak(20.5, 2.2),
        }
    }
}

/// A garage with a barrier that counts.
pub(super) struct Garage {
    site: Site,
    spots: u32,
    used_by: Use,
    occupied: u32,
}

impl Garage {
    pub(super) fn new(site: Site, spots: u32, used_by: Use, local: &LocalTime) -> Self {
        let occupied = (f64::from(spots) * used_by.usual(local).min(1.0)).round() as u32;
        Self { site, spots, used_by, occupied }
    }
}

impl Sensor for Garage {
    fn site(&self) -> &Site {
        &self.site
    }

    fn model(&self) -> &'static str {
        "OffStreetParking"
    }

    fn observe(&mut self, moment: &Moment, source: &mut StdRng) -> Map<String, Value> {
        let missing = f64::from(self.spots) * self.used_by.usual(&moment.local) - f64::from(self.occupied);
        let churn = f64::from(self.occupied) / STAY_S;
        let enter = arrivals(source, moment.elapsed_s * (churn + missing.max(0.0) / SETTLE_S));
        let leave = arrivals(source, moment.elapsed_s * (churn + (-missing).max(0.0) / SETTLE_S));
        self.occupied = (self.occupied + enter).saturating_sub(leave).min(self.spots);
        let free = self.spots - self.occupied;
        let state = match free {
            0 => "full",
            few if few * 20 < self.spots => "almostFull",
            _ => "spacesAvailable",
        };
        attributes(json!({
            "totalSpotNumber": self.spots,
            "availableSpotNumber": free,
            "occupiedSpotNumber": self.occupied,
            "occupancy": round(f64::from(self.occupied) / f64::from(self.spots), 3),
            "status": ["open", state],
            "category": ["public", "feeCharged", "barrierAccess"],
        }))
    }
}
