//! From this process's workers to subscribers elsewhere.

use std::collections::HashMap;
use std::sync::Arc;

use catchment_types::DEFAULT_REALM;
use futures::FutureExt as _;
use tokio_util::sync::CancellationToken;

use super::LiveRelay;
use super::message::{Outgoing, OutgoingBody, follow_name};
use super::wants::{Want, Wants};
use crate::live::{Follow, LiveEvent, LiveMessage, LiveReading, LiveSubscription};
use crate::redis::roster::Others;

/// Messages of the hub that are published at once.
const BLOCKS_MAX: usize = 16;

/// Publishes until `stop`.
pub(super) async fn run(relay: Arc<LiveRelay>, stop: CancellationToken) {
    let mut others = relay.roster.others();
    let mut sender = Sender { relay, readings: None, events: None, number: 0, lagged: [0; 2] };
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            changed = others.changed() => {
                if changed.is_err() {
                    return;
                }
                let wants = wants_of(&others.borrow_and_update());
                sender.want(wants);
            }
            message = next(&mut sender.readings) => sender.send(Follow::Readings, message).await,
            message = next(&mut sender.events) => sender.send(Follow::Events, message).await,
        }
    }
}

async fn next(subscription: &mut Option<LiveSubscription>) -> Option<LiveMessage> {
    match subscription {
        Some(subscription) => subscription.recv().await,
        None => std::future::pending().await,
    }
}

/// What all others want; what cannot be read is of a later version, and wants all.
fn wants_of(others: &Others) -> Wants {
    let all = || Wants { readings: Some(Want::default()), events: Some(Want::default()) };
    let wants = others.values().map(|text| serde_json::from_str(text).unwrap_or_else(|_| all()));
    wants.reduce(Wants::or).unwrap_or_default()
}

struct Sender {
    relay: Arc<LiveRelay>,
    readings: Option<LiveSubscription>,
    events: Option<LiveSubscription>,
    /// Of the next message.
    number: u64,
    /// Readings, and events, that could not be published, of which nobody was told yet.
    lagged: [u64; 2],
}

impl Sender {
    fn want(&mut self, wants: Wants) {
        let Self { relay, readings, events, .. } = self;
        let kinds = [(readings, wants.readings, Follow::Readings), (events, wants.events, Follow::Events)];
        for (subscription, want, follow) in kinds {
            match (want, &mut *subscription) {
                (None, subscription) => *subscription = None,
                (Some(want), Some(subscription)) => subscription.refilter(want.filter(follow)),
                (Some(want), empty) => match relay.hub.forward(want.filter(follow)) {
                    Ok(new) => *empty = Some(new),
                    Err(error) => {
                        tracing::warn!(%error, "other processes' subscribers get nothing from here")
                    }
                },
            }
        }
    }

    /// Publishes a message of the hub and those that wait behind it.
    async fn send(&mut self, follow: Follow, first: Option<LiveMessage>) {
        let kind = match follow {
            Follow::Readings => &mut self.readings,
            Follow::Events => &mut self.events,
        };
        let Some(first) = first else {
            // The hub is closed: nothing comes any more.
            *kind = None;
            return;
        };
        let mut messages = vec![first];
        if let Some(subscription) = kind {
            while messages.len() < BLOCKS_MAX
                && let Some(Some(message)) = subscription.recv().now_or_never()
            {
                messages.push(message);
            }
        }
        let mut pipeline = ::redis::pipe();
        let mut sent = 0;
        for message in &messages {
            match message {
                LiveMessage::Readings(readings) => {
                    sent += readings.len() as u64;
                    self.publish_readings(&mut pipeline, readings);
                }
                LiveMessage::Events(events) => {
                    sent += events.len() as u64;
                    self.publish_events(&mut pipeline, events);
                }
                LiveMessage::Lagged(count) => self.lagged[follow as usize] += count,
            }
        }
        let lagged = std::mem::take(&mut self.lagged);
        for (follow, lagged) in [Follow::Readings, Follow::Events].into_iter().zip(lagged) {
            if lagged > 0 {
                let channel = self.relay.client.keys.of(&format!("lag:{DEFAULT_REALM}"));
                let body = OutgoingBody::Lagged { follow: follow_name(follow), lagged };
                self.publish(&mut pipeline, channel, body);
            }
        }
        let count = pipeline.len() as u64;
        match self.relay.client.ask_all::<()>(&pipeline).await {
            Ok(()) => drop(self.relay.metrics.relay_sent.inc_by(count)),
            Err(error) => {
                tracing::debug!(%error, "readings did not reach other processes");
                self.lagged = lagged;
                self.lagged[follow as usize] += sent;
            }
        }
    }

    fn publish_readings(&mut self, pipeline: &mut ::redis::Pipeline, readings: &[LiveReading]) {
        for group in grouped(readings, |reading| (&reading.device_id, &reading.event_type)) {
            let Some(LiveReading { device_id, event_type, .. }) = group.first() else { continue };
            let channel = self.channel("live", device_id, event_type);
            let readings = group.iter().map(|&reading| reading.into()).collect();
            let body = OutgoingBody::Readings { device_id, r#type: event_type, readings };
            self.publish(pipeline, channel, body);
        }
    }

    fn publish_events(&mut self, pipeline: &mut ::redis::Pipeline, events: &[LiveEvent]) {
        for group in grouped(events, |event| (&event.device_id, &event.event_type)) {
            let Some(LiveEvent { device_id, event_type, .. }) = group.first() else { continue };
            let channel = self.channel("tail", device_id, event_type);
            let events = group.iter().map(|&event| event.into()).collect();
            let body = OutgoingBody::Events { device_id, r#type: event_type, events };
            self.publish(pipeline, channel, body);
        }
    }

    fn channel(&self, kind: &str, device_id: &str, event_type: &str) -> String {
        self.relay.client.keys.of(&format!("{kind}:{DEFAULT_REALM}:{device_id}:{event_type}"))
    }

    fn publish(&mut self, pipeline: &mut ::redis::Pipeline, channel: String, body: OutgoingBody<'_>) {
        self.number += 1;
        let message = Outgoing { from: &self.relay.client.process, number: self.number, body };
        // Numbers are finite and texts are texts: there is JSON for all of it.
        let text = serde_json::to_string(&message).unwrap_or_default();
        pipeline.cmd("PUBLISH").arg(channel).arg(text).ignore();
    }
}

/// What is of one device and type, in few groups; each device's order stays.
fn grouped<T>(items: &[T], key: impl Fn(&T) -> (&Arc<str>, &Arc<str>)) -> Vec<Vec<&T>> {
    let mut groups: Vec<Vec<&T>> = Vec::new();
    let mut last_of = HashMap::new();
    for item in items {
        let (device, event_type) = key(item);
        match last_of.get(&**device) {
            Some(&(last_type, at)) if last_type == &**event_type => {
                let group: &mut Vec<&T> = &mut groups[at];
                group.push(item);
            }
            _ => {
                last_of.insert(&**device, (&**event_type, groups.len()));
                groups.push(vec![item]);
            }
        }
    }
    groups
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_keeps_its_order() {
        let item = |device: &str, event_type: &str, number: u32| -> (Arc<str>, Arc<str>, u32) {
            (device.into(), event_type.into(), number)
        };
        let items =
            [item("a", "x", 1), item("b", "x", 2), item("a", "x", 3), item("a", "y", 4), item("a", "x", 5)];
        let groups = grouped(&items, |(device, event_type, _)| (device, event_type));
        let numbers: Vec<Vec<u32>> =
            groups.iter().map(|group| group.iter().map(|(.., number)| *number).collect()).collect();
        assert_eq!(numbers, [vec![1, 3], vec![2], vec![4], vec![5]]);
    }

    #[test]
    fn others_want_all_when_they_cannot_be_understood() {
        let others = |text: &str| -> Others { Arc::new([("p".into(), text.into())].into()) };
        assert!(wants_of(&Others::default()).is_empty());
        assert_eq!(wants_of(&others("?")).readings, Some(Want::default()));
    }
}
