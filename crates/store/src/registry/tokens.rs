//! Tokens: who may do what.
//!
//! A token is `ctm_` and 32 random bytes in base64url without padding. It is shown once; stored is its SHA-256. A token
//! is found by looking its hash up, so how long that takes says nothing about the tokens there are.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use catchment_types::{DEFAULT_REALM, Timestamp, check_device_id};
use rand::TryRngCore;
use rand::rngs::OsRng;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::share::Change;
use super::{Registry, RegistryError, RegistryPlace};

/// What every token starts with, so that scanners for leaked secrets find them.
pub const TOKEN_PREFIX: &str = "ctm_";
const SECRET_BYTES: usize = 32;
/// Longest name of a token, in bytes.
const NAME_BYTES_MAX: usize = 128;

/// What a token allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Everything.
    Admin,
    /// Reading and SQL.
    Reader,
    /// Sending as one device.
    Device,
}

impl Role {
    /// The name in the registry, REST and on the command line.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Admin => "admin",
            Self::Reader => "reader",
            Self::Device => "device",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Role {
    type Err = RegistryError;
    fn from_str(text: &str) -> Result<Self, RegistryError> {
        [Self::Admin, Self::Reader, Self::Device].into_iter().find(|role| role.as_str() == text).ok_or_else(
            || RegistryError::Invalid(format!("there is no role {text:?}; use admin, reader or device")),
        )
    }
}

/// Who a valid token stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// The token's id.
    pub token_id: String,
    /// The realm that it is of.
    pub realm: String,
    /// The token's name.
    pub name: String,
    /// What it allows.
    pub role: Role,
    /// The device it may send as, with [`Role::Device`].
    pub device_id: Option<String>,
}

/// A token as registered, without its secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenRecord {
    /// Its id, for removing it.
    pub id: String,
    /// The realm that it is of.
    pub realm: String,
    /// What it is for.
    pub name: String,
    /// What it allows.
    pub role: Role,
    /// The device it may send as.
    pub device_id: Option<String>,
    /// When it was made.
    pub created_at: Timestamp,
}

/// A token to make.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewToken<'a> {
    /// The realm that it is for.
    pub realm: &'a str,
    /// What it is for.
    pub name: &'a str,
    /// What it allows.
    pub role: Role,
    /// With [`Role::Device`], and only then: the registered device it may send as.
    pub device_id: Option<&'a str>,
}

type Row = (String, String, String, String, Option<String>, i64, String);

impl Registry {
    /// Makes a token; the second value is the secret, shown this once.
    ///
    /// # Errors
    /// The name or device cannot be used, or the device is not registered.
    pub async fn create_token(&self, new: NewToken<'_>) -> Result<(TokenRecord, String), RegistryError> {
        let secret = format!("{TOKEN_PREFIX}{}", URL_SAFE_NO_PAD.encode(random::<SECRET_BYTES>()?));
        let record = self.insert_token(new, &secret).await?;
        Ok((record, secret))
    }

    /// Registers a secret that was made before, for instance the one in the owner's file, if it is not known yet.
    ///
    /// # Errors
    /// As [`Self::create_token`], or the secret is not a token.
    pub async fn import_token(&self, new: NewToken<'_>, secret: &str) -> Result<(), RegistryError> {
        let bytes = secret.strip_prefix(TOKEN_PREFIX).and_then(|text| URL_SAFE_NO_PAD.decode(text).ok());
        if bytes.is_none_or(|bytes| bytes.len() != SECRET_BYTES) {
            return Err(RegistryError::Invalid(format!(
                "not a token: it is {TOKEN_PREFIX} and 43 letters, digits, '-' or '_'"
            )));
        }
        if self.verify(secret).is_none() {
            self.insert_token(new, secret).await?;
        }
        Ok(())
    }

    async fn insert_token(&self, new: NewToken<'_>, secret: &str) -> Result<TokenRecord, RegistryError> {
        let NewToken { realm, name, role, device_id } = new;
        self.check_known_realm(realm)?;
        if name.is_empty() || name.len() > NAME_BYTES_MAX || name.chars().any(char::is_control) {
            return Err(RegistryError::Invalid(format!(
                "a token's name has 1 to {NAME_BYTES_MAX} bytes and no control characters"
            )));
        }
        match (role, device_id) {
            (Role::Device, None) => {
                return Err(RegistryError::Invalid("a token of role device needs a device_id".to_owned()));
            }
            (Role::Admin | Role::Reader, Some(_)) => {
                return Err(RegistryError::Invalid(format!("a token of role {role} has no device_id")));
            }
            (Role::Device, Some(device_id)) => {
                check_device_id(device_id)?;
                if self.device_in(realm, device_id).await?.is_none() {
                    return Err(RegistryError::NotFound { what: "device", id: device_id.to_owned() });
                }
            }
            (Role::Admin | Role::Reader, None) => {}
        }
        let record = TokenRecord {
            id: hex::encode(random::<8>()?),
            realm: realm.to_owned(),
            name: name.to_owned(),
            role,
            device_id: device_id.map(str::to_owned),
            created_at: Timestamp::now(),
        };
        let hash = hash(secret);
        sqlx::query(
            "INSERT INTO tokens (id, realm, name, role, device_id, sha256, created_at) VALUES ($1, $2, $3, $4, $5, $6, $7)",
        )
        .bind(&record.id)
        .bind(realm)
        .bind(name)
        .bind(role.as_str())
        .bind(device_id)
        .bind(hex::encode(hash))
        .bind(record.created_at.as_micros())
        .execute(&self.pool)
        .await?;
        self.tokens.write().insert(hash, Arc::new(identity(&record)));
        self.changed(Change::Token(record.id.clone())).await;
        Ok(record)
    }

    /// Who a token stands for, if it is valid. Touches no disk.
    #[must_use]
    pub fn verify(&self, secret: &str) -> Option<Arc<Identity>> {
        self.tokens.read().get(&hash(secret)).cloned()
    }

    /// All tokens, oldest first.
    ///
    /// # Errors
    /// The registry failed.
    pub async fn tokens(&self) -> Result<Vec<TokenRecord>, RegistryError> {
        Ok(self.token_rows().await?.into_iter().map(|(record, _)| record).collect())
    }

    /// Removes a token; whether there was one.
    ///
    /// # Errors
    /// It is the last administrator's token, or the registry failed.
    pub async fn delete_token(&self, id: &str) -> Result<bool, RegistryError> {
        // Two that remove each other's token at once must not both succeed. SQLite has one writer at a time.
        let mut transaction = self.pool.begin().await?;
        if let RegistryPlace::Postgres(_) = self.place {
            let lock = "LOCK TABLE tokens IN SHARE ROW EXCLUSIVE MODE";
            sqlx::query(lock).execute(&mut *transaction).await?;
        }
        let deleted = sqlx::query(
            "DELETE FROM tokens WHERE id = $2 AND (role <> 'admin' OR realm <> $1
             OR EXISTS (SELECT 1 FROM tokens other WHERE other.realm = $1 AND other.role = 'admin' AND other.id <> $2))",
        )
        .bind(DEFAULT_REALM)
        .bind(id)
        .execute(&mut *transaction)
        .await?
        .rows_affected();
        transaction.commit().await?;
        if deleted == 0 {
            let remains: Option<(String,)> = sqlx::query_as("SELECT id FROM tokens WHERE id = $1")
                .bind(id)
                .fetch_optional(&self.pool)
                .await?;
            return if remains.is_some() { Err(RegistryError::LastAdmin) } else { Ok(false) };
        }
        self.tokens.write().retain(|_, identity| identity.token_id != id);
        self.withdraw(format!("token:{id}")).await;
        self.changed_here();
        Ok(true)
    }

    pub(super) async fn load_tokens(&self) -> Result<(), RegistryError> {
        let rows = self.token_rows().await?;
        let loaded = rows.into_iter().map(|(record, hash)| (hash, Arc::new(identity(&record)))).collect();
        *self.tokens.write() = loaded;
        Ok(())
    }

    /// Reads one token that another process has made.
    pub(super) async fn load_token(&self, id: &str) -> Result<(), RegistryError> {
        let row: Option<Row> = sqlx::query_as(
            "SELECT id, realm, name, role, device_id, created_at, sha256 FROM tokens WHERE id = $1",
        )
        .bind(id)
        .fetch_optional(&self.pool)
        .await?;
        if let Some(row) = row {
            let (record, hash) = read_row(row)?;
            self.tokens.write().insert(hash, Arc::new(identity(&record)));
        }
        Ok(())
    }

    async fn token_rows(&self) -> Result<Vec<(TokenRecord, [u8; 32])>, RegistryError> {
        let rows: Vec<Row> = sqlx::query_as(
            "SELECT id, realm, name, role, device_id, created_at, sha256 FROM tokens ORDER BY created_at, id",
        )
        .fetch_all(&self.pool)
        .await?;
        rows.into_iter().map(read_row).collect()
    }
}

fn read_row(
    (id, realm, name, role, device_id, created_at, sha256): Row,
) -> Result<(TokenRecord, [u8; 32]), RegistryError> {
    let unreadable = |reason: String| RegistryError::Unreadable { what: "token", id: id.clone(), reason };
    let mut hash = [0; 32];
    hex::decode_to_slice(&sha256, &mut hash).map_err(|error| unreadable(error.to_string()))?;
    let role = role.parse().map_err(|error: RegistryError| unreadable(error.to_string()))?;
    Ok((TokenRecord { id, realm, name, role, device_id, created_at: Timestamp(created_at) }, hash))
}

fn identity(record: &TokenRecord) -> Identity {
    Identity {
        token_id: record.id.clone(),
        realm: record.realm.clone(),
        name: record.name.clone(),
        role: record.role,
        device_id: record.device_id.clone(),
    }
}

fn hash(secret: &str) -> [u8; 32] {
    Sha256::digest(secret.as_bytes()).into()
}

pub(super) fn random<const N: usize>() -> Result<[u8; N], RegistryError> {
    let mut bytes = [0; N];
    OsRng
        .try_fill_bytes(&mut bytes)
        .map_err(|error| RegistryError::Invalid(format!("the system gives no random numbers: {error}")))?;
    Ok(bytes)
}
