//! The routes in force: those of the configuration and those that were added while running, which go before the former
//! where both have the same shape.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use async_trait::async_trait;
use parking_lot::RwLock;
use serde::Serialize;
use thiserror::Error;

use super::{BadRoute, RouteRule, Routes};

/// Where routes that were added while running are kept.
#[async_trait]
pub trait RouteStore: Send + Sync + 'static {
    /// All that are kept.
    ///
    /// # Errors
    /// The store failed.
    async fn routes(&self) -> Result<Vec<RouteRule>, RouteStoreError>;

    /// Keeps a route, in the place of one with the same topic.
    ///
    /// # Errors
    /// The store failed.
    async fn put_route(&self, rule: &RouteRule) -> Result<(), RouteStoreError>;

    /// Forgets the route of this topic; whether there was one.
    ///
    /// # Errors
    /// The store failed.
    async fn delete_route(&self, topic: &str) -> Result<bool, RouteStoreError>;
}

/// The store of routes failed; what was in force stays in force.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("routes cannot be read or kept: {0}")]
pub struct RouteStoreError(pub String);

/// Why a change of the routes was not made.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub(crate) enum RouteChangeError {
    #[error(transparent)]
    Bad(#[from] BadRoute),
    #[error(transparent)]
    Store(#[from] RouteStoreError),
    #[error("there is no such route among those that were added")]
    NotFound,
    #[error("the route {0:?} is of the configuration file")]
    Configured(String),
}

/// Where a route comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum RouteSource {
    /// The configuration file.
    Configuration,
    /// It was added while running.
    Registry,
}

/// A route in force.
#[derive(Debug, Clone, Serialize, utoipa::ToSchema)]
pub(crate) struct ListedRoute {
    #[serde(flatten)]
    pub(crate) rule: RouteRule,
    pub(crate) source: RouteSource,
}

/// The routes in force.
pub(crate) struct RouteBook {
    configured: Vec<RouteRule>,
    store: OnceLock<Arc<dyn RouteStore>>,
    current: RwLock<Arc<Routes>>,
    /// Raised by each change, so that who has found out something about a topic knows when to look again.
    generation: AtomicU64,
    /// One change at a time.
    changing: tokio::sync::Mutex<()>,
}

impl RouteBook {
    /// The configuration's routes. [`Self::keep_in`] brings the others in.
    pub(crate) fn new(configured: &[RouteRule]) -> Result<Self, BadRoute> {
        Ok(Self {
            current: RwLock::new(Arc::new(Routes::new(configured)?)),
            configured: configured.to_vec(),
            store: OnceLock::new(),
            generation: AtomicU64::new(0),
            changing: tokio::sync::Mutex::default(),
        })
    }

    /// The routes as they are now.
    pub(crate) fn current(&self) -> Arc<Routes> {
        Arc::clone(&self.current.read())
    }

    /// Grows with each change.
    #[inline]
    pub(crate) fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    /// All routes, the configuration's first.
    pub(crate) async fn list(&self) -> Result<Vec<ListedRoute>, RouteStoreError> {
        let added = self.added().await?;
        let listed = |source| move |rule| ListedRoute { rule, source };
        let configured = not_replaced(&self.configured, &added);
        let configured = configured.into_iter().map(listed(RouteSource::Configuration));
        Ok(configured.chain(added.into_iter().map(listed(RouteSource::Registry))).collect())
    }

    /// Keeps routes that are added here from now on, and brings those into force that are there. One that does not work
    /// any more is left out and logged. A second store is ignored.
    pub(crate) async fn keep_in(&self, store: Arc<dyn RouteStore>) -> Result<(), RouteStoreError> {
        let _ = self.store.set(store);
        self.reread().await
    }

    /// Brings those into force that are in the store now.
    pub(crate) async fn reread(&self) -> Result<(), RouteStoreError> {
        let _changing = self.changing.lock().await;
        let mut usable = Vec::new();
        for rule in self.added().await? {
            usable.push(rule);
            if let Err(error) = self.combine(&usable) {
                tracing::error!(%error, "a route of the registry cannot be used and is left out");
                usable.pop();
            }
        }
        if let Ok(routes) = self.combine(&usable) {
            self.replace(routes);
        }
        Ok(())
    }

    /// Adds a route, or replaces the one with the same topic. It is in force when this returns.
    pub(crate) async fn put(&self, rule: RouteRule) -> Result<(), RouteChangeError> {
        let _changing = self.changing.lock().await;
        let mut added = self.added().await?;
        added.retain(|other| other.topic != rule.topic);
        added.push(rule.clone());
        let routes = self.combine(&added)?;
        self.store()?.put_route(&rule).await?;
        self.replace(routes);
        Ok(())
    }

    /// Removes a route that was added.
    pub(crate) async fn delete(&self, topic: &str) -> Result<(), RouteChangeError> {
        let _changing = self.changing.lock().await;
        let mut added = self.added().await?;
        let before = added.len();
        added.retain(|rule| rule.topic != topic);
        if added.len() == before {
            return Err(match self.configured.iter().find(|rule| rule.topic == topic) {
                Some(rule) => RouteChangeError::Configured(rule.topic.clone()),
                None => RouteChangeError::NotFound,
            });
        }
        let routes = self.combine(&added)?;
        self.store()?.delete_route(topic).await?;
        self.replace(routes);
        Ok(())
    }

    fn store(&self) -> Result<&Arc<dyn RouteStore>, RouteStoreError> {
        self.store.get().ok_or_else(|| RouteStoreError("there is no registry".into()))
    }

    async fn added(&self) -> Result<Vec<RouteRule>, RouteStoreError> {
        match self.store.get() {
            Some(store) => store.routes().await,
            None => Ok(Vec::new()),
        }
    }

    fn combine(&self, added: &[RouteRule]) -> Result<Routes, BadRoute> {
        let mut rules = added.to_vec();
        rules.extend(not_replaced(&self.configured, added));
        Routes::new(&rules)
    }

    fn replace(&self, routes: Routes) {
        *self.current.write() = Arc::new(routes);
        self.generation.fetch_add(1, Ordering::Release);
    }
}

/// The configuration's routes but for those whose topic was added as well.
fn not_replaced(configured: &[RouteRule], added: &[RouteRule]) -> Vec<RouteRule> {
    let is_replaced = |rule: &&RouteRule| added.iter().any(|other| other.topic == rule.topic);
    configured.iter().filter(|rule| !is_replaced(rule)).cloned().collect()
}
