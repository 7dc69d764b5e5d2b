//! How S3 is named and reached: a URL, and a section of settings for what is no part of one.
//!
//! ```text
//! s3://BUCKET[/PREFIX]
//! ```
//!
//! What neither says comes from the environment variables that other programs know (`AWS_ENDPOINT_URL`, `AWS_REGION`,
//! `AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY`, `AWS_SESSION_TOKEN`, `AWS_ALLOW_HTTP`, …), and credentials at last from the
//! machine's role. No secret is displayed or logged.

use std::fmt;
use std::fs;
use std::io;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// The section `[engines.s3]`. Every field has a default.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct S3Config {
    /// Where it is, when it is not Amazon's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<String>,
    /// The region.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub region: Option<String>,
    /// Who we are.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub access_key_id: Option<String>,
    /// Its secret.
    #[serde(skip_serializing)]
    pub secret_access_key: Secret,
    /// A file with the secret alone, instead.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub secret_access_key_file: Option<PathBuf>,
    /// Whether an endpoint may be reached without TLS.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub allow_http: Option<bool>,
    /// Whether the bucket is a part of the host's name, and the endpoint has it already.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub virtual_hosted: Option<bool>,
    /// Seconds that a request may take, and be tried again.
    pub request_s_max: u64,
}

impl Default for S3Config {
    fn default() -> Self {
        Self {
            endpoint: None,
            region: None,
            access_key_id: None,
            secret_access_key: Secret::default(),
            secret_access_key_file: None,
            allow_http: None,
            virtual_hosted: None,
            request_s_max: 15,
        }
    }
}

impl S3Config {
    /// The secret, if these settings say it.
    pub(super) fn secret(&self) -> io::Result<Option<String>> {
        if let Some(path) = &self.secret_access_key_file {
            let text = fs::read_to_string(path).map_err(|error| {
                io::Error::new(error.kind(), format!("secret_access_key_file {}: {error}", path.display()))
            })?;
            return Ok(Some(text.trim().to_owned()));
        }
        Ok(Some(self.secret_access_key.0.clone()).filter(|secret| !secret.is_empty()))
    }
}

/// Something that is never shown.
#[derive(Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub struct Secret(String);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_empty() { "none" } else { "***" })
    }
}

/// A prefix of a bucket, and how to get there. Displayed without secrets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct S3Place {
    /// The bucket.
    pub bucket: String,
    /// What the names of all objects begin with; no `/` at either end. May be empty.
    pub prefix: String,
    /// The section.
    pub config: S3Config,
}

impl fmt::Display for S3Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.prefix.as_str() {
            "" => write!(f, "s3://{}", self.bucket),
            prefix => write!(f, "s3://{}/{prefix}", self.bucket),
        }
    }
}

/// A URL of S3 that means nothing. Does not repeat it: it may have a secret.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum BadS3 {
    /// It has another form.
    #[error(
        "a URL of S3 is s3://BUCKET[/PREFIX], without user, port or settings; those stand in [engines.s3] or in the environment"
    )]
    Form,
    /// A prefix that is no good name.
    #[error("the prefix of a URL of S3 has parts of letters, digits and ._-=, with one / between them")]
    Prefix,
}

impl S3Place {
    /// Understands a URL.
    ///
    /// # Errors
    /// Says what is wrong with it.
    pub fn parse(url: &str, section: &S3Config) -> Result<Self, BadS3> {
        let rest = url.strip_prefix("s3://").ok_or(BadS3::Form)?;
        let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
        let is_name = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
        if bucket.is_empty() || !bucket.bytes().all(is_name) {
            return Err(BadS3::Form);
        }
        let prefix = prefix.trim_end_matches('/');
        let is_part = |part: &str| {
            !matches!(part, "" | "." | "..") && part.bytes().all(|byte| is_name(byte) || byte == b'=')
        };
        if !prefix.is_empty() && !prefix.split('/').all(is_part) {
            return Err(BadS3::Prefix);
        }
        Ok(Self { bucket: bucket.to_owned(), prefix: prefix.to_owned(), config: section.clone() })
    }
}
