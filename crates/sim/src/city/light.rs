//! A street light: on at dusk, dimmed in the dead of night, off at dawn. `Streetlight`; watts, volts, amperes.

use catchment_types::Timestamp;
use rand::rngs::StdRng;
use serde_json::{Map, Value, json};

use super::{Moment, Sensor, Site, attributes};
use crate::random::{Drift, round};

const LAMP_W: f64 = 92.0;
const STANDBY_W: f64 = 0.6;
/// Two limits, so that a cloud at dusk does not make it flicker.
const ON_BELOW_LUX: f64 = 800.0;
const OFF_ABOVE_LUX: f64 = 2500.0;
const BOOT: i64 = 5 * Timestamp::SECOND;

/// A lamp on its pole.
pub(super) struct Streetlight {
    site: Site,
    voltage: Drift,
    lit: bool,
    switched_on: Option<Timestamp>,
    switched_off: Option<Timestamp>,
}

impl Streetlight {
    pub(super) fn new(site: Site, source: &mut StdRng) -> Self {
        let voltage = Drift::new(source, 2.2, 120.0);
        Self { site, voltage, lit: false, switched_on: None, switched_off: None }
    }
}

impl Sensor for Streetlight {
    fn site(&self) -> &Site {
        &self.site
    }

    fn model(&self) -> &'static str {
        "Streetlight"
    }

    fn observe(&mut self, moment: &Moment, source: &mut StdRng) -> Map<String, Value> {
        let lux = moment.climate.illuminance;
        if !self.lit && lux < ON_BELOW_LUX {
            (self.lit, self.switched_on) = (true, Some(moment.now));
        } else if self.lit && lux > OFF_ABOVE_LUX {
            (self.lit, self.switched_off) = (false, Some(moment.now));
        }
        let booting = self.switched_on.is_some_and(|on| moment.now.as_micros() - on.as_micros() < BOOT);
        let (state, level) = match (self.lit, booting) {
            (false, _) => ("off", 0.0),
            (true, true) => ("bootingUp", 0.3),
            (true, false) if (1.0..5.0).contains(&moment.local.hour) => ("low", 0.5),
            (true, false) => ("on", 1.0),
        };
        let power = STANDBY_W + LAMP_W * level;
        let voltage = 230.0 + self.voltage.step(source, moment.elapsed_s);
        let mut observation = attributes(json!({
            "status": "ok",
            "powerState": state,
            "illuminanceLevel": level,
            "powerConsumption": round(power, 1),
            "voltage": round(voltage, 1),
            "current": round(power / voltage, 3),
            "lanternHeight": 8.0,
            "locationCategory": "street",
        }));
        let times = [("dateLastSwitchingOn", self.switched_on), ("dateLastSwitchingOff", self.switched_off)];
        for (name, time) in times {
            observation.extend(time.map(|time| (name.to_owned(), time.to_string().into())));
        }
        observation
    }
}
