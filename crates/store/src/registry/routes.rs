//! Routes: which topics become events. What a rule means is the gateway's; here it is a JSON text under its topic.

use catchment_types::Timestamp;

use super::share::Change;
use super::{Registry, RegistryError};

impl Registry {
    /// The rules of all routes, as JSON, oldest first.
    ///
    /// # Errors
    /// The registry failed.
    pub async fn routes(&self) -> Result<Vec<String>, RegistryError> {
        let rows: Vec<(String,)> = sqlx::query_as("SELECT rule FROM routes ORDER BY created_at, topic")
            .fetch_all(&self.pool)
            .await?;
        Ok(rows.into_iter().map(|(rule,)| rule).collect())
    }

    /// Sets the rule of a topic, in the place of one that it has.
    ///
    /// # Errors
    /// The registry failed.
    pub async fn put_route(&self, topic: &str, rule: &str) -> Result<(), RegistryError> {
        sqlx::query(
            "INSERT INTO routes (topic, rule, created_at) VALUES ($1, $2, $3) ON CONFLICT (topic) DO UPDATE SET rule = excluded.rule",
        )
        .bind(topic)
        .bind(rule)
        .bind(Timestamp::now().as_micros())
        .execute(&self.pool)
        .await?;
        self.changed(Change::Rules).await;
        Ok(())
    }

    /// Removes the route of a topic; whether there was one.
    ///
    /// # Errors
    /// The registry failed.
    pub async fn delete_route(&self, topic: &str) -> Result<bool, RegistryError> {
        let deleted = sqlx::query("DELETE FROM routes WHERE topic = $1")
            .bind(topic)
            .execute(&self.pool)
            .await?
            .rows_affected();
        if deleted > 0 {
            self.changed(Change::Rules).await;
        }
        Ok(deleted > 0)
    }
}
