//! ClickHouse's HTTP interface: statements, inserts and answers as Arrow streams.
//!
//! User and password go in headers, never in a URL, so that no log of a proxy has them.

use std::fs;
use std::time::Duration;

use arrow::record_batch::RecordBatch;
use bytes::Bytes;
use reqwest::header::HeaderValue;
use reqwest::{Certificate, RequestBuilder, Response};

use super::answer::Answer;
use super::config::ClickHouseTarget;
use super::error::{ClickHouseError, Trouble};

const CONNECT_MAX: Duration = Duration::from_secs(3);
/// Statements that touch little: what is longer hangs.
pub(super) const STATEMENT_MAX: Duration = Duration::from_secs(30);
/// ClickHouse closes connections that are idle for ten seconds or more; ours must go before.
const IDLE_MAX: Duration = Duration::from_secs(4);
/// Of a refusal, most bytes that are read.
const REFUSAL_BYTES_MAX: usize = 16 << 10;

/// A setting of one query.
pub(super) type Setting = (&'static str, String);
const TEXT: [(&str, &str); 1] = [("default_format", "TabSeparatedRaw")];

/// Speaks to one database.
#[derive(Clone)]
pub(super) struct Client {
    http: reqwest::Client,
    target: ClickHouseTarget,
    user: HeaderValue,
    password: HeaderValue,
}

impl Client {
    /// A client with connections of its own; connects when it has something to say.
    ///
    /// # Errors
    /// The password's or the CA's file cannot be read.
    pub(super) fn new(target: &ClickHouseTarget) -> Result<Self, ClickHouseError> {
        let failed = |trouble| ClickHouseError { place: target.to_string(), trouble };
        let config = &target.config;
        let password = match &config.password_file {
            None => config.password.reveal().to_owned(),
            Some(path) => {
                let text = fs::read_to_string(path).map_err(|error| {
                    failed(Trouble::PasswordFile { path: path.clone(), message: error.to_string() })
                })?;
                text.trim_end_matches(['\r', '\n']).to_owned()
            }
        };
        let header = |what: &'static str, text: &str| {
            HeaderValue::from_bytes(text.as_bytes()).map_err(|_| failed(Trouble::Unsendable(what)))
        };
        let mut password = header("password", &password)?;
        password.set_sensitive(true);
        let user = header("user", if config.user.is_empty() { "default" } else { &config.user })?;
        let mut builder = reqwest::Client::builder()
            .connect_timeout(CONNECT_MAX)
            .pool_idle_timeout(IDLE_MAX)
            .tcp_nodelay(true)
            .no_proxy()
            .user_agent(concat!("catchment/", env!("CARGO_PKG_VERSION")));
        if let Some(path) = &config.ca_file {
            let tls = |message: String| failed(Trouble::Tls(format!("{}: {message}", path.display())));
            let pem = fs::read(path).map_err(|error| tls(error.to_string()))?;
            let certificates = Certificate::from_pem_bundle(&pem).map_err(|error| tls(error.to_string()))?;
            for certificate in certificates {
                builder = builder.add_root_certificate(certificate);
            }
        }
        let http = builder.build().map_err(|error| failed(Trouble::Tls(error.to_string())))?;
        Ok(Self { http, target: target.clone(), user, password })
    }

    /// Which server and database.
    pub(super) fn target(&self) -> &ClickHouseTarget {
        &self.target
    }

    pub(super) fn error(&self, trouble: Trouble) -> ClickHouseError {
        ClickHouseError { place: self.target.to_string(), trouble }
    }

    /// Runs a statement that answers nothing.
    pub(super) async fn execute(&self, statement: &str) -> Result<(), ClickHouseError> {
        self.text(statement).await.map(drop)
    }

    /// Runs a statement with a small answer: columns between tabs.
    pub(super) async fn text(&self, statement: &str) -> Result<String, ClickHouseError> {
        self.text_of(self.in_database(self.request(&TEXT)), statement).await
    }

    /// As [`Client::text`], outside of the database, which need not exist.
    pub(super) async fn text_on_server(&self, statement: &str) -> Result<String, ClickHouseError> {
        self.text_of(self.request(&TEXT), statement).await
    }

    async fn text_of(&self, request: RequestBuilder, statement: &str) -> Result<String, ClickHouseError> {
        let request = request.timeout(STATEMENT_MAX).body(statement.to_owned());
        let response = self.answered(request, STATEMENT_MAX).await?;
        response.text().await.map_err(|error| self.broken(error, STATEMENT_MAX))
    }

    /// Asks for rows, which come as a stream. `query_id` is what the query can be ended by.
    pub(super) async fn select(
        &self,
        query: String,
        query_id: &str,
        settings: &[Setting],
    ) -> Result<Answer, ClickHouseError> {
        let mut all = vec![
            ("query_id", query_id.to_owned()),
            ("default_format", "ArrowStream".to_owned()),
            // Texts are bytes to ClickHouse; what they are to us is said by our schema.
            ("output_format_arrow_string_as_string", "0".to_owned()),
            ("output_format_arrow_compression_method", "none".to_owned()),
            ("cancel_http_readonly_queries_on_client_close", "1".to_owned()),
        ];
        all.extend_from_slice(settings);
        let request = self.in_database(self.request(&all)).body(query);
        let response = self.answered(request, STATEMENT_MAX).await?;
        Ok(Answer::new(self.clone(), response))
    }

    /// Brings rows into a table as one block, whose name `token` is: ClickHouse takes no block twice. `limit` is the time that
    /// it is given; what comes of it after that is not known.
    pub(super) async fn insert(
        &self,
        table: &str,
        token: &str,
        rows: &RecordBatch,
        body: Bytes,
        limit: Duration,
    ) -> Result<(), ClickHouseError> {
        let columns: Vec<_> =
            rows.schema().fields().iter().map(|field| format!("`{}`", field.name())).collect();
        let settings = [
            ("query", format!("INSERT INTO {table} ({}) FORMAT ArrowStream", columns.join(", "))),
            ("insert_deduplication_token", token.to_owned()),
            ("insert_deduplicate", "1".to_owned()),
            ("deduplicate_blocks_in_dependent_materialized_views", "1".to_owned()),
            ("async_insert", "0".to_owned()),
            ("max_insert_threads", "1".to_owned()),
            // A block stays what it is.
            ("min_insert_block_size_rows", "0".to_owned()),
            ("min_insert_block_size_bytes", "0".to_owned()),
            // Late rows may be of many days.
            ("max_partitions_per_insert_block", "0".to_owned()),
        ];
        let request = self.in_database(self.request(&settings)).timeout(limit).body(body);
        let response = self.answered(request, limit).await;
        response.map(drop).map_err(|error| self.error(error.trouble.about_our_tables()))
    }

    fn request<V: serde::Serialize>(&self, settings: &[(&'static str, V)]) -> RequestBuilder {
        let request = self.http.post(self.target.http_url()).query(settings);
        if self.target.config.user.is_empty() && self.password.is_empty() {
            return request;
        }
        request
            .header("X-ClickHouse-User", self.user.clone())
            .header("X-ClickHouse-Key", self.password.clone())
    }

    fn in_database(&self, request: RequestBuilder) -> RequestBuilder {
        request.header("X-ClickHouse-Database", &self.target.database)
    }

    /// Sends it; an answer that is a refusal is an error. `limit` is the time that it was given.
    async fn answered(&self, request: RequestBuilder, limit: Duration) -> Result<Response, ClickHouseError> {
        let mut response = request.send().await.map_err(|error| self.broken(error, limit))?;
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        let code = response.headers().get("X-ClickHouse-Exception-Code");
        let code = code.and_then(|code| code.to_str().ok()?.parse().ok());
        let mut body = Vec::new();
        while let Ok(Some(chunk)) = response.chunk().await {
            body.extend_from_slice(&chunk);
            if body.len() >= REFUSAL_BYTES_MAX {
                break;
            }
        }
        let message = String::from_utf8_lossy(&body);
        let ClickHouseTarget { config, database, .. } = &self.target;
        Err(self.error(Trouble::of_refusal(status.as_u16(), code, &message, &config.user, database)))
    }

    /// What a broken connection means.
    pub(super) fn broken(&self, error: reqwest::Error, limit: Duration) -> ClickHouseError {
        if error.is_timeout() && !error.is_connect() {
            return self.error(Trouble::Silent(limit));
        }
        // The innermost says why: refused, reset, no such host, a certificate.
        let mut reason: &dyn std::error::Error = &error;
        while let Some(source) = reason.source() {
            reason = source;
        }
        let reason = if error.is_timeout() { "no connection in time".to_owned() } else { reason.to_string() };
        self.error(Trouble::Unreachable(reason))
    }
}
