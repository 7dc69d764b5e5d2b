//! Tables in a bucket of S3, or of a store that speaks as S3 does.
//!
//! # How it stays safe
//! A commit is a put with `If-None-Match: *`: of two that put the same version, one is told that it exists. A put whose answer
//! is lost (a timeout, or a 500 after which it was tried again) leaves open whether it counts: [`Creation::Unknown`], or
//! `Exists` for an object that is our own. Whoever commits settles that by making the same object again and reading it back.
//!
//! Requests that fail with 500, 503 or 429, or find no connection, are tried again with growing pauses, for as long as
//! `request_s_max`; then whoever asked is told, and has its own pauses.
//!
//! # Threads
//! All requests run on two threads of the store's own: plans of queries are polled by runtimes that come and go, and a connection
//! must not end with one of them.

mod config;
mod probe;
mod upload;

use std::fmt;
use std::future::Future;
use std::io;
use std::iter;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use datafusion::datasource::listing::PartitionedFile;
use datafusion::datasource::physical_plan::parquet::{
    DefaultParquetFileReaderFactory, ParquetFileReaderFactory,
};
use datafusion::error::DataFusionError;
use datafusion::physical_plan::metrics::ExecutionPlanMetricsSet;
use futures::{StreamExt, TryStreamExt, stream};
use object_store::aws::{AmazonS3, AmazonS3Builder, AmazonS3ConfigKey};
use object_store::client::SpawnedReqwestConnector;
use object_store::path::Path;
use object_store::prefix::PrefixStore;
use object_store::{
    BackoffConfig, ClientConfigKey, Error, ObjectStore, ObjectStoreExt, PutMode, PutPayload, RetryConfig,
};
use parquet::arrow::arrow_reader::ArrowReaderOptions;
use parquet::arrow::async_reader::{AsyncFileReader, ParquetRecordBatchStreamBuilder};
use parquet::errors::ParquetError;
use tokio::runtime::Runtime;

pub use config::{BadS3, S3Config, S3Place, Secret};
pub use probe::{Probe, probe};

use super::{Creation, FileSink, ParquetRows, Storage, StorageError, Wanted};

const CONNECT_MAX: Duration = Duration::from_secs(5);
const PAUSE_MIN: Duration = Duration::from_millis(200);
const PAUSE_MAX: Duration = Duration::from_secs(5);
const RETRIES_MAX: usize = 10;
/// Of small files, at a start.
const READS_AT_ONCE: usize = 16;
const CREDENTIALS_HINT: &str = "; look at access_key_id and secret_access_key_file in [engines.s3], or AWS_… in the \
    environment, and at what they may do";

/// A prefix of a bucket.
#[derive(Debug, Clone)]
pub struct S3Store(Arc<Inner>);

struct Inner {
    place: S3Place,
    store: Arc<PrefixStore<AmazonS3>>,
    io: IoThreads,
}

impl fmt::Debug for Inner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("S3").field(&self.place.to_string()).finish()
    }
}

impl S3Store {
    /// Gets ready to ask S3.
    ///
    /// # Errors
    /// The settings are not enough, or a file with a secret cannot be read.
    pub fn open(place: &S3Place) -> Result<Self, StorageError> {
        let refuse = |source| StorageError { what: "use", path: PathBuf::from(place.to_string()), source };
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .thread_name("s3")
            .enable_all()
            .build()
            .map_err(refuse)?;
        let io = IoThreads(Some(runtime));
        let store = builder(place).map_err(refuse)?;
        let store = store.with_http_connector(SpawnedReqwestConnector::new(io.handle().clone()));
        let store = store.build().map_err(|error| refuse(explain(error)))?;
        let store = PrefixStore::new(store, place.prefix.as_str());
        Ok(Self(Arc::new(Inner { place: place.clone(), store: Arc::new(store), io })))
    }

    /// Waits for what S3 answers.
    fn run<T>(&self, asked: impl Future<Output = T>) -> T {
        self.0.io.handle().block_on(asked)
    }

    async fn get(&self, path: &str) -> Result<Option<Bytes>, StorageError> {
        let location = Path::from(path);
        let read = async { self.0.store.get(&location).await?.bytes().await };
        match read.await {
            Ok(bytes) => Ok(Some(bytes)),
            Err(error @ Error::NotFound { .. }) if !is_bucket_missing(&error) => Ok(None),
            Err(error) => Err(self.error("read", path)(error)),
        }
    }

    fn error(&self, what: &'static str, path: &str) -> impl FnOnce(Error) -> StorageError {
        let path = self.shown(path);
        move |error| StorageError { what, path, source: explain(error) }
    }
}

fn builder(place: &S3Place) -> io::Result<AmazonS3Builder> {
    let config = &place.config;
    let seconds = config.request_s_max.max(1);
    let retry = RetryConfig {
        backoff: BackoffConfig { init_backoff: PAUSE_MIN, max_backoff: PAUSE_MAX, base: 2.0 },
        max_retries: RETRIES_MAX,
        retry_timeout: Duration::from_secs(seconds),
    };
    let client = |key| AmazonS3ConfigKey::Client(key);
    // The settings stand over the environment.
    let mut builder = AmazonS3Builder::from_env()
        .with_bucket_name(&place.bucket)
        .with_retry(retry)
        .with_config(client(ClientConfigKey::Timeout), format!("{seconds}s"))
        .with_config(client(ClientConfigKey::ConnectTimeout), format!("{}s", CONNECT_MAX.as_secs()));
    if let Some(endpoint) = &config.endpoint {
        builder = builder.with_endpoint(endpoint);
    }
    if let Some(region) = &config.region {
        builder = builder.with_region(region);
    }
    if let Some(id) = &config.access_key_id {
        builder = builder.with_access_key_id(id);
    }
    if let Some(secret) = config.secret()? {
        builder = builder.with_secret_access_key(secret);
    }
    if let Some(is_allowed) = config.allow_http {
        builder = builder.with_allow_http(is_allowed);
    }
    if let Some(is_virtual) = config.virtual_hosted {
        builder = builder.with_virtual_hosted_style_request(is_virtual);
    }
    let is_plain = |key| builder.get_config_value(&key).is_some_and(|url| url.starts_with("http://"));
    let allowed = builder.get_config_value(&client(ClientConfigKey::AllowHttp));
    if [AmazonS3ConfigKey::Endpoint, AmazonS3ConfigKey::S3Endpoint].into_iter().any(is_plain)
        && allowed.is_none_or(|allowed| allowed != "true")
    {
        return Err(io::Error::other(
            "its endpoint is http://, where everything can be read on the way: set allow_http = true in [engines.s3] if that is meant",
        ));
    }
    Ok(builder)
}

impl Storage for S3Store {
    fn shown(&self, path: &str) -> PathBuf {
        let place = &self.0.place;
        match path.is_empty() {
            true => PathBuf::from(place.to_string()),
            false => PathBuf::from(format!("{place}/{path}")),
        }
    }

    fn is_shared(&self) -> bool {
        true
    }

    fn make_folder(&self, _: &str) -> Result<(), StorageError> {
        Ok(())
    }

    fn create(&self, path: &str, bytes: Bytes) -> Result<Creation, StorageError> {
        let (location, error) = (Path::from(path), self.error("create", path));
        let put = self.0.store.put_opts(&location, PutPayload::from_bytes(bytes), PutMode::Create.into());
        match self.run(put) {
            Ok(_) => Ok(Creation::Done),
            Err(Error::AlreadyExists { .. }) => Ok(Creation::Exists),
            // An attempt before the one that was refused may have been let in.
            Err(refused) => Ok(Creation::Unknown(error(refused))),
        }
    }

    fn replace(&self, path: &str, bytes: Bytes) -> Result<(), StorageError> {
        let location = Path::from(path);
        let put = self.0.store.put(&location, PutPayload::from_bytes(bytes));
        self.run(put).map(|_| ()).map_err(self.error("write", path))
    }

    fn read(&self, path: &str) -> Result<Option<Bytes>, StorageError> {
        self.run(self.get(path))
    }

    fn read_all(&self, paths: &[String]) -> Result<Vec<Option<Bytes>>, StorageError> {
        let all = stream::iter(paths).map(|path| self.get(path)).buffered(READS_AT_ONCE);
        self.run(all.try_collect())
    }

    fn list(&self, folder: &str) -> Result<Vec<String>, StorageError> {
        let prefix = Path::from(folder);
        let objects = self.0.store.list(Some(&prefix)).try_collect::<Vec<_>>();
        let objects = self.run(objects).map_err(self.error("list", folder))?;
        let relative = |location: &Path| {
            let parts: Option<Vec<_>> = location
                .prefix_match(&prefix)
                .map(|parts| parts.map(|part| part.as_ref().to_owned()).collect());
            parts.map(|parts| parts.join("/"))
        };
        Ok(objects.iter().filter_map(|object| relative(&object.location)).collect())
    }

    fn delete(&self, path: &str) -> Result<(), StorageError> {
        let location = Path::from(path);
        match self.run(self.0.store.delete(&location)) {
            Ok(()) => Ok(()),
            Err(error @ Error::NotFound { .. }) if !is_bucket_missing(&error) => Ok(()),
            Err(error) => Err(self.error("delete", path)(error)),
        }
    }

    fn write(&self, path: &str) -> Result<Box<dyn FileSink>, StorageError> {
        Ok(Box::new(upload::Upload::new(self.clone(), path)))
    }

    fn rewrite(&self, path: &str) -> Result<Box<dyn FileSink>, StorageError> {
        self.write(path)
    }

    fn read_rows(&self, path: &str, wanted: Wanted<'_>) -> Result<Option<ParquetRows>, ParquetError> {
        let location = Path::from(path);
        let size = match self.run(self.0.store.head(&location)) {
            Ok(object) => object.size,
            Err(Error::NotFound { .. }) => return Ok(None),
            Err(error) => return Err(self.error("read", path)(error).into()),
        };
        let files = DefaultParquetFileReaderFactory::new(self.object_store());
        let file = PartitionedFile::new(path, size);
        let reader: Box<dyn AsyncFileReader> =
            files.create_reader(0, file, None, &ExecutionPlanMetricsSet::new()).map_err(external)?;
        let options = ArrowReaderOptions::new().with_schema(Arc::clone(&wanted.schema));
        let builder = self.run(ParquetRecordBatchStreamBuilder::new_with_options(reader, options))?;
        let builder = wanted.configure(builder);
        let metadata = Arc::clone(builder.metadata());
        let (mut stream, store) = (builder.build()?, self.clone());
        let rows = iter::from_fn(move || store.run(stream.next()));
        Ok(Some(ParquetRows { metadata, rows: Box::new(rows) }))
    }

    fn object_store(&self) -> Arc<dyn ObjectStore> {
        Arc::clone(&self.0.store) as Arc<dyn ObjectStore>
    }
}

fn external(error: DataFusionError) -> ParquetError {
    ParquetError::External(Box::new(error))
}

/// Whether it is the bucket that is not there: S3 answers 404 to both.
fn is_bucket_missing(error: &Error) -> bool {
    error.to_string().contains("NoSuchBucket")
}

/// The threads that speak with S3. They end with the store, wherever that is let go.
struct IoThreads(Option<Runtime>);

impl IoThreads {
    fn handle(&self) -> &tokio::runtime::Handle {
        match &self.0 {
            Some(runtime) => runtime.handle(),
            None => unreachable!("it is taken out by drop alone"),
        }
    }
}

impl Drop for IoThreads {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            // To wait for them is not allowed on threads of another runtime.
            runtime.shutdown_background();
        }
    }
}

/// What S3 said, in words. The answer's XML, the request's URL and the number of attempts help nobody.
fn explain(error: Error) -> io::Error {
    let text = error.to_string();
    let within = |tag: &str| {
        let (_, rest) = text.split_once(&format!("<{tag}>"))?;
        rest.split_once(&format!("</{tag}>")).map(|(inner, _)| inner.to_owned())
    };
    let mut cause: &dyn std::error::Error = &error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    let code = within("Code");
    let has_answered = code.is_some() || text.contains("status code: ");
    let said = match code {
        Some(code) => {
            let hint = match code.as_str() {
                "InvalidAccessKeyId"
                | "SignatureDoesNotMatch"
                | "AccessDenied"
                | "InvalidToken"
                | "ExpiredToken" => CREDENTIALS_HINT,
                "NoSuchBucket" => "; make the bucket, or name another",
                "SlowDown" | "InternalError" | "ServiceUnavailable" => {
                    "; it was asked again until request_s_max"
                }
                _ => "",
            };
            let message = within("Message").map(|message| format!(": {}", message.trim_end_matches('.')));
            let message = message.unwrap_or_default();
            format!("S3 answers {code}{message}{hint}")
        }
        None => match text.split_once("status code: ") {
            Some((_, status)) => {
                let status = status.split_once(':').map_or(status, |(status, _)| status);
                let hint = match status.trim_start() {
                    forbidden if forbidden.starts_with("403") || forbidden.starts_with("401") => {
                        CREDENTIALS_HINT
                    }
                    _ => "",
                };
                format!("S3 answers {}{hint}", status.trim())
            }
            None => cause.to_string(),
        },
    };
    let kind = match &error {
        Error::NotFound { .. } => io::ErrorKind::NotFound,
        Error::PermissionDenied { .. } | Error::Unauthenticated { .. } => io::ErrorKind::PermissionDenied,
        _ if !has_answered => io::ErrorKind::NotConnected,
        _ => io::ErrorKind::Other,
    };
    io::Error::new(kind, said)
}

#[cfg(test)]
mod tests;
#[cfg(test)]
pub(crate) use tests::place as test_place;
