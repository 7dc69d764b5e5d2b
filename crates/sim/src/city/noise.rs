//! Noise: the tide of the traffic, the bars at the weekend, and the tree frogs that sing all night. `NoiseLevelObserved`;
//! levels in dB(A).

use rand::Rng;
use rand::rngs::StdRng;
use serde_json::{Map, Value, json};

use super::{Moment, Sensor, Site, attributes};
use crate::random::{Drift, round};
use catchment_types::Timestamp;

const DAY_S: f64 = 86_400.0;

/// A sound level meter.
pub(super) struct Meter {
    site: Site,
    /// The level with no traffic at all.
    calm: f64,
    street: Drift,
    moment: Drift,
    /// Mean sound energy over about a day, relative to 0 dB.
    day_energy: Option<f64>,
}

impl Meter {
    pub(super) fn new(site: Site, calm: f64, source: &mut StdRng) -> Self {
        let street = Drift::new(source, 1.2, 300.0);
        let moment = Drift::new(source, 1.6, 4.0);
        Self { site, calm, street, moment, day_energy: None }
    }
}

impl Sensor for Meter {
    fn site(&self) -> &Site {
        &self.site
    }

    fn model(&self) -> &'static str {
        "NoiseLevelObserved"
    }

    fn observe(&mut self, moment: &Moment, source: &mut StdRng) -> Map<String, Value> {
        let local = &moment.local;
        let cars = energy(self.calm) * 90.0 * moment.traffic;
        let frogs = if local.sun() == 0.0 { energy(self.calm + 6.0) } else { 0.0 };
        let bars = if local.weekend { energy(self.calm + 17.0) * local.peak(22.5, 1.8) } else { 0.0 };
        let rain = energy(48.0) * moment.climate.rain / 4.0;
        let surroundings = level(energy(self.calm) + cars + frogs + bars + rain);
        let equivalent = surroundings
            + self.street.step(source, moment.elapsed_s)
            + self.moment.step(source, moment.elapsed_s);
        let day = self.day_energy.get_or_insert(energy(equivalent));
        *day += (energy(equivalent) - *day) * (1.0 - (-moment.elapsed_s / DAY_S).exp());
        attributes(json!({
            "dateObservedFrom": Timestamp(moment.now.as_micros() - Timestamp::SECOND).to_string(),
            "dateObservedTo": moment.now.to_string(),
            "LAeq": round(equivalent, 1),
            "LAmax": round(equivalent + source.random_range(1.5..7.0), 1),
            "LAS": round(equivalent + source.random_range(-0.8..0.8), 1),
            "LAeq_d": round(level(*day), 1),
            "sonometerClass": "1",
        }))
    }
}

fn energy(level: f64) -> f64 {
    10f64.powf(level / 10.0)
}

fn level(energy: f64) -> f64 {
    10.0 * energy.log10()
}
