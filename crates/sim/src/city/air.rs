//! Air quality: exhaust follows the traffic, the wind carries it off, the sun makes ozone of it, and now and then the
//! Sahara sends its dust. `AirQualityObserved`; concentrations in µg/m³.

use rand::rngs::StdRng;
use serde_json::{Map, Value, json};

use super::{Moment, Sensor, Site, attributes};
use crate::random::{Drift, round};

/// An air quality station.
pub(super) struct Station {
    site: Site,
    /// How near the road is: 1 at the kerb.
    exposure: f64,
    exhaust: Drift,
    dust: Drift,
    volcano: Drift,
}

impl Station {
    pub(super) fn new(site: Site, exposure: f64, source: &mut StdRng) -> Self {
        Self {
            site,
            exposure,
            exhaust: Drift::new(source, 0.12, 120.0),
            dust: Drift::new(source, 9.0, 36_000.0),
            volcano: Drift::new(source, 0.8, 3600.0),
        }
    }
}

impl Sensor for Station {
    fn site(&self) -> &Site {
        &self.site
    }

    fn model(&self) -> &'static str {
        "AirQualityObserved"
    }

    fn observe(&mut self, moment: &Moment, source: &mut StdRng) -> Map<String, Value> {
        let climate = &moment.climate;
        let exhaust = moment.traffic
            * self.exposure
            * (1.0 + self.exhaust.step(source, moment.elapsed_s)).max(0.2)
            * 6.0
            / (1.5 + climate.wind);
        let washed = if climate.rain > 0.5 { 0.7 } else { 1.0 };
        let no2 = 5.0 + 58.0 * exhaust;
        let no = 1.0 + 24.0 * exhaust;
        let dust = self.dust.step(source, moment.elapsed_s).max(-6.0);
        let pm10 = (19.0 + dust + 22.0 * exhaust) * washed;
        let pm25 = (6.5 + 0.3 * dust + 12.0 * exhaust) * washed;
        let o3 = (38.0 + 34.0 * moment.local.sun() - 0.35 * no2).max(4.0);
        let so2 = (1.8 + self.volcano.step(source, moment.elapsed_s)).max(0.2);
        let index = air_quality_index(no2, pm10, pm25, o3);
        attributes(json!({
            "airQualityIndex": round(index, 0),
            "airQualityLevel": level(index),
            "co": round(210.0 + 640.0 * exhaust, 0),
            "no": round(no, 1),
            "no2": round(no2, 1),
            "nox": round(no2 + 1.53 * no, 1),
            "o3": round(o3, 1),
            "so2": round(so2, 1),
            "pm1": round(0.6 * pm25, 1),
            "pm10": round(pm10, 1),
            "pm25": round(pm25, 1),
            "temperature": round(climate.temperature, 1),
            "relativeHumidity": round(climate.humidity, 2),
            "windSpeed": round(climate.wind, 1),
            "windDirection": round(climate.wind_direction, 0),
            "precipitation": round(climate.rain, 1),
            "reliability": 0.9,
        }))
    }
}

/// The Common Air Quality Index (CITEAIR, hourly, roadside): the worst of its parts; 100 is the end of the scale's
/// named levels.
fn air_quality_index(no2: f64, pm10: f64, pm25: f64, o3: f64) -> f64 {
    let part = |value: f64, limits: [f64; 4]| {
        let mut below = 0.0;
        for (step, limit) in limits.into_iter().enumerate() {
            if value <= limit {
                return 25.0 * (step as f64 + (value - below) / (limit - below));
            }
            below = limit;
        }
        100.0 * value / below
    };
    part(no2, [50.0, 100.0, 200.0, 400.0])
        .max(part(pm10, [25.0, 50.0, 90.0, 180.0]))
        .max(part(pm25, [15.0, 30.0, 55.0, 110.0]))
        .max(part(o3, [60.0, 120.0, 180.0, 240.0]))
}

fn level(index: f64) -> &'static str {
    match index {
        ..25.0 => "veryLow",
        ..50.0 => "low",
        ..75.0 => "medium",
        ..100.0 => "high",
        _ => "veryHigh",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn index_follows_the_worst_part() {
        assert_eq!(air_quality_index(50.0, 0.0, 0.0, 0.0), 25.0);
        assert_eq!(air_quality_index(75.0, 90.0, 0.0, 0.0), 75.0);
        assert_eq!(air_quality_index(0.0, 360.0, 0.0, 0.0), 200.0);
        assert_eq!(level(24.9), "veryLow");
        assert_eq!(level(120.0), "veryHigh");
    }
}
