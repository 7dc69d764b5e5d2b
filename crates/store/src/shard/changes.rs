//! Which devices changed since they were last asked for: what a copy of the latest values elsewhere is kept up by.
//!
//! Nothing is noted until somebody follows ([`Shard::follow_changes`]). Then a device is marked once however often it
//! changes, so that a follower who is late costs four bytes a device and no more. Of a marked device, those metrics are
//! told whose value came with an event since the last time.

use std::sync::Arc;

use catchment_types::{Offset, Timestamp};
use tokio::sync::Notify;

use super::devices::{DeviceAt, Devices, Latest};
use super::{Shard, ShardConfig, State};
use crate::live::LiveValue;
use crate::tables::TableId;

/// What is known of a device: all of it, or as far as it changed.
#[derive(Debug, Clone, PartialEq)]
pub struct DeviceState {
    /// Which device.
    pub device_id: Arc<str>,
    /// When its first known event arrived.
    pub first_seen: Timestamp,
    /// When its last event arrived.
    pub last_seen: Timestamp,
    /// Known events.
    pub events: u64,
    /// Its events below this offset are in `events`.
    pub counted_to: Offset,
    /// Metrics, in no order.
    pub metrics: Vec<MetricState>,
}

/// The latest of a metric, and the event that it came with.
#[derive(Debug, Clone, PartialEq)]
pub struct MetricState {
    /// Dotted name.
    pub metric: Arc<str>,
    /// When it was measured.
    pub timestamp: Timestamp,
    /// When the gateway received it.
    pub received_at: Timestamp,
    /// Of the event; of two values with the same timestamp, that of the later offset is the latest.
    pub offset: Offset,
    /// What was measured.
    pub value: LiveValue,
}

/// The marked devices of a shard that is followed.
#[derive(Debug)]
pub(super) struct Changes {
    marked: Vec<DeviceAt>,
    wake: Arc<Notify>,
}

impl Devices {
    /// Marks a device, if anybody follows.
    pub(super) fn mark(&mut self, at: DeviceAt) {
        let Some(changes) = &mut self.changes else { return };
        let device = &mut self.list[at.index()];
        if !device.is_marked {
            device.is_marked = true;
            changes.marked.push(at);
        }
    }

    /// Marks everything, with all metrics.
    fn mark_all(&mut self) {
        for at in (0..self.list.len()).filter_map(DeviceAt::new) {
            self.list[at.index()].told_to = 0;
            self.mark(at);
        }
    }

    /// Wakes the follower if there is something for it.
    pub(super) fn tell_changes(&self) {
        if let Some(changes) = self.changes.as_ref().filter(|changes| !changes.marked.is_empty()) {
            changes.wake.notify_one();
        }
    }

    fn take_changes(&mut self, devices_max: usize, next: Offset) -> Vec<DeviceState> {
        let Some(changes) = &mut self.changes else { return Vec::new() };
        let from = changes.marked.len().saturating_sub(devices_max);
        let taken = changes.marked.split_off(from);
        let state = |at: DeviceAt| {
            let device = &mut self.list[at.index()];
            device.is_marked = false;
            let told_to = std::mem::replace(&mut device.told_to, next);
            device.state(told_to, next)
        };
        taken.into_iter().map(state).collect()
    }

    fn restore_states(&mut self, config: &ShardConfig, start: Offset, states: &[DeviceState]) -> u64 {
        let mut values = 0;
        for state in states {
            let Ok(at) = self.find_or_add(config, &state.device_id, state.first_seen) else { continue };
            let device = self.device_mut(at);
            device.see(state.first_seen);
            device.see(state.last_seen);
            // Who counted less far than the log is read again from lacks what is in between.
            if state.counted_to >= start && state.counted_to > device.counted_to {
                device.events = state.events;
                device.counted_to = state.counted_to;
            }
            for metric in &state.metrics {
                let latest = Latest {
                    timestamp: metric.timestamp,
                    offset: metric.offset,
                    received_at: metric.received_at,
                    value: metric.value.as_value(),
                };
                // What has no room is left out.
                values += u64::from(self.restore_value(config, at, &metric.metric, latest).is_ok());
            }
        }
        values
    }
}

impl Shard {
    /// Follows changes from now on: all devices that are known are marked, and `wake` is told after each block that left
    /// marks.
    pub fn follow_changes(&self, wake: Arc<Notify>) {
        let mut state = self.state.lock();
        state.devices.changes = Some(Changes { marked: Vec::new(), wake });
        for device in &mut state.devices.list {
            device.is_marked = false;
        }
        state.devices.mark_all();
        state.devices.tell_changes();
    }

    /// Follows no longer; marks are forgotten.
    pub fn unfollow_changes(&self) {
        self.state.lock().devices.changes = None;
    }

    /// Marks all devices with all that is known of them, as when the copy was lost.
    pub fn all_changed(&self) {
        let mut state = self.state.lock();
        state.devices.mark_all();
        state.devices.tell_changes();
    }

    /// Takes the marks of at most so many devices, with what changed of each.
    #[must_use]
    pub fn take_changes(&self, devices_max: usize) -> Vec<DeviceState> {
        let mut state = self.state.lock();
        let State { devices, next_offset, .. } = &mut *state;
        devices.take_changes(devices_max, *next_offset)
    }

    /// Marks devices again that were taken but could not be brought to where they belong, with all that is known of them.
    pub fn changed_again(&self, states: &[DeviceState]) {
        let mut state = self.state.lock();
        let devices = &mut state.devices;
        for at in states.iter().filter_map(|state| devices.find(&state.device_id)).collect::<Vec<_>>() {
            devices.device_mut(at).told_to = 0;
            devices.mark(at);
        }
    }

    /// How many devices are marked.
    #[must_use]
    pub fn changed_devices(&self) -> usize {
        self.state.lock().devices.changes.as_ref().map_or(0, |changes| changes.marked.len())
    }

    /// Takes in what a copy elsewhere knows, on start, before any event: newer values than those known, and counts that
    /// reach further. Returns how many values were taken.
    pub fn restore_states(&self, states: &[DeviceState]) -> u64 {
        let mut state = self.state.lock();
        let start = state.start[TableId::RawEvents.index()];
        let State { config, devices, .. } = &mut *state;
        devices.restore_states(config, start, states)
    }
}

#[cfg(test)]
mod tests;
