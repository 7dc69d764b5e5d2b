//! What can go wrong with ClickHouse, in words that an operator can act on.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use arrow::error::ArrowError;
use datafusion::error::DataFusionError;
use thiserror::Error;

use crate::history::{EngineError, ErrorClass};

/// Most of a server's message that is shown, in bytes: it may quote the whole query.
const MESSAGE_BYTES_MAX: usize = 600;

/// A failure, and which server it is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClickHouseError {
    /// The server and its database, without secrets.
    pub place: String,
    /// What happened.
    pub trouble: Trouble,
}

impl ClickHouseError {
    /// Whether it is not known what came of a request, for want of an answer in time.
    pub(super) fn is_silence(&self) -> bool {
        matches!(self.trouble, Trouble::Silent(_))
    }
}

impl fmt::Display for ClickHouseError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ClickHouse at {}: {}", self.place, self.trouble)
    }
}

impl std::error::Error for ClickHouseError {}

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum Trouble {
    /// No connection, or it broke.
    #[error("it does not answer: {0}; is it running, and is this its HTTP port?")]
    Unreachable(String),
    /// Connected, but nothing comes.
    #[error("it gave no answer within {} ms: it is overloaded, or hangs", .0.as_millis())]
    Silent(Duration),
    /// The file of the password.
    #[error("the password cannot be read from {path}: {message}")]
    PasswordFile {
        /// The file.
        path: PathBuf,
        /// Why.
        message: String,
    },
    /// A header cannot have it.
    #[error("the {0} has a line break or another character that cannot be sent")]
    Unsendable(&'static str),
    /// The file of the CA, or TLS itself.
    #[error("TLS cannot be set up: {0}")]
    Tls(String),
    /// It does not let us in.
    #[error("it does not let the user {user:?} in: wrong name or password")]
    Login {
        /// Who we said we are.
        user: String,
    },
    /// The user may not do something.
    #[error("the user has not the right: {0}; grant it")]
    Rights(String),
    /// No such database.
    #[error("there is no database {0}: create it, or let the user create it and start Catchment again")]
    NoDatabase(String),
    /// A table or column is missing.
    #[error(
        "the tables are not as Catchment made them: {0}; start Catchment again, which makes what is missing"
    )]
    Schema(String),
    /// Made by a later version of Catchment.
    #[error(
        "its tables have version {found}, made by a newer Catchment; this one knows versions up to {known}: use the newer \
         one, or another database"
    )]
    NewerSchema {
        /// What is there.
        found: u32,
        /// What this build makes.
        known: u32,
    },
    /// The tables remember an archive, and it was not named.
    #[error(
        "what is past its hot days is in the archive {known}, {}: name it as --archive, as every process has to; to be rid of it, \
         and of what is in it, give raw_events and raw_metrics another comment (ALTER TABLE raw_events MODIFY COMMENT '')",
        .named.as_ref().map_or_else(|| "and none was named".to_owned(), |named| format!("and not in {named}"))
    )]
    OtherArchive {
        /// The one that the tables remember.
        known: String,
        /// The one that was named.
        named: Option<String>,
    },
    /// Too many parts, memory, disk, queries: it goes away, or needs an operator.
    #[error("it is short of something: {0}")]
    Overloaded(String),
    /// It refused for another reason.
    #[error("it refused (code {code}): {message}")]
    Refused {
        /// ClickHouse's own code.
        code: i32,
        /// Its words.
        message: String,
    },
    /// What came is no answer of ClickHouse.
    #[error("its answer is not understood: {0}")]
    Answer(String),
}

impl Trouble {
    /// What a refusal means. `message` is the body of the answer.
    pub(super) fn of_refusal(
        status: u16,
        code: Option<i32>,
        message: &str,
        user: &str,
        database: &str,
    ) -> Self {
        let code = code.or_else(|| code_in(message)).unwrap_or_default();
        let message = short(message);
        match code {
            // UNKNOWN_USER, WRONG_PASSWORD, REQUIRED_PASSWORD, AUTHENTICATION_FAILED.
            192..=194 | 516 => Self::Login { user: shown_user(user) },
            0 if matches!(status, 401 | 403) => Self::Login { user: shown_user(user) },
            // ACCESS_DENIED.
            497 => Self::Rights(message),
            // UNKNOWN_DATABASE.
            81 => Self::NoDatabase(database.to_owned()),
            // MEMORY_LIMIT_EXCEEDED, TOO_MANY_SIMULTANEOUS_QUERIES, NOT_ENOUGH_SPACE, TOO_MANY_PARTS.
            202 | 241 | 243 | 252 => Self::Overloaded(message),
            0 => Self::Answer(format!("HTTP status {status}: {message}")),
            code => Self::Refused { code, message },
        }
    }

    /// Whether what is missing is a table or column of ours, when the statement was ours: UNKNOWN_TABLE,
    /// NO_SUCH_COLUMN_IN_TABLE, UNKNOWN_IDENTIFIER.
    pub(super) fn about_our_tables(self) -> Self {
        match self {
            Self::Refused { code: 16 | 47 | 60, message } => Self::Schema(message),
            other => other,
        }
    }
}

fn shown_user(user: &str) -> String {
    if user.is_empty() { "default".to_owned() } else { user.to_owned() }
}

/// `Code: 60. DB::Exception: …` has the code at its beginning.
fn code_in(message: &str) -> Option<i32> {
    let rest = &message[message.find("Code: ")? + "Code: ".len()..];
    rest.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

/// The first lines of a message, without what every message begins and ends with.
pub(super) fn short(message: &str) -> String {
    let message = message.trim();
    let message =
        message.find("DB::Exception: ").map_or(message, |at| &message[at + "DB::Exception: ".len()..]);
    let message = message.find(" (version ").map_or(message, |at| &message[..at]);
    let text = message.split_whitespace().collect::<Vec<_>>().join(" ");
    let mut end = text.len().min(MESSAGE_BYTES_MAX);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text[..end].to_owned()
}

impl From<ClickHouseError> for EngineError {
    fn from(error: ClickHouseError) -> Self {
        use ErrorClass as Class;
        let refusal = |code: i32| match code {
            // SYNTAX_ERROR.
            62 => Class::Syntax,
            // UNKNOWN_TABLE.
            60 => Class::UnknownTable,
            // NO_SUCH_COLUMN_IN_TABLE, UNKNOWN_IDENTIFIER.
            16 | 47 => Class::UnknownColumn,
            // UNKNOWN_FUNCTION, UNKNOWN_AGGREGATE_FUNCTION.
            46 | 63 => Class::UnknownFunction,
            // TOO_MANY_ROWS, SET_SIZE_LIMIT_EXCEEDED, TOO_MANY_ROWS_OR_BYTES.
            158 | 191 | 396 => Class::TooLarge,
            // TIMEOUT_EXCEEDED.
            159 => Class::Timeout,
            // READONLY.
            164 => Class::NotAllowed,
            // QUERY_WAS_CANCELLED.
            394 => Class::Cancelled,
            _ => Class::Execution,
        };
        let class = match &error.trouble {
            Trouble::Refused { code, .. } => refusal(*code),
            Trouble::Rights(_) => Class::NotAllowed,
            Trouble::Overloaded(_) => Class::Memory,
            Trouble::Answer(_) => Class::Internal,
            _ => Class::Unavailable,
        };
        Self { class, message: error.to_string() }
    }
}

impl From<ClickHouseError> for DataFusionError {
    fn from(error: ClickHouseError) -> Self {
        Self::External(Box::new(EngineError::from(error)))
    }
}

impl From<ArrowError> for Trouble {
    fn from(error: ArrowError) -> Self {
        Self::Answer(error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_are_told_in_words() {
        let told = |status, code, message| Trouble::of_refusal(status, code, message, "", "city").to_string();
        let wrong = "Code: 516. DB::Exception: u: Authentication failed: password is incorrect. (AUTHENTICATION_FAILED)";
        assert!(told(403, None, wrong).contains("does not let the user \"default\" in"));
        assert!(told(401, None, "").contains("wrong name or password"));
        assert!(told(404, Some(81), "x").starts_with("there is no database city"));
        assert!(
            told(500, Some(252), "Code: 252. DB::Exception: Too many parts (3000) (version 26)")
                .ends_with("Too many parts (3000)")
        );
        assert!(told(502, None, "Bad gateway").contains("HTTP status 502: Bad gateway"));
        let missing =
            Trouble::of_refusal(404, Some(60), "Table x.y does not exist", "", "x").about_our_tables();
        assert!(missing.to_string().contains("tables are not as Catchment made them"));
        assert_eq!(short(&"é".repeat(1000)).len(), 600);
    }
}
