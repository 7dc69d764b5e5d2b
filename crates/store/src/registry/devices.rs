//! Registered devices. A device may send without being registered, as far as admission allows it.

use catchment_types::{DEFAULT_REALM, Timestamp, check_device_id};
use serde_json::{Map, Value};

use super::access::device_name;
use super::share::Change;
use super::{Identity, Registry, RegistryError};

/// Labels of a device: a flat JSON object that means what its users want.
pub type Labels = Map<String, Value>;

/// Largest JSON of a device's labels, in bytes.
const LABELS_BYTES_MAX: usize = 16 * 1024;

/// A registered device.
#[derive(Debug, Clone, PartialEq)]
pub struct DeviceRecord {
    /// Its id.
    pub device_id: String,
    /// Its labels, if it has any.
    pub labels: Option<Labels>,
    /// When it was registered.
    pub created_at: Timestamp,
}

type Row = (String, Option<String>, i64);

fn record((device_id, labels, created_at): Row) -> Result<DeviceRecord, RegistryError> {
    let labels = labels.map(|json| serde_json::from_str(&json)).transpose().map_err(|error| {
        RegistryError::Unreadable { what: "device", id: device_id.clone(), reason: error.to_string() }
    })?;
    Ok(DeviceRecord { device_id, labels, created_at: Timestamp(created_at) })
}

fn labels_json(labels: Option<&Labels>) -> Result<Option<String>, RegistryError> {
    let Some(labels) = labels else { return Ok(None) };
    let json = Value::Object(labels.clone()).to_string();
    if json.len() > LABELS_BYTES_MAX {
        return Err(RegistryError::Invalid(format!(
            "the labels have {} bytes, at most {LABELS_BYTES_MAX} are allowed",
            json.len()
        )));
    }
    Ok(Some(json))
}

impl Registry {
    /// [`Self::create_device_in`] the main realm.
    ///
    /// # Errors
    /// As there.
    pub async fn create_device(
        &self,
        device_id: &str,
        labels: Option<&Labels>,
    ) -> Result<DeviceRecord, RegistryError> {
        self.create_device_in(DEFAULT_REALM, device_id, labels).await
    }

    /// [`Self::device_in`] the main realm.
    ///
    /// # Errors
    /// As there.
    pub async fn device(&self, device_id: &str) -> Result<Option<DeviceRecord>, RegistryError> {
        self.device_in(DEFAULT_REALM, device_id).await
    }

    /// [`Self::delete_device_in`] the main realm.
    ///
    /// # Errors
    /// As there.
    pub async fn delete_device(&self, device_id: &str) -> Result<bool, RegistryError> {
        self.delete_device_in(DEFAULT_REALM, device_id).await
    }

    /// Registers a device.
    ///
    /// # Errors
    /// The id or the labels cannot be used, or the device is registered already.
    pub async fn create_device_in(
        &self,
        realm: &str,
        device_id: &str,
        labels: Option<&Labels>,
    ) -> Result<DeviceRecord, RegistryError> {
        match self.insert_device(realm, device_id, labels, false).await? {
            (record, true) => Ok(record),
            (_, false) => Err(RegistryError::Exists { what: "device", id: device_id.to_owned() }),
        }
    }

    /// Registers a device, or replaces the labels of a registered one; whether it is new.
    ///
    /// # Errors
    /// The id or the labels cannot be used.
    pub async fn put_device(
        &self,
        device_id: &str,
        labels: Option<&Labels>,
    ) -> Result<(DeviceRecord, bool), RegistryError> {
        self.insert_device(DEFAULT_REALM, device_id, labels, true).await
    }

    async fn insert_device(
        &self,
        realm: &str,
        device_id: &str,
        labels: Option<&Labels>,
        replace: bool,
    ) -> Result<(DeviceRecord, bool), RegistryError> {
        check_device_id(device_id)?;
        self.check_known_realm(realm)?;
        let labels = labels_json(labels)?;
        let mut transaction = self.pool.begin().await?;
        let inserted = sqlx::query(
            "INSERT INTO devices (realm, device_id, labels, created_at) VALUES ($1, $2, $3, $4)
             ON CONFLICT (realm, device_id) DO NOTHING",
        )
        .bind(realm)
        .bind(device_id)
        .bind(&labels)
        .bind(Timestamp::now().as_micros())
        .execute(&mut *transaction)
        .await?;
        let is_new = inserted.rows_affected() == 1;
        if !is_new && replace {
            sqlx::query("UPDATE devices SET labels = $1 WHERE realm = $2 AND device_id = $3")
                .bind(&labels)
                .bind(realm)
                .bind(device_id)
                .execute(&mut *transaction)
                .await?;
        }
        let row: Row = sqlx::query_as(
            "SELECT device_id, labels, created_at FROM devices WHERE realm = $1 AND device_id = $2",
        )
        .bind(realm)
        .bind(device_id)
        .fetch_one(&mut *transaction)
        .await?;
        transaction.commit().await?;
        if is_new || replace {
            self.changed(Change::Rules).await;
        }
        Ok((record(row)?, is_new))
    }

    /// A registered device.
    ///
    /// # Errors
    /// The registry failed.
    pub async fn device_in(
        &self,
        realm: &str,
        device_id: &str,
    ) -> Result<Option<DeviceRecord>, RegistryError> {
        let row = sqlx::query_as(
            "SELECT device_id, labels, created_at FROM devices WHERE realm = $1 AND device_id = $2",
        )
        .bind(realm)
        .bind(device_id)
        .fetch_optional(&self.pool)
        .await?;
        row.map(record).transpose()
    }

    /// Registered devices by id, after `after`, at most `limit`.
    ///
    /// # Errors
    /// The registry failed.
    pub async fn devices(&self, after: Option<&str>, limit: u32) -> Result<Vec<DeviceRecord>, RegistryError> {
        let rows: Vec<Row> = sqlx::query_as(
            "SELECT device_id, labels, created_at FROM devices WHERE realm = $1 AND device_id > $2
             ORDER BY device_id LIMIT $3",
        )
        .bind(DEFAULT_REALM)
        .bind(after.unwrap_or(""))
        .bind(i64::from(limit))
        .fetch_all(&self.pool)
        .await?;
        rows.into_iter().map(record).collect()
    }

    /// Removes a device's registration, its tokens and its password; whether there was one. What it sent stays.
    ///
    /// # Errors
    /// The registry failed.
    pub async fn delete_device_in(&self, realm: &str, device_id: &str) -> Result<bool, RegistryError> {
        let deleted = sqlx::query("DELETE FROM devices WHERE realm = $1 AND device_id = $2")
            .bind(realm)
            .bind(device_id)
            .execute(&self.pool)
            .await?
            .rows_affected();
        if deleted > 0 {
            let is_its = |identity: &Identity| {
                identity.realm == realm && identity.device_id.as_deref() == Some(device_id)
            };
            self.tokens.write().retain(|_, identity| !is_its(identity));
            self.passwords.forget(realm, device_id);
            self.withdraw(device_name(realm, device_id)).await;
            self.changed(Change::Rules).await;
        }
        Ok(deleted > 0)
    }
}
