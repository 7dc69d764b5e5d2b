//! The rows of a running query on their way to a client: a part at a time, never all in memory.

use std::sync::Arc;

use arrow::record_batch::RecordBatch;
use bytes::{BufMut, BytesMut};
use futures::StreamExt;

use super::encode::{Column, Formats, Values};
use super::error::{Fault, PgError, code};
use super::wire::Writer;
use crate::sql::QueryStream;

/// How rows are written.
pub(super) trait RowFormat {
    /// Type byte of the message of a row.
    const KIND: u8;
    /// Appends the body of a row's message.
    fn write(&self, values: &[Values], row: usize, out: &mut BytesMut) -> Result<(), PgError>;
}

/// Rows of a question: DataRow messages.
pub(super) struct DataRows<'a>(pub(super) &'a Formats);

impl RowFormat for DataRows<'_> {
    const KIND: u8 = b'D';

    fn write(&self, values: &[Values], row: usize, out: &mut BytesMut) -> Result<(), PgError> {
        out.put_u16(column_count(values.len())?);
        values.iter().enumerate().try_for_each(|(index, values)| values.write(row, self.0.get(index), out))
    }
}

/// A row of texts that were not queried.
pub(super) fn text_row(writer: &mut Writer, values: &[&str]) -> Result<(), PgError> {
    writer.put_with(b'D', |out| {
        out.put_u16(column_count(values.len())?);
        for value in values {
            out.put_u32(
                u32::try_from(value.len())
                    .map_err(|_| PgError::new(code::INTERNAL, "a value is too long"))?,
            );
            out.put_slice(value.as_bytes());
        }
        Ok(())
    })
}

/// The protocol counts columns in 16 bits.
fn column_count(count: usize) -> Result<u16, PgError> {
    u16::try_from(count).map_err(|_| PgError::new("54011", "the answer has more than 65,535 columns"))
}

/// The rows of one running query.
pub(super) struct Rows {
    stream: QueryStream,
    columns: Arc<[Column]>,
    /// For error positions: the query's text, and the characters that the client sent before it.
    text: Arc<str>,
    chars_before: usize,
    /// What is being sent, and the next row of it.
    batch: Option<(RecordBatch, usize)>,
    ended: bool,
}

impl Rows {
    pub(super) fn new(
        stream: QueryStream,
        columns: Arc<[Column]>,
        text: Arc<str>,
        chars_before: usize,
    ) -> Self {
        Self { stream, columns, text, chars_before, batch: None, ended: false }
    }

    pub(super) fn columns(&self) -> &Arc<[Column]> {
        &self.columns
    }

    /// Sends at most `max` rows; how many there were.
    pub(super) async fn send(
        &mut self,
        format: &impl RowFormat,
        max: Option<u64>,
        writer: &mut Writer,
    ) -> Result<u64, Fault> {
        let mut sent = 0;
        while max.is_none_or(|max| sent < max) {
            let Some((batch, from)) = self.next_batch().await? else { break };
            let left = max.map_or(usize::MAX, |max| usize::try_from(max - sent).unwrap_or(usize::MAX));
            let until = from.saturating_add(left).min(batch.num_rows());
            let values = self.values(&batch.slice(from, until - from))?;
            for row in 0..until - from {
                put_row(format, &values, row, writer)?;
                if writer.is_full() {
                    writer.flush().await?;
                }
            }
            sent += (until - from) as u64;
            self.put_back(batch, until);
        }
        Ok(sent)
    }

    /// Passes over at most `max` rows; how many there were.
    pub(super) async fn skip(&mut self, max: Option<u64>) -> Result<u64, Fault> {
        let mut skipped = 0;
        while max.is_none_or(|max| skipped < max) {
            let Some((batch, from)) = self.next_batch().await? else { break };
            let left = max.map_or(usize::MAX, |max| usize::try_from(max - skipped).unwrap_or(usize::MAX));
            let until = from.saturating_add(left).min(batch.num_rows());
            skipped += (until - from) as u64;
            self.put_back(batch, until);
        }
        Ok(skipped)
    }

    async fn next_batch(&mut self) -> Result<Option<(RecordBatch, usize)>, PgError> {
        if let Some(current) = self.batch.take() {
            return Ok(Some(current));
        }
        if self.ended {
            return Ok(None);
        }
        match self.stream.next().await {
            Some(Ok(batch)) => Ok(Some((batch, 0))),
            Some(Err(error)) => {
                self.ended = true;
                Err(PgError::from_sql(error, &self.text, self.chars_before))
            }
            None => {
                self.ended = true;
                Ok(None)
            }
        }
    }

    fn put_back(&mut self, batch: RecordBatch, next: usize) {
        self.batch = (next < batch.num_rows()).then_some((batch, next));
    }

    /// The columns of a batch, ready to be written.
    fn values(&self, batch: &RecordBatch) -> Result<Vec<Values>, PgError> {
        if batch.num_columns() != self.columns.len() {
            return Err(PgError::new(code::INTERNAL, "the answer has other columns than were described"));
        }
        batch
            .columns()
            .iter()
            .zip(self.columns.iter())
            .map(|(array, column)| Values::new(array, &column.ty))
            .collect()
    }
}

/// Apart from the loop, so that its future does not hold what only the closure needs.
fn put_row<F: RowFormat>(
    format: &F,
    values: &[Values],
    row: usize,
    writer: &mut Writer,
) -> Result<(), PgError> {
    writer.put_with(F::KIND, |out| format.write(values, row, out))
}

/// Rows of `COPY … TO STDOUT`: CopyData messages of one line each.
pub(super) struct CopyRows {
    pub(super) csv: bool,
    pub(super) delimiter: u8,
    pub(super) null: String,
}

impl RowFormat for CopyRows {
    const KIND: u8 = b'd';

    fn write(&self, values: &[Values], row: usize, out: &mut BytesMut) -> Result<(), PgError> {
        let mut text = BytesMut::new();
        for (index, values) in values.iter().enumerate() {
            if index > 0 {
                out.put_u8(self.delimiter);
            }
            if values.is_null(row) {
                out.put_slice(self.null.as_bytes());
                continue;
            }
            text.clear();
            values.write_text(row, &mut text)?;
            self.escape(&text, out);
        }
        out.put_u8(b'\n');
        Ok(())
    }
}

impl CopyRows {
    /// The line of names above the rows.
    pub(super) fn header(&self, columns: &[Column], out: &mut BytesMut) {
        for (index, column) in columns.iter().enumerate() {
            if index > 0 {
                out.put_u8(self.delimiter);
            }
            self.escape(column.name.as_bytes(), out);
        }
        out.put_u8(b'\n');
    }

    fn escape(&self, text: &[u8], out: &mut BytesMut) {
        if !self.csv {
            for byte in text {
                match byte {
                    b'\\' => out.put_slice(b"\\\\"),
                    b'\n' => out.put_slice(b"\\n"),
                    b'\r' => out.put_slice(b"\\r"),
                    b'\t' => out.put_slice(b"\\t"),
                    byte if *byte == self.delimiter => out.put_slice(&[b'\\', *byte]),
                    byte => out.put_u8(*byte),
                }
            }
            return;
        }
        // Quoted too: what would read as NULL, and psql's end of data.
        let quoted = text == self.null.as_bytes()
            || text == b"\\."
            || text.iter().any(|byte| matches!(byte, b'"' | b'\n' | b'\r') || *byte == self.delimiter);
        if !quoted {
            return out.put_slice(text);
        }
        out.put_u8(b'"');
        for byte in text {
            if *byte == b'"' {
                out.put_u8(b'"');
            }
            out.put_u8(*byte);
        }
        out.put_u8(b'"');
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn escaped(csv: bool, text: &str) -> String {
        let format = CopyRows {
            csv,
            delimiter: if csv { b',' } else { b'\t' },
            null: if csv { String::new() } else { "\\N".to_owned() },
        };
        let mut out = BytesMut::new();
        format.escape(text.as_bytes(), &mut out);
        String::from_utf8(out.to_vec()).unwrap()
    }

    #[test]
    fn copies_escape_what_would_be_read_otherwise() {
        assert_eq!(escaped(false, "a\tb\\N\n"), "a\\tb\\\\N\\n");
        assert_eq!(escaped(true, "plain"), "plain");
        assert_eq!(escaped(true, ""), "\"\"", "not NULL");
        assert_eq!(escaped(true, "a,\"b\""), "\"a,\"\"b\"\"\"");
    }
}
