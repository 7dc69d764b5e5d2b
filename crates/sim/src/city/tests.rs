use super::*;

/// Monday 2026-06-01, midnight in Martinique.
const MONDAY: i64 = 1_780_286_400 * Timestamp::SECOND;
const HOUR: i64 = 3600 * Timestamp::SECOND;

fn documents(messages: &[Message]) -> Vec<(String, Value)> {
    let parse = |message: &Message| serde_json::from_slice(&message.payload).unwrap();
    messages.iter().map(|message| (message.device_id.clone(), parse(message))).collect()
}

/// The mean of a device's attribute over ten minutes from `hour` on, the city running since two hours before.
fn mean(hour: i64, device: &str, attribute: &str) -> f64 {
    let start = MONDAY + (hour - 2) * HOUR;
    let mut city = City::new(42, Timestamp(start));
    for second in (0..7200).step_by(5) {
        city.step(Timestamp(start + second * Timestamp::SECOND));
    }
    let mut sum = 0.0;
    for second in 0..600 {
        let now = Timestamp(MONDAY + hour * HOUR + second * Timestamp::SECOND);
        let documents = documents(&city.step(now));
        let (_, document) = documents.iter().find(|(id, _)| id == device).unwrap();
        sum += document[attribute].as_f64().unwrap();
    }
    sum / 600.0
}

#[test]
fn ten_sensors_of_six_kinds() {
    let now = Timestamp(MONDAY);
    let messages = City::new(1, now).step(now);
    let kinds: std::collections::BTreeSet<_> = messages.iter().map(|message| message.event_type).collect();
    let ids: std::collections::BTreeSet<_> = messages.iter().map(|message| &message.device_id).collect();
    assert_eq!((messages.len(), ids.len(), kinds.len()), (10, 10, 6), "{kinds:?}");
    for (id, document) in documents(&messages) {
        assert_eq!(document["dateObserved"], "2026-06-01T04:00:00.000000Z", "{id}");
        assert_eq!(document["location"]["type"], "Point", "{id}");
        let longitude = document["location"]["coordinates"][0].as_f64().unwrap();
        assert!((-61.3..-60.7).contains(&longitude), "{id} is not in Martinique");
        assert!(catchment_types::check_device_id(&id).is_ok());
    }
}

#[test]
fn the_same_seed_is_the_same_city() {
    let run = |seed| {
        let mut city = City::new(seed, Timestamp(MONDAY));
        (1..50).flat_map(|s| city.step(Timestamp(MONDAY + s * Timestamp::SECOND))).collect::<Vec<_>>()
    };
    assert_eq!(run(5), run(5));
    assert_ne!(run(5), run(6));
}

#[test]
fn rush_hour_is_felt_everywhere() {
    let (night, rush) = (3, 7);
    let traffic = |hour| mean(hour, "traffic-a1-dillon", "intensity");
    assert!(traffic(rush) > 5.0 * traffic(night), "{} {}", traffic(rush), traffic(night));
    let speed = |hour| mean(hour, "traffic-a1-dillon", "averageVehicleSpeed");
    assert!(speed(rush) < 0.8 * speed(night), "{} {}", speed(rush), speed(night));
    let no2 = |hour| mean(hour, "air-fort-de-france", "no2");
    assert!(no2(rush) > 2.0 * no2(night), "{} {}", no2(rush), no2(night));
    let noise = |hour| mean(hour, "noise-savane", "LAeq");
    assert!(noise(rush) > noise(night) + 5.0, "{} {}", noise(rush), noise(night));
}

#[test]
fn garages_fill_and_lamps_go_out() {
    let parking = |hour| mean(hour, "parking-pointe-simon", "occupancy");
    assert!(parking(11) > 0.45 && parking(4) < 0.2, "{} {}", parking(11), parking(4));
    let lamp = |hour| mean(hour, "light-republique-12", "powerConsumption");
    assert!(lamp(12) < 2.0 && lamp(21) > 80.0 && (40.0..60.0).contains(&lamp(3)));
}

#[test]
fn a_month_stays_within_nature() {
    let mut city = City::new(9, Timestamp(MONDAY));
    let limits = [
        ("temperature", 18.0, 36.0),
        ("relativeHumidity", 0.3, 1.0),
        ("atmosphericPressure", 1000.0, 1030.0),
        ("windSpeed", 0.0, 25.0),
        ("windDirection", -180.0, 180.0),
        ("occupancy", 0.0, 1.0),
        ("LAeq", 30.0, 95.0),
        ("pm10", 0.0, 200.0),
        ("averageVehicleSpeed", 1.0, 130.0),
        ("voltage", 215.0, 245.0),
    ];
    for minute in (0..30 * 24 * 60).step_by(7) {
        for (id, document) in documents(&city.step(Timestamp(MONDAY + minute * Timestamp::MINUTE))) {
            for (attribute, min, max) in limits {
                if let Some(value) = document[attribute].as_f64() {
                    assert!(
                        (min..=max).contains(&value),
                        "{attribute} of {id} is {value} in minute {minute}"
                    );
                }
            }
        }
    }
}
