//! Routes that were added while running are kept in the registry.

use std::sync::Arc;

use async_trait::async_trait;
use catchment_gateway::{RouteRule, RouteStore, RouteStoreError};
use catchment_store::registry::{Registry, RegistryError};

/// The registry as the gateway's store of routes.
pub(crate) struct RegistryRoutes(pub(crate) Arc<Registry>);

fn failed(error: RegistryError) -> RouteStoreError {
    RouteStoreError(error.to_string())
}

#[async_trait]
impl RouteStore for RegistryRoutes {
    async fn routes(&self) -> Result<Vec<RouteRule>, RouteStoreError> {
        let read = |json: &String| {
            serde_json::from_str(json).map_err(|error| {
                RouteStoreError(format!("the registry has the route {json}, which is none: {error}"))
            })
        };
        self.0.routes().await.map_err(failed)?.iter().map(read).collect()
    }

    async fn put_route(&self, rule: &RouteRule) -> Result<(), RouteStoreError> {
        let json = serde_json::to_string(rule).map_err(|error| RouteStoreError(error.to_string()))?;
        self.0.put_route(&rule.topic, &json).await.map_err(failed)
    }

    async fn delete_route(&self, topic: &str) -> Result<bool, RouteStoreError> {
        self.0.delete_route(topic).await.map_err(failed)
    }
}
