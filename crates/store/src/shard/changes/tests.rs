use catchment_decode::{Decoders, WorkerDecoders};
use catchment_types::{Event, EventBatch};
use futures::FutureExt as _;

use super::*;

/// Takes a block of (device, payload) at the shard's end.
fn ingest(shard: &Shard, events: &[(&str, &str)]) {
    let next = shard.stats().next_offset;
    let mut block = EventBatch::builder();
    for (at, (device_id, payload)) in (0..).zip(events) {
        let event = Event {
            realm: "main",
            device_id,
            event_type: "state",
            topic: "",
            received_at: Timestamp(1_700_000_000_000_000 + at),
            content_type: "application/json",
            tags: "",
            mark: 0,
            payload: payload.as_bytes(),
        };
        block.push(&event).unwrap();
    }
    let mut decoders = WorkerDecoders::new(Arc::new(Decoders::default()));
    shard.ingest(next, &block.take(), next.., &mut decoders, None);
}

/// Device and metrics of each change, in order.
fn told(states: &[DeviceState]) -> Vec<(String, Vec<String>)> {
    let metrics = |state: &DeviceState| {
        let mut names: Vec<_> = state.metrics.iter().map(|metric| metric.metric.to_string()).collect();
        names.sort_unstable();
        names
    };
    let mut told: Vec<_> = states.iter().map(|state| (state.device_id.to_string(), metrics(state))).collect();
    told.sort_unstable();
    told
}

fn expected(devices: &[(&str, &[&str])]) -> Vec<(String, Vec<String>)> {
    let texts = |list: &[&str]| list.iter().map(|&text| text.to_owned()).collect();
    devices.iter().map(|(device, metrics)| ((*device).to_owned(), texts(metrics))).collect()
}

#[test]
fn a_device_is_told_once_with_what_changed() {
    let shard = Shard::new(0);
    ingest(&shard, &[("a", r#"{"x":1,"y":1}"#)]);
    assert!(shard.take_changes(9).is_empty());
    let wake = Arc::new(Notify::new());
    shard.follow_changes(Arc::clone(&wake));
    assert!(wake.notified().now_or_never().is_some());
    // All that was known before; then what comes.
    assert_eq!(told(&shard.take_changes(9)), expected(&[("a", &["x", "y"])]));
    ingest(&shard, &[("a", r#"{"x":2}"#), ("b", r#"{"x":1}"#), ("a", r#"{"x":3}"#), ("c", "{}")]);
    assert!(wake.notified().now_or_never().is_some());
    assert_eq!(shard.changed_devices(), 3);
    let first = shard.take_changes(1);
    let mut rest = shard.take_changes(9);
    rest.extend(first);
    assert_eq!(told(&rest), expected(&[("a", &["x"]), ("b", &["x"]), ("c", &[])]));
    let a = rest.iter().find(|state| &*state.device_id == "a").unwrap();
    assert_eq!((a.events, a.counted_to, &a.metrics[0].value), (3, 5, &LiveValue::Number(3.0)));
    assert!(shard.take_changes(9).is_empty() && wake.notified().now_or_never().is_none());
    // An older value changes when the device was seen, and no metric.
    ingest(&shard, &[("a", r#"{"ts":1645270381,"y":9}"#)]);
    assert_eq!(told(&shard.take_changes(9)), expected(&[("a", &[])]));
    shard.unfollow_changes();
    ingest(&shard, &[("a", r#"{"x":4}"#)]);
    assert_eq!((shard.changed_devices(), shard.take_changes(9).len()), (0, 0));
}

#[test]
fn what_could_not_be_brought_is_told_whole() {
    let shard = Shard::new(0);
    shard.follow_changes(Arc::default());
    ingest(&shard, &[("a", r#"{"x":1,"y":1}"#), ("b", r#"{"x":1}"#)]);
    assert_eq!(shard.take_changes(9).len(), 2);
    ingest(&shard, &[("a", r#"{"x":2}"#)]);
    let failed = shard.take_changes(9);
    assert_eq!(told(&failed), expected(&[("a", &["x"])]));
    shard.changed_again(&failed);
    shard.changed_again(&failed);
    assert_eq!(told(&shard.take_changes(9)), expected(&[("a", &["x", "y"])]));
    shard.all_changed();
    assert_eq!(told(&shard.take_changes(9)), expected(&[("a", &["x", "y"]), ("b", &["x"])]));
}

#[test]
fn what_was_told_comes_back_and_nothing_newer_is_lost() {
    let before = Shard::new(0);
    before.follow_changes(Arc::default());
    ingest(
        &before,
        &[("a", r#"{"ts":1645270390,"x":1,"y":"t"}"#), ("a", r#"{"ts":1645270400,"x":2}"#), ("b", "{}")],
    );
    let states = before.take_changes(9);
    let after = Shard::new(0);
    assert_eq!(after.restore_states(&states), 2);
    assert_eq!(after.snapshot("a"), before.snapshot("a"));
    assert_eq!(after.devices(None, 9), before.devices(None, 9));
    // The same events from the log again are not counted again.
    ingest(
        &after,
        &[("a", r#"{"ts":1645270390,"x":1,"y":"t"}"#), ("a", r#"{"ts":1645270400,"x":2}"#), ("b", "{}")],
    );
    assert_eq!(after.devices(None, 9), before.devices(None, 9));
    assert_eq!(after.snapshot("a"), before.snapshot("a"));
    // A copy that is behind what history has counted adds nothing to it, nor takes it back.
    let ahead = Shard::new(0);
    ahead.set_start_offsets([50; TableId::COUNT]);
    ingest(&ahead, &[("a", r#"{"ts":1645270410,"x":3}"#)]);
    ahead.restore_states(&states);
    assert_eq!(ahead.device("a").unwrap().events, 1);
    let x = ahead.snapshot("a").unwrap().metrics[0].clone();
    assert_eq!((&*x.metric, x.value), ("x", LiveValue::Number(3.0)));
}
