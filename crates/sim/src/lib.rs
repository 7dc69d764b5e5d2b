//! Simulated worlds as clients of the real protocols: what they send is indistinguishable from devices.
//!
//! - [`city`]: ten sensors of six kinds in Martinique, one observation a second each;
//! - [`market`]: the prices of four coins, one a second each;
//! - [`load`]: as many devices and events a second as asked for, about 1 KB each.
//!
//! Beside the worlds, [`swarm`] is what measures a server: plain MQTT clients by the ten thousand.
//!
//! A world is a pure model: seed and time are handed in, messages come out, so a run can be repeated. Only [`World::run`]
//! knows the clock and the network.

pub mod city;
pub mod load;
pub mod market;
mod publisher;
mod random;
pub mod swarm;
mod target;

use std::time::Duration;

use catchment_types::Timestamp;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

pub use crate::load::LoadConfig;
use crate::publisher::Publisher;
pub use crate::target::{BadTarget, MqttTarget};

/// One message of a simulated device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// What sends.
    pub device_id: String,
    /// Which kind of message.
    pub event_type: &'static str,
    /// JSON.
    pub payload: Vec<u8>,
}

impl Message {
    /// The topic it is published to.
    #[must_use]
    pub fn topic(&self) -> String {
        format!("devices/{}/{}", self.device_id, self.event_type)
    }
}

/// A world to simulate.
#[derive(Debug, Clone)]
pub enum World {
    /// Ten sensors in Martinique. The seed decides the weather and everything else that varies.
    City {
        /// Of the random numbers.
        seed: u64,
    },
    /// Four coins.
    Market {
        /// Of the random numbers.
        seed: u64,
    },
    /// Many devices.
    Load(LoadConfig),
}

impl World {
    /// Lets the world live and publish (MQTT, QoS 1) until `shutdown`. Connects again, with growing pauses, whenever the
    /// connection is lost; messages that were not acknowledged are sent again.
    pub async fn run(self, target: MqttTarget, shutdown: CancellationToken) {
        match self {
            Self::City { seed } => {
                let mut city = city::City::new(seed, Timestamp::now());
                each_second("city", &target, shutdown, |now| city.step(now)).await;
            }
            Self::Market { seed } => {
                let mut market = market::Market::new(seed);
                each_second("market", &target, shutdown, |now| market.step(now)).await;
            }
            Self::Load(config) => load::run(config, &target, shutdown).await,
        }
    }
}

async fn each_second(
    name: &str,
    target: &MqttTarget,
    shutdown: CancellationToken,
    mut step: impl FnMut(Timestamp) -> Vec<Message>,
) {
    let publisher = Publisher::start(name, target);
    let mut second = tokio::time::interval(Duration::from_secs(1));
    // A world that slept does not send its past in a burst.
    second.set_missed_tick_behavior(MissedTickBehavior::Skip);
    loop {
        tokio::select! {
            () = shutdown.cancelled() => break,
            _ = second.tick() => {}
        }
        let messages = step(Timestamp::now());
        for message in messages {
            // While the server is away the queue fills up and old observations are better than none: no more are added.
            if !publisher.try_publish(message.topic(), message.payload) {
                tracing::debug!(world = name, "the queue to the server is full; an observation is left out");
            }
        }
    }
    publisher.stop().await;
}
