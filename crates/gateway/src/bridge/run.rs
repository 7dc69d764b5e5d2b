//! The life of bridges: made at the start, connected again and again until the end.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use thiserror::Error;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::config::{BridgeConfig, BridgeVersion};
use super::metrics::BridgeMetrics;
use super::outlet::Outlet;
use super::seen::{Recalled, Seen};
use super::stamp::Stamp;
use super::{connect, tls};
use crate::gateway::Gateway;
use crate::marks;
use crate::mqtt::{self, BRIDGE_SESSION, FarEnd, FarLink, QoS, QueueLimits, Version};

/// How often the gauge of waiting messages is set.
const GAUGE_EVERY: Duration = Duration::from_secs(1);
/// A failure that stays the same is logged again after this time.
const REPEAT_AFTER: Duration = Duration::from_secs(600);

/// A bridge that cannot begin.
#[derive(Debug, Error)]
#[error("the bridge {name:?}: {what}")]
pub struct BridgeError {
    name: String,
    what: &'static str,
}

/// One bridge.
struct Bridge {
    gateway: Arc<Gateway>,
    config: BridgeConfig,
    client_id: String,
    link: FarLink,
    session: Arc<mqtt::Session>,
}

/// The client id of a bridge that names none: 21 letters and digits, which every broker takes.
#[must_use]
pub fn default_client_id(instance: &str, name: &str) -> String {
    let hash = marks::hash(&[instance.as_bytes(), name.as_bytes()]);
    format!("catchment{:012x}", hash & 0xffff_ffff_ffff)
}

/// Reads what a bridge reads of the disk, only to say whether it is there and good.
///
/// # Errors
/// Which file is not good, and why.
pub fn check_files(config: &BridgeConfig) -> Result<(), String> {
    connect::password(config)?;
    if config.url.tls {
        tls::client_config(config)?;
    }
    Ok(())
}

/// Starts bridges, in `tasks`, until `stop`. Ends the local sessions of those that are configured no more. `recalled`: what
/// the log has of each, by the hash of its session.
pub(crate) async fn start(
    gateway: &Arc<Gateway>,
    configs: &[BridgeConfig],
    instance: &str,
    metrics: &BridgeMetrics,
    mut recalled: HashMap<u64, Recalled>,
    stop: &CancellationToken,
    tasks: &mut JoinSet<()>,
) -> Result<(), BridgeError> {
    let sessions: HashSet<String> =
        configs.iter().map(|config| format!("{}/{BRIDGE_SESSION}{}", config.realm, config.name)).collect();
    for broker in gateway.brokers() {
        let realm = broker.realm();
        let is_over =
            |id: &str| id.starts_with(BRIDGE_SESSION) && !sessions.contains(&format!("{realm}/{id}"));
        let ended = broker.end_sessions(is_over);
        if ended > 0 {
            tracing::info!(
                realm = &**realm,
                ended,
                "bridges are configured no more; what waited for them is dropped"
            );
        }
    }
    for config in configs {
        let client_id = match &config.client_id {
            Some(client_id) => client_id.clone(),
            None => default_client_id(instance, &config.name),
        };
        let mut link = link(config, &client_id, instance, metrics);
        if config.deduplicate {
            link.seen = Some(Seen::recalled(recalled.remove(&link.hash).unwrap_or_default()));
        }
        let session = mqtt::settle_session(gateway, &link).await;
        let session = session.map_err(|what| BridgeError { name: config.name.clone(), what })?;
        let bridge =
            Bridge { gateway: Arc::clone(gateway), config: config.clone(), client_id, link, session };
        tasks.spawn(bridge.run(stop.clone()));
    }
    Ok(())
}

fn link(config: &BridgeConfig, client_id: &str, instance: &str, metrics: &BridgeMetrics) -> FarLink {
    let metrics = Arc::new(metrics.of(&config.name));
    let limits = QueueLimits::new(config.queue_messages_max, config.queue_bytes_max);
    let version = match config.version {
        BridgeVersion::V3 => Version::V3,
        BridgeVersion::V5 => Version::V5,
    };
    let qos = |bits| QoS::from_bits(bits).unwrap_or(QoS::AtLeastOnce);
    let place = format!("{}:{}", config.url.host, config.url.port);
    FarLink {
        name: config.name.as_str().into(),
        realm: config.realm.as_str().into(),
        version,
        wanted: config
            .rules_in()
            .into_iter()
            .map(|rule| (rule.filter, qos(rule.qos), rule.retained))
            .collect(),
        offered: config.outward.iter().map(|rule| (rule.filter.clone(), qos(rule.qos))).collect(),
        rules: Arc::new(config.compiled_in()),
        flags_live: config.says_bridge,
        stamp: Stamp::inward(instance),
        outlet: Arc::new(Outlet::new(
            limits,
            Arc::clone(&metrics),
            config.compiled_out(),
            Stamp::outward(instance),
        )),
        metrics,
        keep_alive_s: config.keep_alive_s,
        grant_max: Duration::from_secs(config.connect_s_max),
        packet_bytes_max: config.packet_bytes_max,
        hash: marks::hash(&[place.as_bytes(), client_id.as_bytes()]) & marks::LINK_BITS,
        seen: None,
        subscribed: false,
    }
}

impl Bridge {
    async fn run(mut self, stop: CancellationToken) {
        let (metrics, session) = (Arc::clone(&self.link.metrics), Arc::clone(&self.session));
        let mut gauge = tokio::time::interval(GAUGE_EVERY);
        let watch = async {
            loop {
                gauge.tick().await;
                metrics.queued.set(i64::try_from(session.waiting()).unwrap_or(i64::MAX));
            }
        };
        tokio::select! {
            () = self.keep_connected(&stop) => {}
            () = watch => {}
        }
    }

    async fn keep_connected(&mut self, stop: &CancellationToken) {
        let mut pause = Pause::new(&self.config);
        let mut told: Option<(String, Instant)> = None;
        while !stop.is_cancelled() {
            let began = Instant::now();
            let ended = self.connect_once(stop).await;
            if stop.is_cancelled() {
                return;
            }
            self.link.metrics.failed(ended.reason);
            let wait = pause.next(began.elapsed());
            let repeats =
                told.as_ref().is_some_and(|(what, at)| *what == ended.what && at.elapsed() < REPEAT_AFTER);
            if !repeats {
                let bridge = &*self.link.name;
                tracing::warn!(bridge, broker = %self.config.url, "not connected: {}; it is tried again", ended.what);
                told = Some((ended.what, Instant::now()));
            }
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                () = stop.cancelled() => {}
            }
        }
    }

    async fn connect_once(&mut self, stop: &CancellationToken) -> FarEnd {
        let receive_maximum = self.gateway.config.mqtt.receive_maximum;
        let opening = connect::open(&self.config, &self.link, &self.client_id, receive_maximum);
        let opened = tokio::select! {
            opened = opening => opened,
            () = stop.cancelled() => return FarEnd { reason: "stopped", what: String::new() },
        };
        let opened = match opened {
            Ok(opened) => opened,
            Err(ended) => return ended,
        };
        let connect::Opened { stream, answer, rest } = opened;
        tracing::info!(
            bridge = &*self.link.name,
            broker = %self.config.url,
            client_id = self.client_id,
            session_present = answer.session_present,
            "connected"
        );
        if let Some(given) = answer.session_expiry_s.filter(|&given| given < self.config.session_expiry_s) {
            tracing::warn!(
                bridge = &*self.link.name,
                seconds = given,
                "the broker keeps the session for a shorter time than asked for"
            );
        }
        // Boxed: the future of a connection is large, and there are few.
        Box::pin(mqtt::serve_far(&self.gateway, &mut self.link, stream, &answer, rest, stop)).await
    }
}

/// Pauses between attempts.
struct Pause {
    min: Duration,
    max: Duration,
    next: Duration,
}

impl Pause {
    fn new(config: &BridgeConfig) -> Self {
        let min = Duration::from_millis(config.reconnect_ms_min);
        Self { min, max: Duration::from_millis(config.reconnect_ms_max), next: min }
    }

    /// The next pause, from half of its length to all of it, so that many that lost their broker do not come back as one. A
    /// connection that held for longer than the pause begins anew.
    fn next(&mut self, held: Duration) -> Duration {
        if held > self.next {
            self.next = self.min;
        }
        let pause = self.next;
        self.next = (pause * 2).min(self.max);
        pause.mul_f64(0.5 + rand::random::<f64>() / 2.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_up_to_a_limit_and_begin_anew() {
        let (min, max) = (Duration::from_millis(100), Duration::from_millis(400));
        let mut pause = Pause { min, max, next: min };
        for whole in [100, 200, 400, 400] {
            let waited = pause.next(Duration::ZERO).as_millis();
            assert!((whole / 2..=whole).contains(&waited), "{waited} of {whole}");
        }
        assert!(pause.next(Duration::from_secs(60)) <= min);
    }

    #[test]
    fn client_ids_are_plain_and_differ() {
        let id = default_client_id("i", "n");
        assert_eq!(id.len(), 21);
        assert!(id.chars().all(|c| c.is_ascii_alphanumeric()));
        assert_ne!(id, default_client_id("j", "n"));
    }
}
