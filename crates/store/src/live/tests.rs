use futures::FutureExt;

use super::*;

fn event<'a>(device_id: &'a str, event_type: &'a str) -> Event<'a> {
    Event {
        realm: "main",
        device_id,
        event_type,
        topic: "devices/d/state",
        received_at: Timestamp(1),
        content_type: "",
        tags: "",
        mark: 0,
        payload: b"payload",
    }
}

fn reading(number: f64) -> Reading<'static> {
    Reading { timestamp: Timestamp(2), metric: "m", value: Value::Number(number) }
}

/// Publishes one reading of each (device, type, metric), numbered from 0.
fn publish(hub: &LiveHub, readings: &[(&str, &str, &str)]) {
    let Some(mut batch) = hub.batch() else { return };
    for (number, (device, event_type, metric)) in readings.iter().enumerate() {
        let event = event(device, event_type);
        if batch.begin(&event) {
            batch.reading(&(*device).into(), &(*metric).into(), &event, &reading(number as f64));
        }
    }
    hub.publish(batch);
}

/// The numbers of what has arrived; a gap is negative.
fn arrived(subscription: &mut LiveSubscription) -> Vec<f64> {
    let mut numbers = Vec::new();
    while let Some(Some(message)) = subscription.recv().now_or_never() {
        match message {
            LiveMessage::Readings(readings) => {
                numbers.extend(readings.iter().map(|reading| reading.value.as_value().number().unwrap()));
            }
            LiveMessage::Lagged(count) => numbers.push(-(count as f64)),
            LiveMessage::Events(events) => panic!("{events:?}"),
        }
    }
    numbers
}

fn filter(devices: &[&str], metrics: &[&str], types: &[&str]) -> LiveFilter {
    let globs = |list: &[&str]| list.iter().map(|&pattern| pattern.into()).collect();
    LiveFilter {
        follow: Follow::Readings,
        devices: globs(devices),
        metrics: globs(metrics),
        types: globs(types),
    }
}

#[test]
fn filters_choose() {
    let hub = LiveHub::new(LiveConfig::default());
    assert!(hub.batch().is_none());
    let published = [
        ("truck-1", "state", "speed"),
        ("truck-1", "state", "engine.rpm"),
        ("truck-2", "gps", "speed"),
        ("ship-1", "state", "speed"),
    ];
    for (wanted, expected) in [
        (filter(&[], &[], &[]), vec![0.0, 1.0, 2.0, 3.0]),
        (filter(&["truck-1"], &[], &[]), vec![0.0, 1.0]),
        (filter(&["truck-1", "ship-1", "truck-1"], &["speed"], &[]), vec![0.0, 3.0]),
        (filter(&["truck-*"], &["speed"], &[]), vec![0.0, 2.0]),
        (filter(&["*-1", "truck-1"], &["engine.*", "none"], &["state"]), vec![1.0]),
        (filter(&[], &[], &["g*"]), vec![2.0]),
        (filter(&["nobody"], &[], &[]), vec![]),
    ] {
        let mut subscription = hub.subscribe(wanted.clone()).unwrap();
        assert_eq!(*subscription.filter(), wanted);
        publish(&hub, &published);
        assert_eq!(arrived(&mut subscription), expected, "{wanted:?}");
    }
    // All of them are gone by now.
    assert_eq!(hub.subscribers(), 0);
    assert!(hub.table.read().by_device.is_empty() && hub.table.read().by_pattern.is_empty());
}

#[test]
fn subscribers_do_not_disturb_each_other() {
    let hub = LiveHub::new(LiveConfig::default());
    let mut exact: Vec<_> =
        (0..2_000).map(|at| hub.subscribe(filter(&[&format!("device-{at}")], &[], &[])).unwrap()).collect();
    let mut all =
        [hub.subscribe(LiveFilter::default()).unwrap(), hub.subscribe(LiveFilter::default()).unwrap()];
    publish(&hub, &[("device-7", "state", "m"), ("device-8", "state", "m")]);
    assert_eq!(arrived(&mut exact[7]), [0.0]);
    assert_eq!(arrived(&mut exact[8]), [1.0]);
    assert!(arrived(&mut exact[9]).is_empty());
    for subscription in &mut all {
        assert_eq!(arrived(subscription), [0.0, 1.0]);
    }
}

#[test]
fn a_slow_subscriber_loses_the_oldest_and_is_told() {
    let queue_bytes_max = 3 * size_of::<LiveReading>();
    let hub = LiveHub::new(LiveConfig { queue_bytes_max, ..LiveConfig::default() });
    let mut slow = hub.subscribe(LiveFilter::default()).unwrap();
    for _ in 0..5 {
        publish(&hub, &[("d", "t", "m")]);
    }
    assert_eq!(arrived(&mut slow), [-2.0, 0.0, 0.0, 0.0]);
    // More at once than the queue holds: as a whole, alone.
    publish(&hub, &[("d", "t", "m")]);
    publish(&hub, &[("d", "t", "m"); 9]);
    assert_eq!(arrived(&mut slow)[..2], [-1.0, 0.0]);
    publish(&hub, &[("d", "t", "m")]);
    assert_eq!(arrived(&mut slow), [0.0]);
}

#[tokio::test]
async fn events_can_be_followed() {
    let hub = LiveHub::new(LiveConfig::default());
    let events = LiveFilter { follow: Follow::Events, ..filter(&[], &[], &["state"]) };
    let mut tail = hub.subscribe(events.clone()).unwrap();
    let mut other = hub.subscribe(LiveFilter { devices: vec!["d".into()], ..events }).unwrap();
    let mut batch = hub.batch().unwrap();
    // Nobody wants readings.
    assert!(!batch.begin(&event("d", "state")));
    assert!(!batch.begin(&event("d", "other")));
    assert!(!batch.begin(&event("e", "state")));
    hub.publish(batch);
    let Some(LiveMessage::Events(events)) = tail.recv().await else { panic!("no events") };
    assert_eq!(events.iter().map(|event| &*event.device_id).collect::<Vec<_>>(), ["d", "e"]);
    assert_eq!((&events[0].payload[..], &*events[0].topic), (&b"payload"[..], "devices/d/state"));
    let Some(LiveMessage::Events(events)) = other.recv().await else { panic!("no events") };
    assert_eq!(events.len(), 1);
}

#[tokio::test]
async fn closing_ends_subscriptions_after_what_waits() {
    let hub = LiveHub::new(LiveConfig::default());
    let mut before = hub.subscribe(LiveFilter::default()).unwrap();
    let waiting = tokio::spawn({
        let mut subscription = hub.subscribe(filter(&["nobody"], &[], &[])).unwrap();
        async move { subscription.recv().await }
    });
    publish(&hub, &[("d", "t", "m")]);
    tokio::task::yield_now().await;
    hub.close();
    assert!(matches!(before.recv().await, Some(LiveMessage::Readings(_))));
    assert_eq!(before.recv().await, None);
    assert_eq!(waiting.await.unwrap(), None);
    assert_eq!(hub.subscribe(LiveFilter::default()).unwrap().recv().await, None);
}

#[test]
fn their_number_is_bounded() {
    let hub = LiveHub::new(LiveConfig { subscribers_max: 1, ..LiveConfig::default() });
    let first = hub.subscribe(LiveFilter::default()).unwrap();
    let refused = hub.subscribe(LiveFilter::default()).unwrap_err();
    assert_eq!(refused, TooManySubscribers { subscribers_max: 1 });
    drop(first);
    assert!(hub.subscribe(LiveFilter::default()).is_ok());
}
