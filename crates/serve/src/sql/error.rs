//! What a query answers when it does not answer: a kind, a message, where in the text, and what to do.

use std::fmt;

use catchment_store::history::{EngineError, ErrorClass, NativeError};
use datafusion::common::utils::datafusion_strsim::levenshtein;
use datafusion::common::{Column, SchemaError};
use datafusion::error::DataFusionError;
use serde::Serialize;
use thiserror::Error;
use utoipa::ToSchema;

/// Kinds of failure; decides the HTTP status and the SQLSTATE.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum SqlErrorKind {
    /// The text is not SQL.
    Syntax,
    /// A table that does not exist.
    UnknownTable,
    /// A column that does not exist.
    UnknownColumn,
    /// A function that does not exist, or not with these arguments.
    UnknownFunction,
    /// Well-formed, but makes no sense: types, grouping, ambiguity.
    Invalid,
    /// Would change something, or reach outside the tables.
    NotAllowed,
    /// SQL that the engine does not have.
    Unsupported,
    /// Took longer than allowed.
    Timeout,
    /// Cancelled by its client or by an operator.
    Cancelled,
    /// Needed more memory or disk than allowed.
    Memory,
    /// The answer is larger than allowed.
    TooLarge,
    /// No slot became free in time.
    Busy,
    /// Too many queries wait already.
    QueueFull,
    /// The server that has the tables does not do its work.
    Unavailable,
    /// Failed on the data: a division by zero, a text that is no number.
    Execution,
    /// A fault of ours.
    Internal,
}

impl SqlErrorKind {
    /// The name shown to clients.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Syntax => "syntax",
            Self::UnknownTable => "unknown_table",
            Self::UnknownColumn => "unknown_column",
            Self::UnknownFunction => "unknown_function",
            Self::Invalid => "invalid",
            Self::NotAllowed => "not_allowed",
            Self::Unsupported => "unsupported",
            Self::Timeout => "timeout",
            Self::Cancelled => "cancelled",
            Self::Memory => "memory",
            Self::TooLarge => "too_large",
            Self::Busy => "busy",
            Self::QueueFull => "queue_full",
            Self::Unavailable => "unavailable",
            Self::Execution => "execution",
            Self::Internal => "internal",
        }
    }

    /// PostgreSQL's five-letter code.
    #[must_use]
    pub const fn sqlstate(self) -> &'static str {
        match self {
            Self::Syntax => "42601",
            Self::UnknownTable => "42P01",
            Self::UnknownColumn => "42703",
            Self::UnknownFunction => "42883",
            Self::Invalid => "42000",
            Self::NotAllowed => "25006",
            Self::Unsupported => "0A000",
            Self::Timeout | Self::Cancelled => "57014",
            Self::Memory => "53200",
            Self::TooLarge => "54000",
            Self::Busy | Self::QueueFull => "53300",
            Self::Unavailable => "57P03",
            Self::Execution => "22000",
            Self::Internal => "XX000",
        }
    }
}

/// Where in the query's text, both from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
pub struct Position {
    /// Line.
    pub line: u64,
    /// Column, in characters.
    pub column: u64,
}

/// Why a query failed.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub struct SqlError {
    /// What kind of failure.
    pub kind: SqlErrorKind,
    /// What is wrong, for people.
    pub message: String,
    /// Where, if it is known.
    pub position: Option<Position>,
    /// What to do about it.
    pub hint: Option<String>,
}

impl fmt::Display for SqlError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        if let Some(Position { line, column }) = self.position {
            write!(f, " (line {line}, column {column})")?;
        }
        if let Some(hint) = &self.hint {
            write!(f, "; {hint}")?;
        }
        Ok(())
    }
}

impl SqlError {
    /// An error without position and hint.
    #[must_use]
    pub fn new(kind: SqlErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), position: None, hint: None }
    }

    /// Adds what to do.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Translates the engine's error; `tables` are the names that a mistyped table is compared with.
    #[must_use]
    pub fn from_engine(error: &DataFusionError, tables: &[String]) -> Self {
        let position = error
            .diagnostic()
            .and_then(|diagnostic| diagnostic.span)
            .map(|span| Position { line: span.start.line, column: span.start.column });
        let mut translated = translate(root(error), tables);
        translated.position = position.or(translated.position);
        translated
    }
}

/// The innermost error: `find_root` stops at some of the wrappers.
fn root(error: &DataFusionError) -> &DataFusionError {
    match error.find_root() {
        DataFusionError::Diagnostic(_, inner) | DataFusionError::Context(_, inner) => root(inner),
        DataFusionError::Shared(inner) => root(inner),
        DataFusionError::Collection(errors) if !errors.is_empty() => root(&errors[0]),
        found => found,
    }
}

fn translate(error: &DataFusionError, tables: &[String]) -> SqlError {
    use SqlErrorKind as Kind;
    match error {
        DataFusionError::SQL(parser, _) => {
            let text = parser.to_string();
            let text = text.trim_start_matches("sql parser error: ");
            let (message, position) = split_position(text);
            SqlError { position, ..SqlError::new(Kind::Syntax, message) }
        }
        DataFusionError::SchemaError(schema, _) => match schema.as_ref() {
            SchemaError::FieldNotFound { field, valid_fields } => {
                let mut error =
                    SqlError::new(Kind::UnknownColumn, format!("there is no column {}", field.flat_name()));
                error.hint = column_hint(field, valid_fields);
                error
            }
            SchemaError::AmbiguousReference { field } => SqlError::new(
                Kind::Invalid,
                format!("the column {} is in several of the tables", field.flat_name()),
            )
            .hint(format!("write it with its table: table.{}", field.name)),
            other => SqlError::new(Kind::Invalid, other.to_string()),
        },
        DataFusionError::ResourcesExhausted(message) => SqlError::new(Kind::Memory, first_line(message))
            .hint("narrow the query (time range, fewer groups), or raise [serve.sql] memory_bytes"),
        DataFusionError::NotImplemented(message) => SqlError::new(Kind::Unsupported, first_line(message)),
        DataFusionError::Plan(message) => plan(&first_line(message), tables),
        DataFusionError::Configuration(message) => SqlError::new(Kind::Invalid, first_line(message)),
        DataFusionError::Execution(message) => SqlError::new(Kind::Execution, first_line(message)),
        DataFusionError::ArrowError(error, _) => {
            SqlError::new(Kind::Execution, first_line(&error.to_string()))
        }
        DataFusionError::External(source) if source.is::<EngineError>() => {
            let error = source.downcast_ref::<EngineError>();
            error.map_or_else(|| SqlError::new(Kind::Internal, source.to_string()), SqlError::from)
        }
        other => {
            // Backtraces and file names are for the log; the client gets the first line.
            tracing::warn!(error = %other, "a query failed inside the engine");
            SqlError::new(Kind::Internal, first_line(&other.strip_backtrace()))
        }
    }
}

impl From<&EngineError> for SqlError {
    fn from(error: &EngineError) -> Self {
        use SqlErrorKind as Kind;
        let kind = match error.class {
            ErrorClass::Syntax => Kind::Syntax,
            ErrorClass::UnknownTable => Kind::UnknownTable,
            ErrorClass::UnknownColumn => Kind::UnknownColumn,
            ErrorClass::UnknownFunction => Kind::UnknownFunction,
            ErrorClass::NotAllowed => Kind::NotAllowed,
            ErrorClass::Timeout => Kind::Timeout,
            ErrorClass::Cancelled => Kind::Cancelled,
            ErrorClass::Memory => Kind::Memory,
            ErrorClass::TooLarge => Kind::TooLarge,
            ErrorClass::Execution => Kind::Execution,
            ErrorClass::Unavailable => Kind::Unavailable,
            ErrorClass::Internal => Kind::Internal,
        };
        Self::new(kind, error.message.clone())
    }
}

impl From<&NativeError> for SqlError {
    fn from(error: &NativeError) -> Self {
        match error {
            NativeError::NoSuchDialect { .. } => Self::new(SqlErrorKind::Unsupported, error.to_string()),
            NativeError::NotAllowed(message) => Self::new(SqlErrorKind::NotAllowed, message.clone())
                .hint("only this realm's tables can be read, by one SELECT"),
            NativeError::Engine(error) => Self::from(error),
        }
    }
}

fn plan(message: &str, tables: &[String]) -> SqlError {
    use SqlErrorKind as Kind;
    let lower = message.to_lowercase();
    if lower.starts_with("table ") && lower.ends_with("not found")
        || lower.starts_with("failed to resolve")
        || lower.starts_with("no table named")
    {
        let name =
            message.split(['\'', '"']).nth(1).or_else(|| message.rsplit(": ").next()).unwrap_or_default();
        let name = name.strip_prefix("catchment.main.").unwrap_or(name);
        let hint = match nearest(name, tables.iter().map(String::as_str)) {
            Some(found) => format!("did you mean {found}?"),
            None => format!("tables: {}", tables.join(", ")),
        };
        return SqlError::new(Kind::UnknownTable, format!("there is no table {name}")).hint(hint);
    }
    // The engine's own suggestion, in a message like: Invalid function 'avgg'.\nDid you mean 'avg'?
    if lower.starts_with("invalid function")
        || lower.contains("no function matches")
        || lower.contains("table function")
    {
        let (message, hint) = match message.find("Did you mean") {
            Some(at) => (message[..at].trim_end(), Some(message[at..].replacen("Did", "did", 1))),
            None => (message, None),
        };
        return SqlError { hint, ..SqlError::new(Kind::UnknownFunction, message) };
    }
    if lower.starts_with("ddl not supported")
        || lower.starts_with("dml not supported")
        || lower.starts_with("statement not supported")
    {
        return not_allowed(message);
    }
    SqlError::new(Kind::Invalid, message)
}

/// The refusal of a statement that is not a question.
#[must_use]
pub(super) fn not_allowed(what: &str) -> SqlError {
    SqlError::new(SqlErrorKind::NotAllowed, format!("{what}: SQL is read-only here"))
        .hint("only SELECT, WITH, VALUES, EXPLAIN, SHOW and DESCRIBE are allowed; devices, decoders and tokens are changed through REST")
}

/// `Expected: …, found: x at Line: 1, Column: 15` → the text before, and the place.
fn split_position(text: &str) -> (String, Option<Position>) {
    let Some(at) = text.rfind(" at Line: ") else { return (first_line(text), None) };
    let mut numbers = text[at..]
        .split(|c: char| !c.is_ascii_digit())
        .filter(|part| !part.is_empty())
        .map(str::parse::<u64>);
    match (numbers.next(), numbers.next()) {
        (Some(Ok(line)), Some(Ok(column))) => {
            let message =
                text[..at].trim_start_matches("ParserError(\"").trim_start_matches("TokenizerError(\"");
            (message.to_owned(), Some(Position { line, column }))
        }
        _ => (first_line(text), None),
    }
}

/// Engine messages go on with backtraces after a blank line; suggestions stand on the second line.
fn first_line(message: &str) -> String {
    let message = message.split("\n\nbacktrace").next().unwrap_or(message);
    message.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn column_hint(field: &Column, valid: &[Column]) -> Option<String> {
    if valid.is_empty() {
        return None;
    }
    let exact_case = valid
        .iter()
        .find(|column| column.name.eq_ignore_ascii_case(&field.name) && column.name != field.name);
    if let Some(column) = exact_case {
        return Some(format!("did you mean \"{}\"? (names with capitals need double quotes)", column.name));
    }
    match nearest(&field.name, valid.iter().map(|column| column.name.as_str())) {
        Some(found) => Some(format!("did you mean {found}?")),
        None => {
            let mut names: Vec<&str> = valid.iter().map(|column| column.name.as_str()).collect();
            names.dedup();
            Some(format!("columns: {}", names.join(", ")))
        }
    }
}

/// The closest of `names`, if it is close enough to be a slip: a third of its letters, or a part of the name.
fn nearest<'a>(wanted: &str, names: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let wanted = wanted.to_lowercase();
    names
        .map(|name| {
            let lower = name.to_lowercase();
            let distance = levenshtein(&wanted, &lower);
            let part = wanted.len() >= 3 && (lower.contains(&wanted) || wanted.contains(&lower));
            (distance, distance <= (wanted.chars().count() / 3).max(1) || part, name)
        })
        .filter(|(_, close, _)| *close)
        .min_by_key(|(distance, ..)| *distance)
        .map(|(.., name)| name)
}
