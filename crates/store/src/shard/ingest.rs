//! One event into slots and rows.

use std::fmt::{self, Write as _};

use catchment_decode::{DecodedEvent, Decoder, ReadingSink};
use catchment_types::{Event, Offset, Reading, RejectReason};

use super::State;
use super::block::Block;
use super::devices::{DeviceAt, Latest};
use crate::live::LiveBatch;
use crate::tables::TableId;

impl State {
    /// Whether a table still needs an event.
    fn needs(&self, table: TableId, offset: Offset) -> bool {
        offset >= self.start[table.index()]
    }

    pub(super) fn ingest(
        &mut self,
        block: &Block<'_>,
        offset: Offset,
        event: &Event<'_>,
        decoder: &mut Decoder,
        live: Option<&mut LiveBatch>,
    ) -> DecodedEvent {
        let needs_event = self.needs(TableId::RawEvents, offset);
        let device = self.devices.find_or_add(&self.config, event.device_id, event.received_at).ok();
        if let Some(device) = device {
            self.devices.mark(device);
            let device = self.devices.device_mut(device);
            device.see(event.received_at);
            device.begin_event();
            device.events += u64::from(needs_event && offset >= device.counted_to);
        }
        let live = live.and_then(|live| live.begin(event).then_some(live));
        let decoded =
            decoder.decode(event, &mut EventSink { state: self, block, offset, event, device, live });
        if needs_event {
            self.rows.push_event(block, offset, event, decoded.event_time);
        }
        decoded
    }
}

/// Takes what the decoder finds in one event.
struct EventSink<'a> {
    state: &'a mut State,
    block: &'a Block<'a>,
    offset: Offset,
    event: &'a Event<'a>,
    /// Nothing if there is no room for the device.
    device: Option<DeviceAt>,
    live: Option<&'a mut LiveBatch>,
}

impl ReadingSink for EventSink<'_> {
    fn reading(&mut self, reading: Reading<'_>) -> Result<(), RejectReason> {
        let full = |_| RejectReason::TooManyMetrics;
        let State { config, devices, rows, start, .. } = &mut *self.state;
        let device = self.device.ok_or(RejectReason::TooManyMetrics)?;
        let latest = Latest {
            timestamp: reading.timestamp,
            offset: self.offset,
            received_at: self.event.received_at,
            value: reading.value,
        };
        let slot = match devices.find_slot(device, reading.metric) {
            Some(slot) => devices.update(config, device, slot, latest).map_err(full).map(|()| slot),
            None => devices.add_slot(config, device, reading.metric, latest).map_err(full),
        }?;
        if self.offset >= start[TableId::MetricRollups.index()]
            && let Some(number) = reading.value.number()
        {
            devices.roll_up(rows, device, slot, reading.timestamp, number);
        }
        if self.offset >= start[TableId::RawMetrics.index()] {
            rows.push_reading(self.block, self.offset, self.event, &reading);
        }
        if let Some(live) = &mut self.live {
            let (device_id, metric) = (&devices.device(device).id, &devices.slot(device, slot).name);
            live.reading(device_id, metric, self.event, &reading);
        }
        Ok(())
    }

    #[cold]
    fn reject(&mut self, reason: RejectReason, detail: fmt::Arguments<'_>) {
        if !self.state.needs(TableId::Rejects, self.offset) {
            return;
        }
        let mut text = String::new();
        // Writing to a String cannot fail.
        let _ = text.write_fmt(detail);
        if reason == RejectReason::TooManyMetrics {
            let config = &self.state.config;
            let _ = match self.device {
                Some(_) => write!(
                    text,
                    ": the device has {} metrics, or the snapshot {} bytes, already",
                    config.metrics_per_device_max, config.snapshot_bytes_max
                ),
                None => write!(text, ": the partition has no room for another device"),
            };
        }
        self.state.rows.push_reject(self.block, self.offset, self.event, reason, &text);
    }
}
