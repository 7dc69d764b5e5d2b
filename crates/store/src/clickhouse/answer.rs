//! An answer of ClickHouse: an Arrow stream over HTTP, batch by batch.

use arrow::array::{ArrayRef, RecordBatch, RecordBatchOptions};
use arrow::buffer::Buffer;
use arrow::compute::{CastOptions, cast_with_options};
use arrow::datatypes::SchemaRef;
use arrow::ipc::reader::StreamDecoder;
use arrow::util::display::FormatOptions;
use bytes::Bytes;
use reqwest::Response;

use super::client::{Client, STATEMENT_MAX};
use super::error::{ClickHouseError, Trouble, short};

/// What stands in an answer whose query failed after its first rows.
const EXCEPTION: &str = "DB::Exception: ";

/// Rows that are on their way. Dropping it closes the connection, which ends the query.
pub(super) struct Answer {
    client: Client,
    response: Response,
    decoder: StreamDecoder,
    /// What has come and is not decoded yet.
    waiting: Buffer,
    /// The last piece that came: there the reason stands, when the query failed on its way.
    last: Bytes,
    ended: bool,
}

impl Answer {
    pub(super) fn new(client: Client, response: Response) -> Self {
        Self {
            client,
            response,
            decoder: StreamDecoder::new(),
            waiting: Buffer::from(Bytes::new()),
            last: Bytes::new(),
            ended: false,
        }
    }

    /// The format that the server says the answer has.
    pub(super) fn format(&self) -> Option<&str> {
        self.response.headers().get("X-ClickHouse-Format").and_then(|format| format.to_str().ok())
    }

    /// The columns, once some of the answer has come.
    pub(super) fn schema(&self) -> Option<SchemaRef> {
        self.decoder.schema()
    }

    /// Whether all of it has come.
    pub(super) fn ended(&self) -> bool {
        self.ended
    }

    /// The next rows as they come; nothing at the end.
    ///
    /// # Errors
    /// The query failed on its way, or the connection broke: what came before is not all.
    pub(super) async fn next(&mut self) -> Result<Option<RecordBatch>, ClickHouseError> {
        loop {
            while !self.waiting.is_empty() {
                let batch = self.decoder.decode(&mut self.waiting);
                if let Some(batch) = batch.map_err(|error| self.failed(Trouble::from(error)))? {
                    return Ok(Some(batch));
                }
            }
            match self.response.chunk().await {
                Ok(Some(chunk)) => {
                    self.last = chunk.clone();
                    self.waiting = Buffer::from(chunk);
                }
                Ok(None) => {
                    self.decoder.finish().map_err(|error| self.failed(Trouble::from(error)))?;
                    self.ended = true;
                    return Ok(None);
                }
                Err(error) => {
                    let trouble = self.client.broken(error, STATEMENT_MAX).trouble;
                    return Err(self.failed(trouble));
                }
            }
        }
    }

    /// The server's own reason, if it gave one, else ours.
    fn failed(&self, trouble: Trouble) -> ClickHouseError {
        let text = String::from_utf8_lossy(&self.last);
        let trouble = match text.find(EXCEPTION) {
            Some(_) => {
                let target = self.client.target();
                // The code stands before the words.
                let from = text.rfind("Code: ").unwrap_or_default();
                Trouble::of_refusal(500, None, &text[from..], &target.config.user, &target.database)
            }
            None => trouble,
        };
        self.client.error(match trouble {
            Trouble::Answer(message) => Trouble::Answer(short(&message)),
            other => other,
        })
    }

    pub(super) fn client(&self) -> &Client {
        &self.client
    }
}

/// The rows with the types that they have in our schema: ClickHouse knows bytes where we say text, and not what may be NULL.
///
/// # Errors
/// A column is missing, or of a type that does not fit.
pub(super) fn shaped(rows: &RecordBatch, schema: &SchemaRef) -> Result<RecordBatch, Trouble> {
    let strict = CastOptions { safe: false, format_options: FormatOptions::default() };
    let column =
        |(at, field): (usize, &std::sync::Arc<arrow::datatypes::Field>)| -> Result<ArrayRef, Trouble> {
            if at >= rows.num_columns() {
                return Err(Trouble::Answer(format!("the column {} is missing", field.name())));
            }
            Ok(cast_with_options(rows.column(at), field.data_type(), &strict)?)
        };
    let columns = schema.fields().iter().enumerate().map(column).collect::<Result<Vec<_>, _>>()?;
    let options = RecordBatchOptions::new().with_row_count(Some(rows.num_rows()));
    Ok(RecordBatch::try_new_with_options(std::sync::Arc::clone(schema), columns, &options)?)
}
