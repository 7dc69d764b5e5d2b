//! The city: ten sensors of six kinds in Martinique, one observation a second each.
//!
//! Attributes, names and units are those of the Smart Data Models (fractions are 0–1), in their short form: attribute →
//! value. `location` is a GeoJSON point, `dateObserved` is RFC 3339 in UTC. The device id is the last part of the
//! entity's URN, the event type is the model's name.
//!
//! The sensors live in one world: the weather decides how fast exhaust is blown away and when lamps are lit, the traffic
//! decides the noise and the air.

mod air;
mod clock;
mod light;
mod noise;
mod parking;
mod traffic;
mod weather;

use catchment_types::Timestamp;
use rand::rngs::StdRng;
use serde_json::{Map, Value, json};

use self::clock::LocalTime;
use self::weather::Climate;
use crate::Message;
use crate::random::source;

/// The world.
pub struct City {
    last: Timestamp,
    source: StdRng,
    weather: weather::Station,
    roads: Vec<traffic::Road>,
    others: Vec<Box<dyn Sensor>>,
}

/// Where a sensor stands, and what it is called.
struct Site {
    id: &'static str,
    name: &'static str,
    longitude: f64,
    latitude: f64,
}

const fn site(id: &'static str, name: &'static str, longitude: f64, latitude: f64) -> Site {
    Site { id, name, longitude, latitude }
}

/// The state of the world that sensors share at one moment.
struct Moment {
    now: Timestamp,
    elapsed_s: f64,
    local: LocalTime,
    climate: Climate,
    /// How busy the roads are: 0 empty, 1 at capacity.
    traffic: f64,
}

/// A sensor whose observation depends on the weather and the traffic.
trait Sensor: Send {
    fn site(&self) -> &Site;
    fn model(&self) -> &'static str;
    fn observe(&mut self, moment: &Moment, source: &mut StdRng) -> Map<String, Value>;
}

impl City {
    /// A city at the time `start`.
    #[must_use]
    pub fn new(seed: u64, start: Timestamp) -> Self {
        let mut source = source(seed, 1);
        let local = LocalTime::of(start);
        let weather = weather::Station::new(
            site("weather-desaix", "Fort-de-France Desaix", -61.0682, 14.6161),
            &mut source,
        );
        let mut road = |site, lanes, speed| traffic::Road::new(site, lanes, speed, &mut source);
        let roads = vec![
            road(site("traffic-a1-dillon", "Autoroute A1, Dillon", -61.0391, 14.6098), 3, 90.0),
            road(site("traffic-rn5-riviere-salee", "RN5, Rivière-Salée", -60.9716, 14.5311), 2, 80.0),
        ];
        let mut air =
            |site, exposure| Box::new(air::Station::new(site, exposure, &mut source)) as Box<dyn Sensor>;
        let mut others = vec![
            air(site("air-fort-de-france", "Fort-de-France centre", -61.0667, 14.6036), 1.0),
            air(site("air-robert", "Le Robert bourg", -60.9376, 14.6775), 0.45),
        ];
        let mut noise = |site, calm| Box::new(noise::Meter::new(site, calm, &mut source)) as Box<dyn Sensor>;
        others.push(noise(site("noise-savane", "Place de la Savane", -61.0680, 14.6021), 46.0));
        others.push(noise(site("noise-schoelcher", "Schœlcher, front de mer", -61.1003, 14.6136), 41.0));
        others.push(Box::new(parking::Garage::new(
            site("parking-pointe-simon", "Parking Pointe Simon", -61.0719, 14.6012),
            380,
            parking::Use::Offices,
            &local,
        )));
        others.push(Box::new(parking::Garage::new(
            site("parking-savane", "Parking de la Savane", -61.0671, 14.6030),
            240,
            parking::Use::Leisure,
            &local,
        )));
        others.push(Box::new(light::Streetlight::new(
            site("light-republique-12", "Rue de la République 12", -61.0702, 14.6049),
            &mut source,
        )));
        Self { last: start, source, weather, roads, others }
    }

    /// The observations of the moment `now`, one of each sensor.
    pub fn step(&mut self, now: Timestamp) -> Vec<Message> {
        let elapsed_s = (now.as_micros() - self.last.as_micros()).max(0) as f64 / Timestamp::SECOND as f64;
        self.last = now;
        let local = LocalTime::of(now);
        let source = &mut self.source;
        let (climate, observation) = self.weather.observe(elapsed_s, &local, source);
        let mut messages = vec![message(self.weather.site(), weather::MODEL, now, observation)];
        let mut traffic = 0.0;
        for road in &mut self.roads {
            let (load, observation) = road.observe(elapsed_s, &local, &climate, source);
            traffic += load;
            messages.push(message(road.site(), traffic::MODEL, now, observation));
        }
        traffic /= self.roads.len() as f64;
        let moment = Moment { now, elapsed_s, local, climate, traffic };
        for sensor in &mut self.others {
            let observation = sensor.observe(&moment, source);
            messages.push(message(sensor.site(), sensor.model(), now, observation));
        }
        messages
    }
}

fn message(site: &Site, model: &'static str, now: Timestamp, observation: Map<String, Value>) -> Message {
    let mut document = Map::new();
    document.insert("id".into(), format!("urn:ngsi-ld:{model}:{}", site.id).into());
    document.insert("type".into(), model.into());
    document.insert("name".into(), site.name.into());
    document.insert("dateObserved".into(), now.to_string().into());
    document
        .insert("location".into(), json!({"type": "Point", "coordinates": [site.longitude, site.latitude]}));
    document.extend(observation);
    Message {
        device_id: site.id.to_owned(),
        event_type: model,
        payload: Value::Object(document).to_string().into_bytes(),
    }
}

/// The object that a `json!` wrote.
fn attributes(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(map) => map,
        other => Map::from_iter([("value".to_owned(), other)]),
    }
}

#[cfg(test)]
mod tests;
