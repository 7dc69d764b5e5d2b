//! What admission decides, on connections: limits, withdrawal, expiry, and whose session a client id opens.

#![allow(clippy::unwrap_used, missing_docs)]

mod support;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use catchment_gateway::{
    Admission, ClientLimits, Credentials, Denied, GatewayConfig, Meter, OverLimit, Principal, RateLimits,
    Role,
};
use parking_lot::Mutex;
use support::{Server, Wire, packet, publish, subscribe, text, until};
use tokio::sync::watch;

/// The user name is the device; a password is the milliseconds after which the credential expires.
struct Desk {
    limits: Option<Arc<ClientLimits>>,
    changes: watch::Sender<u64>,
    gone: AtomicBool,
    forbidden: Mutex<Option<String>>,
    rechecks: AtomicU64,
}

impl Desk {
    fn new(limits: Option<RateLimits>) -> Arc<Self> {
        let meter = |limits| ClientLimits { device: Some(Arc::new(Meter::new(limits))), realm: None };
        Arc::new(Self {
            limits: limits.map(|limits| Arc::new(meter(limits))),
            changes: watch::Sender::new(0),
            gone: AtomicBool::new(false),
            forbidden: Mutex::default(),
            rechecks: AtomicU64::new(0),
        })
    }
}

#[async_trait]
impl Admission for Desk {
    async fn authenticate(&self, credentials: Credentials<'_>) -> Result<Principal, Denied> {
        let device = credentials.username.ok_or(Denied::BadCredentials)?;
        if let Some(Err(retry_after)) = self.limits.as_ref().map(|limits| limits.connect()) {
            return Err(Denied::TooMany { retry_after });
        }
        let mut principal = Principal::new("main", device, Role::Device(device.into()));
        principal.limits = self.limits.clone();
        let expires_ms = credentials.password.and_then(|text| std::str::from_utf8(text).ok()?.parse().ok());
        principal.expires_at = expires_ms.map(|ms| Instant::now() + Duration::from_millis(ms));
        Ok(principal)
    }

    fn changes(&self) -> Option<watch::Receiver<u64>> {
        Some(self.changes.subscribe())
    }

    fn recheck(&self, _: &mut Principal, _: Option<SocketAddr>) -> Result<(), Denied> {
        self.rechecks.fetch_add(1, Ordering::Relaxed);
        if self.gone.load(Ordering::Relaxed) { Err(Denied::BadCredentials) } else { Ok(()) }
    }

    fn may_subscribe(&self, principal: &Principal, filter: &str) -> bool {
        self.forbidden.lock().as_deref() != Some(filter) && principal.may_subscribe_by_role(filter)
    }
}

/// CONNECT of a device that keeps its session; to 5.0 with a session expiry.
fn connect(v5: bool, client_id: &str, device: &str, password: &str) -> Vec<u8> {
    let mut body = [&text("MQTT")[..], &[if v5 { 5 } else { 4 }, 0xc0, 0, 60]].concat();
    if v5 {
        body.extend([5, 17, 0, 0, 0, 100]);
    }
    packet(0x10, &[&body[..], &text(client_id), &text(device), &text(password)].concat())
}

async fn open(server: &Server, v5: bool, client_id: &str, device: &str, password: &str) -> Wire {
    let mut wire = server.raw().await;
    wire.send(&connect(v5, client_id, device, password)).await;
    let answer = wire.packet().await;
    assert_eq!((answer[0], answer[3]), (0x20, 0), "{answer:02x?}");
    wire
}

async fn start(desk: &Arc<Desk>, over_limit: OverLimit) -> Server {
    let mut config = GatewayConfig::default();
    config.mqtt.over_limit = over_limit;
    Server::start_with(config, Arc::clone(desk) as Arc<dyn Admission>, 1).await
}

#[tokio::test]
async fn what_is_withdrawn_ends_at_once() {
    let desk = Desk::new(None);
    let server = start(&desk, OverLimit::Wait).await;
    let mut device = open(&server, true, "c", "d1", "").await;
    device.send(&subscribe(true, 1, "devices/d1/a", 0)).await;
    device.expect(&[0x90, 4, 0, 1, 0, 0]).await;
    device.send(&subscribe(true, 2, "devices/d1/b", 0)).await;
    device.expect(&[0x90, 4, 0, 2, 0, 0]).await;
    // A subscription alone may be withdrawn; the rest stays.
    *desk.forbidden.lock() = Some("devices/d1/a".to_owned());
    desk.changes.send_modify(|changes| *changes += 1);
    until("the subscription is gone", || server.metric("catchment_gateway_subscriptions") == 1.0).await;
    device.send(&publish(true, "devices/d1/a", 0, 0, b"1")).await;
    device.send(&publish(true, "devices/d1/b", 0, 0, b"2")).await;
    let delivered = device.packet().await;
    assert!(delivered.ends_with(b"2"), "{delivered:02x?}");
    // One that was withdrawn while its client was away does not come back with the session.
    drop(device);
    until("it left", || server.metric("catchment_gateway_connections ") == 0.0).await;
    *desk.forbidden.lock() = Some("devices/d1/b".to_owned());
    let mut device = open(&server, true, "c", "d1", "").await;
    assert_eq!(server.metric("catchment_gateway_subscriptions"), 0.0);

    desk.gone.store(true, Ordering::Relaxed);
    desk.changes.send_modify(|changes| *changes += 1);
    let goodbye = device.packet().await;
    assert_eq!((goodbye[0], goodbye[2]), (0xe0, 0x87));
    device.closed().await;
    assert!(desk.rechecks.load(Ordering::Relaxed) >= 2);
}

#[tokio::test]
async fn a_credential_that_expires_ends_its_connection() {
    let desk = Desk::new(None);
    let server = start(&desk, OverLimit::Wait).await;
    let mut device = open(&server, true, "c", "d1", "150").await;
    let mut other = open(&server, false, "c2", "d1", "60000").await;
    let goodbye = device.packet().await;
    assert_eq!((goodbye[0], goodbye[2]), (0xe0, 0x87));
    device.closed().await;
    other.send(&[0xc0, 0]).await;
    other.expect(&[0xd0, 0]).await;
}

#[tokio::test]
async fn a_client_id_does_not_open_anothers_session() {
    let desk = Desk::new(None);
    let server = start(&desk, OverLimit::Wait).await;
    let mut victim = open(&server, true, "shared-id", "d1", "").await;
    let mut thief = server.raw().await;
    thief.send(&connect(true, "shared-id", "d2", "")).await;
    let answer = thief.packet().await;
    assert_eq!((answer[0], answer[3]), (0x20, 0x87));
    thief.closed().await;
    victim.send(&[0xc0, 0]).await;
    victim.expect(&[0xd0, 0]).await;
    // Nor while its owner is away; the owner itself may come from elsewhere.
    drop(victim);
    until("it left", || server.metric("catchment_gateway_connections ") == 0.0).await;
    let mut thief = server.raw().await;
    thief.send(&connect(false, "shared-id", "d2", "")).await;
    thief.expect(&[0x20, 2, 0, 5]).await;
    open(&server, true, "shared-id", "d1", "").await;
}

#[tokio::test]
async fn over_its_limits_a_client_waits() {
    let desk = Desk::new(Some(RateLimits { messages_per_s: 20, ..RateLimits::default() }));
    let server = start(&desk, OverLimit::Wait).await;
    let mut device = open(&server, false, "c", "d1", "").await;
    // Twenty at once are the burst, ten more take half a second, and the one behind them is read only then.
    let burst: Vec<u8> = (1..=30).flat_map(|id| publish(false, "devices/d1/state", 1, id, b"x")).collect();
    let start = Instant::now();
    device.send(&burst).await;
    for id in 1..=30 {
        device.expect(&[0x40, 2, 0, id]).await;
    }
    device.send(&publish(false, "devices/d1/state", 1, 31, b"x")).await;
    device.expect(&[0x40, 2, 0, 31]).await;
    let took = start.elapsed();
    assert!((Duration::from_millis(400)..Duration::from_secs(3)).contains(&took), "{took:?}");
    assert!(server.metric("catchment_gateway_limited") >= 1.0);
}

#[tokio::test]
async fn over_its_limits_a_client_can_be_refused() {
    let desk = Desk::new(Some(RateLimits { messages_per_s: 2, connects_per_s: 1, ..RateLimits::default() }));
    let server = start(&desk, OverLimit::Refuse).await;
    let mut device = open(&server, true, "c", "d1", "").await;
    let mut codes = Vec::new();
    for id in 1..=8 {
        device.send(&publish(true, "devices/d1/state", 1, id, b"x")).await;
        codes.push(device.packet().await.get(4).copied().unwrap_or(0));
    }
    assert_eq!(codes[..3], [0, 0, 0], "the burst, and the one that goes into debt");
    assert!(codes[3..].contains(&0x97), "{codes:02x?}");
    // The second connection is the debt; the third is refused, in the words of each version.
    let _second = open(&server, true, "c2", "d1", "").await;
    for (v5, code) in [(true, 0x9f), (false, 3)] {
        let mut refused = server.raw().await;
        refused.send(&connect(v5, "c3", "d1", "")).await;
        assert_eq!(refused.packet().await[3], code);
    }
}
