//! Decoders: which rule turns a type's payloads into readings.

use catchment_decode::{DecoderRule, Decoders, RuleSet};
use catchment_types::{DEFAULT_REALM, Timestamp, check_event_type};

use super::share::Change;
use super::{Registry, RegistryError};

/// In place of a type: the rule of all types that have none of their own.
pub const DEFAULT_DECODER: &str = "*";

/// A decoder as registered.
#[derive(Debug, Clone, PartialEq)]
pub struct DecoderRecord {
    /// The type, or [`DEFAULT_DECODER`].
    pub event_type: String,
    /// How its payloads become readings.
    pub rule: DecoderRule,
    /// When it was last changed.
    pub updated_at: Timestamp,
}

type Row = (String, String, i64);

fn record((event_type, rule, updated_at): Row) -> Result<DecoderRecord, RegistryError> {
    let rule = serde_json::from_str(&rule).map_err(|error| RegistryError::Unreadable {
        what: "decoder",
        id: event_type.clone(),
        reason: error.to_string(),
    })?;
    Ok(DecoderRecord { event_type, rule, updated_at: Timestamp(updated_at) })
}

impl Registry {
    /// Sets the rule of a type; whether it had none.
    ///
    /// # Errors
    /// The type or the rule cannot be used.
    pub async fn put_decoder(&self, event_type: &str, rule: &DecoderRule) -> Result<bool, RegistryError> {
        check_event_type(event_type)?;
        rule.check()?;
        let json = serde_json::to_string(rule).map_err(|error| RegistryError::Invalid(error.to_string()))?;
        let mut transaction = self.pool.begin().await?;
        let replaced = sqlx::query(
            "UPDATE decoders SET rule = $1, updated_at = $2 WHERE realm = $3 AND event_type = $4",
        )
        .bind(&json)
        .bind(Timestamp::now().as_micros())
        .bind(DEFAULT_REALM)
        .bind(event_type)
        .execute(&mut *transaction)
        .await?
        .rows_affected();
        if replaced == 0 {
            sqlx::query("INSERT INTO decoders (realm, event_type, rule, updated_at) VALUES ($1, $2, $3, $4)")
                .bind(DEFAULT_REALM)
                .bind(event_type)
                .bind(&json)
                .bind(Timestamp::now().as_micros())
                .execute(&mut *transaction)
                .await?;
        }
        transaction.commit().await?;
        self.changed(Change::Rules).await;
        Ok(replaced == 0)
    }

    /// The decoder of a type.
    ///
    /// # Errors
    /// The registry failed, or holds a rule that cannot be read.
    pub async fn decoder(&self, event_type: &str) -> Result<Option<DecoderRecord>, RegistryError> {
        let row = sqlx::query_as(
            "SELECT event_type, rule, updated_at FROM decoders WHERE realm = $1 AND event_type = $2",
        )
        .bind(DEFAULT_REALM)
        .bind(event_type)
        .fetch_optional(&self.pool)
        .await?;
        row.map(record).transpose()
    }

    /// All decoders by type.
    ///
    /// # Errors
    /// The registry failed, or holds a rule that cannot be read.
    pub async fn decoders(&self) -> Result<Vec<DecoderRecord>, RegistryError> {
        let rows: Vec<Row> = sqlx::query_as(
            "SELECT event_type, rule, updated_at FROM decoders WHERE realm = $1 ORDER BY event_type",
        )
        .bind(DEFAULT_REALM)
        .fetch_all(&self.pool)
        .await?;
        rows.into_iter().map(record).collect()
    }

    /// Removes the decoder of a type, which then falls back to the default; whether there was one.
    ///
    /// # Errors
    /// The registry failed.
    pub async fn delete_decoder(&self, event_type: &str) -> Result<bool, RegistryError> {
        let deleted = sqlx::query("DELETE FROM decoders WHERE realm = $1 AND event_type = $2")
            .bind(DEFAULT_REALM)
            .bind(event_type)
            .execute(&self.pool)
            .await?
            .rows_affected();
        if deleted > 0 {
            self.changed(Change::Rules).await;
        }
        Ok(deleted > 0)
    }

    /// The rules of all types, ready for the workers.
    ///
    /// # Errors
    /// The registry failed, or holds a rule that cannot be read or cannot work.
    pub async fn rule_set(&self) -> Result<RuleSet, RegistryError> {
        let mut records = self.decoders().await?;
        let default = records.iter().position(|record| record.event_type == DEFAULT_DECODER);
        let default = default.map(|at| records.remove(at).rule).unwrap_or_default();
        let mut rules = RuleSet::new(default)?;
        for record in records {
            rules.insert(&record.event_type, record.rule)?;
        }
        Ok(rules)
    }

    /// Brings the rules into force: at start, and after each change of a decoder.
    ///
    /// # Errors
    /// As [`Self::rule_set`]; what was in force stays then.
    pub async fn apply_decoders(&self, decoders: &Decoders) -> Result<(), RegistryError> {
        // One at a time, or an older set that was read before could replace a newer one.
        let _applying = self.applying.lock().await;
        decoders.replace(self.rule_set().await?);
        Ok(())
    }
}
