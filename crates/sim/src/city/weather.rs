//! Weather: trade winds, a warm sea, showers that pass. `WeatherObserved`.

use rand::rngs::StdRng;
use serde_json::{Map, Value, json};

use super::clock::LocalTime;
use super::{Site, attributes};
use crate::random::{Drift, round};

pub(super) const MODEL: &str = "WeatherObserved";

const HOUR_S: f64 = 3600.0;
const LUX_PER_WATT: f64 = 120.0;
/// The trade wind blows from the east-north-east; degrees from north, −180 to 180.
const WIND_FROM_DEGREES: f64 = 75.0;

/// What the other sensors need to know of the weather.
#[derive(Debug, Clone, Copy)]
pub(super) struct Climate {
    /// Metres a second.
    pub wind: f64,
    /// Degrees from north, −180 to 180.
    pub wind_direction: f64,
    /// Degrees Celsius.
    pub temperature: f64,
    /// 0 to 1.
    pub humidity: f64,
    /// Litres per square metre and hour.
    pub rain: f64,
    /// Lux on open ground.
    pub illuminance: f64,
}

/// A weather station.
pub(super) struct Station {
    site: Site,
    temperature: Drift,
    humidity: Drift,
    pressure: Drift,
    wind: Drift,
    gust: Drift,
    direction: Drift,
    clouds: Drift,
    pressure_before: Option<f64>,
}

impl Station {
    pub(super) fn new(site: Site, source: &mut StdRng) -> Self {
        let mut drift = |deviation, memory_s| Drift::new(source, deviation, memory_s);
        Self {
            site,
            temperature: drift(0.7, 3.0 * HOUR_S),
            humidity: drift(0.04, 2.0 * HOUR_S),
            pressure: drift(1.8, 24.0 * HOUR_S),
            wind: drift(1.6, HOUR_S),
            gust: drift(0.7, 15.0),
            direction: drift(14.0, 600.0),
            clouds: drift(1.0, 900.0),
            pressure_before: None,
        }
    }

    pub(super) fn site(&self) -> &Site {
        &self.site
    }

    pub(super) fn observe(
        &mut self,
        elapsed_s: f64,
        local: &LocalTime,
        source: &mut StdRng,
    ) -> (Climate, Map<String, Value>) {
        let clouds = self.clouds.step(source, elapsed_s);
        let cover = (0.35 + 0.3 * clouds).clamp(0.0, 1.0);
        let rain = 14.0 * (clouds - 1.3).max(0.0);
        let wind = 6.0
            + 1.2 * local.wave(14.0, 24.0)
            + self.wind.step(source, elapsed_s)
            + self.gust.step(source, elapsed_s);
        let wind = wind.max(0.0);
        let wind_direction = WIND_FROM_DEGREES + self.direction.step(source, elapsed_s);
        let wind_direction = (wind_direction + 180.0).rem_euclid(360.0) - 180.0;
        let radiation = 1020.0 * local.sun() * (1.0 - 0.72 * cover);
        let temperature = 26.4 + 2.6 * local.wave(13.5, 24.0) - 0.15 * rain.min(10.0)
            + self.temperature.step(source, elapsed_s);
        let humidity =
            0.77 - 0.025 * (temperature - 26.4) + 0.01 * rain + self.humidity.step(source, elapsed_s);
        let humidity = humidity.clamp(0.45, 0.99);
        // In the tropics the air has a tide: highest at 10 and 22 o'clock.
        let pressure = 1014.2 + 1.3 * local.wave(10.0, 12.0) + self.pressure.step(source, elapsed_s);
        // The tendency compares with a mean that follows over three hours.
        let before = self.pressure_before.get_or_insert(pressure);
        *before += (pressure - *before) * (1.0 - (-elapsed_s / (3.0 * HOUR_S)).exp());
        let tendency = match pressure - *before {
            rising if rising > 0.4 => "raising",
            falling if falling < -0.4 => "falling",
            _ => "steady",
        };
        let illuminance = radiation * LUX_PER_WATT;
        let observation = attributes(json!({
            "temperature": round(temperature, 1),
            "feelsLikeTemperature": round(feels_like(temperature, humidity, wind), 1),
            "relativeHumidity": round(humidity, 2),
            "dewPoint": round(dew_point(temperature, humidity), 1),
            "atmosphericPressure": round(pressure, 1),
            "pressureTendency": tendency,
            "precipitation": round(rain, 1),
            "solarRadiation": round(radiation, 0),
            "illuminance": round(illuminance, 0),
            "windSpeed": round(wind, 1),
            "windDirection": round(wind_direction, 0),
        }));
        (Climate { wind, wind_direction, temperature, humidity, rain, illuminance }, observation)
    }
}

/// Magnus' formula.
fn dew_point(temperature: f64, humidity: f64) -> f64 {
    let gamma = humidity.ln() + 17.62 * temperature / (243.12 + temperature);
    243.12 * gamma / (17.62 - gamma)
}

/// Steadman's apparent temperature, as Australia's weather service uses it.
fn feels_like(temperature: f64, humidity: f64, wind: f64) -> f64 {
    let vapour_pressure = humidity * 6.105 * (17.27 * temperature / (237.7 + temperature)).exp();
    temperature + 0.33 * vapour_pressure - 0.7 * wind - 4.0
}
