//! What a client is told when something fails: severity, SQLSTATE, message, position, hint.

use std::io;

use pgwire::error::ErrorInfo;
use pgwire::messages::PgWireBackendMessage;

use crate::sql::{SqlError, SqlErrorKind};

/// Longest message, detail or hint sent, in bytes; clients and the codec limit the whole response to 30,000.
const TEXT_BYTES_MAX: usize = 8_000;

/// SQLSTATEs used here, by PostgreSQL's names.
pub(super) mod code {
    pub(crate) const PROTOCOL_VIOLATION: &str = "08P01";
    pub(crate) const FEATURE_NOT_SUPPORTED: &str = "0A000";
    pub(crate) const NUMERIC_OUT_OF_RANGE: &str = "22003";
    pub(crate) const INVALID_PARAMETER_VALUE: &str = "22023";
    pub(crate) const INVALID_TEXT: &str = "22P02";
    pub(crate) const INVALID_BINARY: &str = "22P03";
    pub(crate) const READ_ONLY: &str = "25006";
    pub(crate) const NO_ACTIVE_TRANSACTION: &str = "25P01";
    pub(crate) const FAILED_TRANSACTION: &str = "25P02";
    pub(crate) const INVALID_STATEMENT_NAME: &str = "26000";
    pub(crate) const INVALID_AUTHORIZATION: &str = "28000";
    pub(crate) const INVALID_PASSWORD: &str = "28P01";
    pub(crate) const INVALID_CURSOR_NAME: &str = "34000";
    pub(crate) const INVALID_CATALOG_NAME: &str = "3D000";
    pub(crate) const INVALID_SAVEPOINT: &str = "3B001";
    pub(crate) const SYNTAX: &str = "42601";
    pub(crate) const UNDEFINED_OBJECT: &str = "42704";
    pub(crate) const INDETERMINATE_TYPE: &str = "42P18";
    pub(crate) const DUPLICATE_CURSOR: &str = "42P03";
    pub(crate) const DUPLICATE_STATEMENT: &str = "42P05";
    pub(crate) const TOO_MANY_CONNECTIONS: &str = "53300";
    pub(crate) const LIMIT_EXCEEDED: &str = "53400";
    pub(crate) const OBJECT_NOT_IN_STATE: &str = "55000";
    pub(crate) const CANNOT_CHANGE: &str = "55P02";
    pub(crate) const CANCELED: &str = "57014";
    pub(crate) const SHUTDOWN: &str = "57P01";
    pub(crate) const IDLE_TIMEOUT: &str = "57P05";
    pub(crate) const INTERNAL: &str = "XX000";
}

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Severity {
    Warning,
    Error,
    Fatal,
}

/// An error, or a warning, as PostgreSQL's clients expect it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct PgError {
    severity: Severity,
    code: &'static str,
    message: String,
    hint: Option<String>,
    /// Character in the client's text, from 1.
    position: Option<usize>,
}

impl PgError {
    /// Ends the statement, not the session.
    pub(super) fn new(code: &'static str, message: impl Into<String>) -> Self {
        Self { severity: Severity::Error, code, message: message.into(), hint: None, position: None }
    }

    /// Ends the session.
    pub(super) fn fatal(code: &'static str, message: impl Into<String>) -> Self {
        Self { severity: Severity::Fatal, ..Self::new(code, message) }
    }

    /// Tells, and goes on.
    pub(super) fn warning(code: &'static str, message: impl Into<String>) -> Self {
        Self { severity: Severity::Warning, ..Self::new(code, message) }
    }

    pub(super) fn syntax(message: impl Into<String>, position: usize) -> Self {
        Self { position: Some(position), ..Self::new(code::SYNTAX, message) }
    }

    pub(super) fn unsupported(message: impl Into<String>) -> Self {
        Self::new(code::FEATURE_NOT_SUPPORTED, message)
    }

    pub(super) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// The engine's error in `text`, which starts after `chars_before` characters of what the client sent.
    pub(super) fn from_sql(error: SqlError, text: &str, chars_before: usize) -> Self {
        let position = error
            .position
            .and_then(|at| char_index(text, at.line, at.column))
            .map(|index| chars_before + index + 1);
        // The messages of these two are what clients and people look for.
        let message = match error.kind {
            SqlErrorKind::Timeout => {
                format!("canceling statement due to statement timeout: {}", error.message)
            }
            SqlErrorKind::Cancelled => "canceling statement due to user request".to_owned(),
            _ => error.message,
        };
        let hint = match error.kind {
            SqlErrorKind::Timeout => {
                Some("narrow the time range, or raise the limit with SET statement_timeout".to_owned())
            }
            _ => error.hint,
        };
        let code = if error.kind == SqlErrorKind::Execution {
            execution_code(&message)
        } else {
            error.kind.sqlstate()
        };
        Self { hint, position, ..Self::new(code, message) }
    }

    pub(super) fn code(&self) -> &'static str {
        self.code
    }

    pub(super) fn message(&self) -> &str {
        &self.message
    }

    pub(super) fn is_fatal(&self) -> bool {
        self.severity == Severity::Fatal
    }

    pub(super) fn into_message(self) -> PgWireBackendMessage {
        let severity = match self.severity {
            Severity::Warning => "WARNING",
            Severity::Error => "ERROR",
            Severity::Fatal => "FATAL",
        };
        let mut info = ErrorInfo::new(severity.to_owned(), self.code.to_owned(), cut(self.message));
        info.severity_nonlocalized = Some(severity.to_owned());
        info.hint = self.hint.map(cut);
        info.position = self.position.map(|position| position.to_string());
        match self.severity {
            Severity::Warning => PgWireBackendMessage::NoticeResponse(info.into()),
            Severity::Error | Severity::Fatal => PgWireBackendMessage::ErrorResponse(info.into()),
        }
    }
}

/// The engine tells failures on data apart by their text only.
fn execution_code(message: &str) -> &'static str {
    let lower = message.to_ascii_lowercase();
    if lower.contains("divide by zero") {
        "22012"
    } else if lower.contains("cannot cast string") || lower.contains("error parsing") {
        code::INVALID_TEXT
    } else if lower.contains("overflow") || lower.contains("out of range") {
        code::NUMERIC_OUT_OF_RANGE
    } else {
        SqlErrorKind::Execution.sqlstate()
    }
}

fn cut(mut text: String) -> String {
    let mut end = text.len().min(TEXT_BYTES_MAX);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.truncate(end);
    text
}

/// Index in characters of a line and column, both from 1.
fn char_index(text: &str, line: u64, column: u64) -> Option<usize> {
    let lines_before = usize::try_from(line.checked_sub(1)?).ok()?;
    let before: usize = text.split_inclusive('\n').take(lines_before).map(|line| line.chars().count()).sum();
    Some(before + usize::try_from(column.checked_sub(1)?).ok()?)
}

/// Why an exchange with a client stopped.
#[derive(Debug)]
pub(super) enum Fault {
    /// The client is told, and may go on unless it is fatal.
    Reply(PgError),
    /// The client cannot be told.
    Gone(io::Error),
}

impl From<PgError> for Fault {
    fn from(error: PgError) -> Self {
        Self::Reply(error)
    }
}

impl From<io::Error> for Fault {
    fn from(error: io::Error) -> Self {
        Self::Gone(error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_count_characters_over_lines() {
        assert_eq!(char_index("select\n é, x", 2, 5), Some(11));
        assert_eq!(char_index("x", 0, 0), None, "the engine's empty span");
    }

    #[test]
    fn long_texts_are_cut_between_characters() {
        let text = cut("é".repeat(TEXT_BYTES_MAX));
        assert_eq!(text.len(), TEXT_BYTES_MAX);
    }
}
