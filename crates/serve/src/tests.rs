//! Handlers over a real store in a temporary folder.

mod auth;
mod live;
mod rest;
mod sql;

use std::sync::Arc;
use std::time::Instant;

use axum::Router;
use axum::body::Body;
use axum::http::{HeaderMap, Request, StatusCode, header};
use catchment_decode::{Decoders, WorkerDecoders};
use catchment_store::history::{DeltaHistory, History, HistoryConfig, Places};
use catchment_store::live::{LiveConfig, LiveHub};
use catchment_store::registry::{AclRecord, BanRecord, NewToken, Registry, Role};
use catchment_store::shard::Shard;
use catchment_store::snapshot::{ShardSnapshot, Snapshot};
use catchment_types::{DEFAULT_REALM, Event, EventBatch, Offset, Timestamp, partition_of};
use serde_json::Value;
use tempfile::TempDir;
use tower::ServiceExt as _;

use crate::access::{Guest, Refusal};
use crate::sql::{RealmTables, SqlConfig, SqlEngine};
use crate::status::{Listener, Platform, PlatformStatus};
use crate::{ServeConfig, ServeState, router};

const PARTITIONS: u32 = 2;
/// 2022-02-19T11:33:21.25Z.
const TIME: i64 = 1_645_270_401_250_000;

/// Admission by tokens alone.
struct Tokens(Arc<Registry>);

#[async_trait::async_trait]
impl crate::access::Access for Tokens {
    fn identify(&self, secret: &str, remote: Option<std::net::IpAddr>) -> Result<Guest, Refusal> {
        let guest = Guest::anonymous(remote);
        let identity = self.0.verify(secret).ok_or(Refusal::Invalid)?;
        Ok(Guest { identity: Some(identity), ..guest })
    }
    fn may_stay(&self, guest: &Guest) -> Result<(), Refusal> {
        let token = guest.identity.as_ref().map(|identity| format!("token:{}", identity.token_id));
        match token.is_some_and(|token| self.0.was_withdrawn(&token, guest.since)) {
            true => Err(Refusal::Invalid),
            false => Ok(()),
        }
    }
    fn changes(&self) -> tokio::sync::watch::Receiver<u64> {
        self.0.subscribe_access()
    }
    async fn settled(&self) {}
    fn check_rule(&self, _: &AclRecord) -> Result<(), String> {
        Ok(())
    }
    fn automatic_bans(&self) -> Vec<BanRecord> {
        Vec::new()
    }
    fn lift_automatic(&self, _: &str) -> bool {
        false
    }
}

struct Still;

impl Platform for Still {
    fn status(&self) -> PlatformStatus {
        let listener = |name: &str, url: &str| Listener { name: name.to_owned(), url: url.to_owned() };
        PlatformStatus {
            listeners: vec![
                listener("http", "http://127.0.0.1:8080"),
                listener("mqtt", "mqtt://127.0.0.1:1883"),
            ],
            ..PlatformStatus::default()
        }
    }

    fn not_ready(&self) -> Vec<String> {
        Vec::new()
    }
}

/// A store with its handlers.
struct Server {
    _dir: TempDir,
    state: Arc<ServeState>,
    history: Arc<dyn History>,
    shards: Arc<[Arc<Shard>]>,
    router: Router,
    admin: String,
    offsets: parking_lot::Mutex<[Offset; PARTITIONS as usize]>,
}

/// An answer.
struct Answer {
    status: StatusCode,
    headers: HeaderMap,
    body: Vec<u8>,
}

impl Answer {
    fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }

    #[track_caller]
    fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.text()))
    }
}

impl Server {
    async fn start() -> Self {
        Self::with(true, SqlConfig::default()).await
    }

    async fn with(anonymous: bool, sql: SqlConfig) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let shards: Vec<_> = (0..PARTITIONS).map(Shard::new).collect();
        let history: Arc<dyn History> = DeltaHistory::open(
            &Places::in_folder(dir.path().join("history")),
            HistoryConfig::default(),
            shards.clone(),
        )
        .await
        .unwrap();
        let registry = Arc::new(Registry::open(&dir.path().join("registry.sqlite")).await.unwrap());
        let admin = NewToken { realm: DEFAULT_REALM, name: "owner", role: Role::Admin, device_id: None };
        let (_, admin) = registry.create_token(admin).await.unwrap();
        let shards: Arc<[Arc<Shard>]> = shards.into();
        let snapshot: Arc<dyn Snapshot> = Arc::new(ShardSnapshot::new(Arc::clone(&shards)));
        let tables = RealmTables::new(Arc::clone(&history), Arc::clone(&snapshot), Arc::clone(&registry));
        let state = Arc::new(ServeState {
            config: ServeConfig { sql: sql.clone(), ..ServeConfig::default() },
            snapshot,
            live: LiveHub::new(LiveConfig::default()),
            access: Arc::new(Tokens(Arc::clone(&registry))),
            registry,
            decoders: Arc::new(Decoders::default()),
            sql: Arc::new(SqlEngine::new(Arc::new(tables), sql).unwrap()),
            history: Arc::clone(&history),
            platform: Arc::new(Still),
            metrics: Arc::default(),
            anonymous,
            started: Instant::now(),
        });
        let router = router(Arc::clone(&state), utoipa::openapi::OpenApi::default());
        Self { _dir: dir, state, history, shards, router, admin, offsets: parking_lot::Mutex::default() }
    }

    /// Takes an event as a partition's worker would.
    fn publish(&self, device_id: &str, event_type: &str, received_at: i64, payload: &[u8]) {
        let partition = partition_of(DEFAULT_REALM, device_id, PARTITIONS) as usize;
        let mut batch = EventBatch::builder();
        let topic = format!("devices/{device_id}/{event_type}");
        let event = Event {
            realm: DEFAULT_REALM,
            device_id,
            event_type,
            topic: &topic,
            received_at: Timestamp(received_at),
            content_type: "application/json",
            tags: "",
            mark: 0,
            payload,
        };
        batch.push(&event).unwrap();
        let mut decoders = WorkerDecoders::new(Arc::clone(&self.state.decoders));
        let mut live = self.state.live.batch();
        let mut offsets = self.offsets.lock();
        let offset = offsets[partition];
        self.shards[partition].ingest(offset, &batch.take(), offset.., &mut decoders, live.as_mut());
        offsets[partition] += 1;
        if let Some(live) = live {
            self.state.live.publish(live);
        }
    }

    async fn send(&self, request: Request<Body>) -> Answer {
        let response = self.router.clone().oneshot(request).await.unwrap();
        let (parts, body) = response.into_parts();
        let body =
            axum::body::to_bytes(body, usize::MAX).await.map(|bytes| bytes.to_vec()).unwrap_or_default();
        Answer { status: parts.status, headers: parts.headers, body }
    }

    /// From this machine, without a token.
    async fn get(&self, path: &str) -> Answer {
        self.send(Request::get(path).header(header::HOST, "localhost:8080").body(Body::empty()).unwrap())
            .await
    }

    /// With the administrator's token.
    async fn admin(&self, method: &str, path: &str, body: Value) -> Answer {
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::AUTHORIZATION, format!("Bearer {}", self.admin))
            .header(header::CONTENT_TYPE, "application/json");
        let body = if body.is_null() { Body::empty() } else { Body::from(body.to_string()) };
        self.send(request.body(body).unwrap()).await
    }

    /// A query as text, with an `Accept` header.
    async fn sql(&self, query: &str, accept: &str) -> Answer {
        let request = Request::post("/api/v1/sql")
            .header(header::HOST, "127.0.0.1")
            .header(header::CONTENT_TYPE, "text/plain")
            .header(header::ACCEPT, accept);
        self.send(request.body(Body::from(query.to_owned())).unwrap()).await
    }

    /// The rows of a query.
    #[track_caller]
    fn rows(&self, query: &str) -> impl Future<Output = Value> {
        let query = query.to_owned();
        async move {
            let answer = self.sql(&query, "application/json").await;
            assert_eq!(answer.status, StatusCode::OK, "{query}: {}", answer.text());
            answer.json()["rows"].clone()
        }
    }
}
