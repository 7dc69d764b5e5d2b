//! One MQTT connection that publishes at QoS 1 and comes back by itself.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use rand::Rng;
use rumqttc::{AsyncClient, Event, EventLoop, MqttOptions, Outgoing, Packet, QoS};
use tokio::task::JoinHandle;

use crate::MqttTarget;

const QUEUE_MESSAGES_MAX: usize = 1024;
const IN_FLIGHT_MAX: u16 = 1000;
const PACKET_BYTES_MAX: usize = 1 << 20;
const PAUSE_MIN: Duration = Duration::from_millis(250);
const PAUSE_MAX: Duration = Duration::from_secs(10);
const STOP_MAX: Duration = Duration::from_secs(2);

/// A connection and the task that keeps it alive.
pub(crate) struct Publisher {
    client: AsyncClient,
    accepted: AtomicU64,
    acknowledged: Arc<AtomicU64>,
    task: JoinHandle<()>,
}

impl Publisher {
    /// Starts to connect; publishing may begin at once.
    pub(crate) fn start(name: &str, target: &MqttTarget) -> Self {
        // Two simulators of one world must not throw each other out, so that the name has a random part.
        let id = format!("catchment-sim-{name}-{:08x}", rand::rng().random::<u32>());
        let (host, port) = target.address();
        let mut options = MqttOptions::new(id, host, port);
        options.set_inflight(IN_FLIGHT_MAX).set_keep_alive(Duration::from_secs(30));
        options.set_max_packet_size(PACKET_BYTES_MAX, PACKET_BYTES_MAX);
        if let Some((user, password)) = &target.credentials {
            options.set_credentials(user, password);
        }
        let (client, events) = AsyncClient::new(options, QUEUE_MESSAGES_MAX);
        let acknowledged = Arc::new(AtomicU64::new(0));
        let task = tokio::spawn(keep_connected(events, Arc::clone(&acknowledged), target.to_string()));
        Self { client, accepted: AtomicU64::new(0), acknowledged, task }
    }

    /// Publishes if there is room in the queue; tells whether there was.
    pub(crate) fn try_publish(&self, topic: String, payload: Vec<u8>) -> bool {
        let taken = self.client.try_publish(topic, QoS::AtLeastOnce, false, payload).is_ok();
        self.accepted.fetch_add(u64::from(taken), Relaxed);
        taken
    }

    /// Publishes, waiting for room in the queue; tells whether the connection's task still lives.
    pub(crate) async fn publish(&self, topic: String, payload: Vec<u8>) -> bool {
        let taken = self.client.publish(topic, QoS::AtLeastOnce, false, payload).await.is_ok();
        self.accepted.fetch_add(u64::from(taken), Relaxed);
        taken
    }

    /// How many messages the server acknowledged.
    pub(crate) fn acknowledged(&self) -> u64 {
        self.acknowledged.load(Relaxed)
    }

    /// Waits a moment for what is under way, then leaves.
    pub(crate) async fn stop(mut self) {
        let deadline = tokio::time::Instant::now() + STOP_MAX;
        while self.acknowledged() < self.accepted.load(Relaxed) && tokio::time::Instant::now() < deadline {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        // Fails only when the queue is full, and then there is no connection to take leave of.
        let _ = self.client.try_disconnect();
        if tokio::time::timeout_at(deadline, &mut self.task).await.is_err() {
            self.task.abort();
        }
    }
}

async fn keep_connected(mut events: EventLoop, acknowledged: Arc<AtomicU64>, target: String) {
    let mut pause = PAUSE_MIN;
    let mut reported = false;
    loop {
        match events.poll().await {
            Ok(Event::Incoming(Packet::PubAck(_))) => {
                acknowledged.fetch_add(1, Relaxed);
            }
            Ok(Event::Incoming(Packet::ConnAck(_))) => {
                if reported {
                    tracing::info!("connected again to {target}");
                }
                (pause, reported) = (PAUSE_MIN, false);
            }
            Ok(Event::Outgoing(Outgoing::Disconnect)) => return,
            Ok(_) => {}
            Err(error) => {
                // Once per outage, not once per attempt.
                if !std::mem::replace(&mut reported, true) {
                    tracing::warn!("no connection to {target} ({error}); trying again");
                }
                let jitter = rand::rng().random_range(0.5..1.0);
                tokio::time::sleep(pause.mul_f64(jitter)).await;
                pause = (pause * 2).min(PAUSE_MAX);
            }
        }
    }
}
