//! Reads Parquet files of a local folder on the thread that asks.
//!
//! The object store's own way hands each read to another thread and waits for it. A query of one device makes a few small
//! reads in each of many files, nearly all of them from the page cache: at a busy moment each hand-over waited for a processor twice,
//! which was most of the query. Queries have threads of their own, so that one that has to wait for the disk holds up
//! queries alone.

use std::fmt;
use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use datafusion::datasource::listing::PartitionedFile;
use datafusion::datasource::physical_plan::ParquetFileMetrics;
use datafusion::datasource::physical_plan::parquet::ParquetFileReaderFactory;
use datafusion::datasource::physical_plan::parquet::metadata::DFParquetMetadata;
use datafusion::error::{DataFusionError, Result};
use datafusion::execution::cache::cache_manager::FileMetadataCache;
use datafusion::physical_plan::metrics::ExecutionPlanMetricsSet;
use futures::FutureExt;
use futures::future::{BoxFuture, ready};
use object_store::ObjectStore;
use parquet::arrow::arrow_reader::ArrowReaderOptions;
use parquet::arrow::async_reader::AsyncFileReader;
use parquet::errors::ParquetError;
use parquet::file::metadata::{PageIndexPolicy, ParquetMetaData};

/// Opens files of `folder`. What is known of their footers comes from, and goes to, a cache.
pub(super) struct LocalFiles {
    pub(super) folder: Arc<PathBuf>,
    /// The same folder; for footers that are not in the cache.
    pub(super) store: Arc<dyn ObjectStore>,
    pub(super) metadata: Arc<FileMetadataCache>,
}

impl fmt::Debug for LocalFiles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("LocalFiles").field(&self.folder).finish()
    }
}

impl ParquetFileReaderFactory for LocalFiles {
    fn create_reader(
        &self,
        partition_index: usize,
        file: PartitionedFile,
        footer_bytes: Option<usize>,
        metrics: &ExecutionPlanMetricsSet,
    ) -> Result<Box<dyn AsyncFileReader + Send>> {
        let location = &file.object_meta.location;
        let opened = File::open(self.folder.join(location.as_ref())).map_err(|error| {
            DataFusionError::IoError(std::io::Error::new(error.kind(), format!("{location}: {error}")))
        })?;
        Ok(Box::new(LocalFile {
            metrics: ParquetFileMetrics::new(partition_index, location.as_ref(), metrics),
            opened,
            store: Arc::clone(&self.store),
            metadata: Arc::clone(&self.metadata),
            footer_bytes,
            file,
        }))
    }
}

struct LocalFile {
    file: PartitionedFile,
    opened: File,
    store: Arc<dyn ObjectStore>,
    metadata: Arc<FileMetadataCache>,
    footer_bytes: Option<usize>,
    metrics: ParquetFileMetrics,
}

impl LocalFile {
    fn read(&self, range: &Range<u64>) -> parquet::errors::Result<Bytes> {
        let length = usize::try_from(range.end.saturating_sub(range.start))
            .map_err(|error| ParquetError::External(Box::new(error)))?;
        self.metrics.bytes_scanned.add(length);
        let mut bytes = vec![0; length];
        self.opened
            .read_exact_at(&mut bytes, range.start)
            .map_err(|error| ParquetError::External(Box::new(error)))?;
        Ok(bytes.into())
    }
}

impl AsyncFileReader for LocalFile {
    fn get_bytes(&mut self, range: Range<u64>) -> BoxFuture<'_, parquet::errors::Result<Bytes>> {
        ready(self.read(&range)).boxed()
    }

    fn get_byte_ranges(
        &mut self,
        ranges: Vec<Range<u64>>,
    ) -> BoxFuture<'_, parquet::errors::Result<Vec<Bytes>>> {
        ready(ranges.iter().map(|range| self.read(range)).collect()).boxed()
    }

    fn get_metadata<'a>(
        &'a mut self,
        _: Option<&'a ArrowReaderOptions>,
    ) -> BoxFuture<'a, parquet::errors::Result<Arc<ParquetMetaData>>> {
        async move {
            DFParquetMetadata::new(&self.store, &self.file.object_meta)
                .with_file_metadata_cache(Some(Arc::clone(&self.metadata)))
                .with_metadata_size_hint(self.footer_bytes)
                // Read and kept with the footer, whether this query wants it or not: the next one will.
                .with_page_index_policy(Some(PageIndexPolicy::Optional))
                .fetch_metadata()
                .await
                .map_err(|error| ParquetError::External(Box::new(error)))
        }
        .boxed()
    }
}
