//! Traffic: two rush hours on working days, jams when a road is full, slower in the rain. `TrafficFlowObserved`.

use rand::rngs::StdRng;
use serde_json::{Map, Value, json};

use super::clock::LocalTime;
use super::weather::Climate;
use super::{Site, attributes};
use crate::random::{Drift, round};

pub(super) const MODEL: &str = "TrafficFlowObserved";

/// What one lane carries at most, vehicles an hour.
const LANE_CAPACITY: f64 = 1900.0;
const VEHICLE_LENGTH_M: f64 = 4.6;

/// A counting loop in a road.
pub(super) struct Road {
    site: Site,
    lanes: u32,
    free_speed: f64,
    demand: Drift,
    pulse: Drift,
    pace: Drift,
}

impl Road {
    /// `free_speed` in km/h.
    pub(super) fn new(site: Site, lanes: u32, free_speed: f64, source: &mut StdRng) -> Self {
        Self {
            site,
            lanes,
            free_speed,
            demand: Drift::new(source, 0.06, 1800.0),
            pulse: Drift::new(source, 0.07, 20.0),
            pace: Drift::new(source, 2.0, 30.0),
        }
    }

    pub(super) fn site(&self) -> &Site {
        &self.site
    }

    /// How busy the road is (0 empty, 1 at capacity), and what the loop reports.
    pub(super) fn observe(
        &mut self,
        elapsed_s: f64,
        local: &LocalTime,
        climate: &Climate,
        source: &mut StdRng,
    ) -> (f64, Map<String, Value>) {
        let swing = 1.0 + self.demand.step(source, elapsed_s);
        let load = (usual(local) * swing * (1.0 + self.pulse.step(source, elapsed_s))).clamp(0.01, 1.1);
        // Near capacity the flow breaks down: speed drops and with it what passes.
        let breakdown = 1.0 / (1.0 + (-(load - 0.9) / 0.05).exp());
        let wet = if climate.rain > 0.5 { 0.88 } else { 1.0 };
        let pace = self.pace.step(source, elapsed_s);
        let speed = (self.free_speed * wet * (1.0 - 0.12 * load) * (1.0 - 0.68 * breakdown) + pace).max(5.0);
        let intensity = (LANE_CAPACITY * f64::from(self.lanes) * load * (1.0 - 0.2 * breakdown)).round();
        let headway_s = 3600.0 * f64::from(self.lanes) / intensity.max(1.0);
        let length_m = VEHICLE_LENGTH_M + 0.9 * local.peak(9.5, 3.0);
        let spacing_m = headway_s * speed / 3.6;
        let observation = attributes(json!({
            "intensity": intensity,
            "occupancy": round((length_m / spacing_m).min(1.0), 3),
            "averageVehicleSpeed": round(speed, 1),
            "averageVehicleLength": round(length_m, 2),
            "averageHeadwayTime": round(headway_s, 2),
            "averageGapDistance": round((spacing_m - length_m).max(0.0), 1),
            "congested": speed < 0.5 * self.free_speed,
            "laneId": 1,
            "laneDirection": "forward",
            "reversedLane": false,
            "vehicleType": "car",
            "refRoadSegment": format!("urn:ngsi-ld:RoadSegment:{}", self.site.id),
        }));
        (load, observation)
    }
}

/// The usual load at this time of the day.
fn usual(local: &LocalTime) -> f64 {
    if local.weekend {
        0.06 + 0.42 * local.peak(11.0, 2.4) + 0.40 * local.peak(17.5, 2.4)
    } else {
        0.05 + 0.88 * local.peak(7.2, 1.0) + 0.38 * local.peak(12.3, 1.9) + 0.88 * local.peak(16.8, 1.4)
    }
}
