//! What a statement is, before any SQL is planned: a question for the engine, or a command of the session.
//!
//! A text is cut into statements at its semicolons, by tokens; each keeps its place in the text, for error positions. The
//! commands of the session are few and regular and are read here from tokens; all else is a question, and whether it may be
//! asked is for the engine's allow-list. What writes is named here, so that even syntax which the parser does not know is
//! refused as what it is.

use datafusion::sql::sqlparser::dialect::PostgreSqlDialect;
use datafusion::sql::sqlparser::keywords::Keyword;
use datafusion::sql::sqlparser::tokenizer::{Location, Token, Tokenizer};

use super::error::{PgError, code};

/// First words of statements that change something.
const WRITES: &[&str] = &[
    "ALTER",
    "ANALYZE",
    "ANALYSE",
    "CALL",
    "CHECKPOINT",
    "CLUSTER",
    "COMMENT",
    "CREATE",
    "DELETE",
    "DO",
    "DROP",
    "GRANT",
    "IMPORT",
    "INSERT",
    "INSTALL",
    "LOAD",
    "LOCK",
    "MERGE",
    "REASSIGN",
    "REFRESH",
    "REINDEX",
    "REPLACE",
    "REVOKE",
    "SECURITY",
    "TRUNCATE",
    "UPDATE",
    "VACUUM",
];

/// One statement of a text.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Piece<'a> {
    /// Without surrounding space and semicolon.
    pub(super) text: &'a str,
    /// Characters of the whole text before it.
    pub(super) chars_before: usize,
    /// Its tokens without space and comments, each with the byte in `text` where it starts.
    tokens: Vec<(Token, usize)>,
}

/// What a statement asks for.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Command {
    /// SELECT and its kin: for the engine.
    Query,
    Begin,
    Commit,
    Rollback,
    Savepoint(String),
    Release(String),
    RollbackTo(String),
    Set {
        name: String,
        value: Option<String>,
        local: bool,
    },
    Show(String),
    ShowAll,
    Reset(String),
    ResetAll,
    DiscardAll,
    Deallocate(Option<String>),
    Declare(Declare),
    Fetch(Fetch),
    CloseCursor(Option<String>),
    CopyOut(CopyOut),
    /// Accepted, and nothing to do; the tag that is answered.
    Nothing(&'static str),
}

/// `DECLARE name CURSOR FOR query`.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Declare {
    pub(super) name: String,
    pub(super) binary: bool,
    pub(super) hold: bool,
    /// Byte in the statement where the query starts.
    pub(super) query_at: usize,
}

/// `FETCH` or `MOVE`, forwards.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Fetch {
    pub(super) cursor: String,
    /// At most so many rows; nothing for all.
    pub(super) count: Option<u64>,
    /// MOVE: the rows are skipped.
    pub(super) skip: bool,
}

/// `COPY … TO STDOUT`.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct CopyOut {
    pub(super) query: String,
    pub(super) csv: bool,
    pub(super) header: bool,
    pub(super) delimiter: u8,
    pub(super) null: String,
}

/// Cuts a text into its statements.
pub(super) fn split(text: &str) -> Result<Vec<Piece<'_>>, PgError> {
    let mut places = Places::new(text);
    let tokens = Tokenizer::new(&PostgreSqlDialect {}, text).tokenize_with_location().map_err(|error| {
        PgError::syntax(error.message.clone(), Places::new(text).find(error.location).1 + 1)
    })?;
    let mut pieces = Vec::new();
    let mut current: Vec<(Token, usize)> = Vec::new();
    let (mut start, mut end) = ((0, 0), 0);
    for token in tokens {
        match token.token {
            Token::Whitespace(_) | Token::EOF => {}
            Token::SemiColon => {
                if !current.is_empty() {
                    pieces.push(Piece {
                        text: &text[start.0..end],
                        chars_before: start.1,
                        tokens: std::mem::take(&mut current),
                    });
                }
            }
            other => {
                let at = places.find(token.span.start);
                if current.is_empty() {
                    start = at;
                }
                current.push((other, at.0 - start.0));
                end = places.find(token.span.end).0;
            }
        }
    }
    if !current.is_empty() {
        pieces.push(Piece { text: &text[start.0..end], chars_before: start.1, tokens: current });
    }
    Ok(pieces)
}

/// Finds bytes and characters of ascending locations.
struct Places<'a> {
    text: &'a str,
    byte: usize,
    chars: usize,
    line: u64,
    column: u64,
}

impl<'a> Places<'a> {
    fn new(text: &'a str) -> Self {
        Self { text, byte: 0, chars: 0, line: 1, column: 1 }
    }

    fn find(&mut self, wanted: Location) -> (usize, usize) {
        for c in self.text[self.byte..].chars() {
            if (self.line, self.column) >= (wanted.line, wanted.column) {
                break;
            }
            self.byte += c.len_utf8();
            self.chars += 1;
            if c == '\n' {
                self.line += 1;
                self.column = 1;
            } else {
                self.column += 1;
            }
        }
        (self.byte, self.chars)
    }
}

impl Piece<'_> {
    /// What the statement asks for.
    pub(super) fn command(&self) -> Result<Command, PgError> {
        let mut words = Words { piece: self, next: 0 };
        let first = words.peek_keyword().unwrap_or_default();
        if WRITES.contains(&first.as_str()) {
            return Err(self.refused(&first));
        }
        words.next += 1;
        match first.as_str() {
            "BEGIN" => Ok(Command::Begin),
            "START" => words.expect("TRANSACTION").map(|()| Command::Begin),
            "COMMIT" | "END" if words.accept("PREPARED") => Err(no_two_phase()),
            "COMMIT" | "END" => Ok(Command::Commit),
            "ABORT" => Ok(Command::Rollback),
            "ROLLBACK" => words.rollback(),
            "SAVEPOINT" => words.name().map(Command::Savepoint),
            "RELEASE" => {
                words.accept("SAVEPOINT");
                words.name().map(Command::Release)
            }
            "PREPARE" if words.accept("TRANSACTION") => Err(no_two_phase()),
            "PREPARE" | "EXECUTE" => Err(PgError::unsupported(format!("{first} as SQL is not supported"))
                .hint("prepared statements of the protocol work: use your driver's parameters")),
            "SET" => words.set(),
            "SHOW" => words.show(),
            "RESET" if words.accept("ALL") => Ok(Command::ResetAll),
            "RESET" => words.variable().map(Command::Reset),
            "DISCARD" if words.accept("ALL") => Ok(Command::DiscardAll),
            "DISCARD" => Ok(Command::Nothing("DISCARD")),
            "DEALLOCATE" => {
                words.accept("PREPARE");
                if words.accept("ALL") {
                    Ok(Command::Deallocate(None))
                } else {
                    words.name().map(|name| Command::Deallocate(Some(name)))
                }
            }
            "DECLARE" => words.declare().map(Command::Declare),
            "FETCH" => words.fetch(false).map(Command::Fetch),
            "MOVE" => words.fetch(true).map(Command::Fetch),
            "CLOSE" if words.accept("ALL") => Ok(Command::CloseCursor(None)),
            "CLOSE" => words.name().map(|name| Command::CloseCursor(Some(name))),
            "COPY" => words.copy().map(Command::CopyOut),
            "UNLISTEN" => Ok(Command::Nothing("UNLISTEN")),
            "LISTEN" | "NOTIFY" => Err(PgError::unsupported(format!("{first} is not supported"))
                .hint("live readings are pushed by the WebSocket at /api/v1/live")),
            _ => Ok(Command::Query),
        }
    }

    fn refused(&self, what: &str) -> PgError {
        PgError::new(code::READ_ONLY, format!("cannot execute {what}: SQL is read-only here")).hint(
            "devices, decoders and tokens are changed through REST; data comes in through MQTT and HTTP",
        )
    }
}

fn no_two_phase() -> PgError {
    PgError::unsupported("two-phase commit is not supported")
}

/// Reads the tokens of a statement one after the other.
struct Words<'a> {
    piece: &'a Piece<'a>,
    next: usize,
}

impl Words<'_> {
    fn peek(&self) -> Option<&Token> {
        self.piece.tokens.get(self.next).map(|(token, _)| token)
    }

    /// The next token in upper case, if it is an unquoted word.
    fn peek_keyword(&self) -> Option<String> {
        match self.peek() {
            Some(Token::Word(word)) if word.quote_style.is_none() => Some(word.value.to_ascii_uppercase()),
            _ => None,
        }
    }

    fn accept(&mut self, keyword: &str) -> bool {
        let found = self.peek_keyword().is_some_and(|word| word == keyword);
        self.next += usize::from(found);
        found
    }

    fn expect(&mut self, keyword: &str) -> Result<(), PgError> {
        if self.accept(keyword) { Ok(()) } else { Err(self.unexpected(keyword)) }
    }

    fn unexpected(&self, wanted: &str) -> PgError {
        let (at, found) = match self.piece.tokens.get(self.next) {
            Some((token, at)) => (*at, format!("\"{token}\"")),
            None => (self.piece.text.len(), "the end of the statement".to_owned()),
        };
        let position = self.piece.chars_before + self.piece.text[..at].chars().count() + 1;
        PgError::syntax(format!("syntax error: expected {wanted}, found {found}"), position)
    }

    fn name(&mut self) -> Result<String, PgError> {
        let name = match self.peek() {
            Some(Token::Word(word)) if word.quote_style.is_none() => word.value.to_lowercase(),
            Some(Token::Word(word)) => word.value.clone(),
            _ => return Err(self.unexpected("a name")),
        };
        self.next += 1;
        Ok(name)
    }

    fn number(&mut self) -> Option<u64> {
        let Some(Token::Number(digits, _)) = self.peek() else { return None };
        let number = digits.parse().ok()?;
        self.next += 1;
        Some(number)
    }

    /// `name` or `prefix.name`, or one of the names of two words.
    fn variable(&mut self) -> Result<String, PgError> {
        if self.accept("TIME") {
            self.expect("ZONE")?;
            return Ok("TimeZone".to_owned());
        }
        if self.accept("TRANSACTION") {
            self.expect("ISOLATION")?;
            self.expect("LEVEL")?;
            return Ok("transaction_isolation".to_owned());
        }
        if self.accept("SESSION") {
            self.expect("AUTHORIZATION")?;
            return Ok("session_authorization".to_owned());
        }
        let mut name = self.name()?;
        while self.peek() == Some(&Token::Period) {
            self.next += 1;
            name = format!("{name}.{}", self.name()?);
        }
        Ok(name)
    }

    fn rollback(&mut self) -> Result<Command, PgError> {
        if self.accept("PREPARED") {
            return Err(no_two_phase());
        }
        let _ = self.accept("WORK") || self.accept("TRANSACTION");
        if !self.accept("TO") {
            return Ok(Command::Rollback);
        }
        self.accept("SAVEPOINT");
        self.name().map(Command::RollbackTo)
    }

    fn set(&mut self) -> Result<Command, PgError> {
        let session = self.accept("SESSION");
        let local = !session && self.accept("LOCAL");
        // Isolation and access mode: every statement sees one consistent state and only reads, whatever is asked.
        if self.accept("TRANSACTION") || self.accept("CHARACTERISTICS") || self.accept("CONSTRAINTS") {
            return Ok(Command::Nothing("SET"));
        }
        if self.accept("ROLE") || self.accept("AUTHORIZATION") {
            return if matches!(self.peek_keyword().as_deref(), Some("NONE" | "DEFAULT")) {
                Ok(Command::Nothing("SET"))
            } else {
                Err(PgError::unsupported("changing the user of a session is not supported")
                    .hint("connect as the other user"))
            };
        }
        let name = if self.accept("NAMES") { "client_encoding".to_owned() } else { self.variable()? };
        if name != "TimeZone" && name != "client_encoding"
            || matches!(self.peek(), Some(Token::Eq))
            || self.peek_keyword().as_deref() == Some("TO")
        {
            if self.peek() == Some(&Token::Eq) {
                self.next += 1;
            } else {
                self.expect("TO")?;
            }
        }
        if self.accept("DEFAULT") || self.accept("LOCAL") {
            return Ok(Command::Set { name, value: None, local });
        }
        let value = self.values()?;
        Ok(Command::Set { name, value: Some(value), local })
    }

    /// The rest of the statement as a list of values.
    fn values(&mut self) -> Result<String, PgError> {
        let mut parts = Vec::new();
        let mut negative = false;
        while let Some(token) = self.peek() {
            match token {
                Token::Comma => {}
                Token::Minus => negative = true,
                Token::Plus => {}
                Token::SingleQuotedString(text) | Token::EscapedStringLiteral(text) => {
                    parts.push(text.clone())
                }
                Token::Number(digits, _) if std::mem::take(&mut negative) => parts.push(format!("-{digits}")),
                Token::Number(digits, _) => parts.push(digits.clone()),
                Token::Word(word) => parts.push(word.value.clone()),
                _ => return Err(self.unexpected("a value")),
            }
            self.next += 1;
        }
        if parts.is_empty() { Err(self.unexpected("a value")) } else { Ok(parts.join(", ")) }
    }

    fn show(&mut self) -> Result<Command, PgError> {
        if self.accept("ALL") {
            return Ok(Command::ShowAll);
        }
        if matches!(
            self.peek_keyword().as_deref(),
            Some("TABLES" | "COLUMNS" | "FUNCTIONS" | "DATABASES" | "SCHEMAS")
        ) {
            return Err(PgError::unsupported("SHOW of tables is not PostgreSQL's SQL")
                .hint("in psql use \\dt or \\d TABLE; in SQL, SELECT * FROM information_schema.tables"));
        }
        self.variable().map(Command::Show)
    }

    fn declare(&mut self) -> Result<Declare, PgError> {
        let name = self.name()?;
        let (mut binary, mut hold) = (false, false);
        loop {
            if self.accept("BINARY") {
                binary = true;
            } else if self.accept("SCROLL") {
                return Err(only_forwards().hint("leave out SCROLL"));
            } else if self.accept("NO") {
                self.expect("SCROLL")?;
            } else if !self.accept("INSENSITIVE") && !self.accept("ASENSITIVE") {
                break;
            }
        }
        self.expect("CURSOR")?;
        if self.accept("WITH") {
            self.expect("HOLD")?;
            hold = true;
        } else if self.accept("WITHOUT") {
            self.expect("HOLD")?;
        }
        self.expect("FOR")?;
        match self.piece.tokens.get(self.next) {
            Some((_, at)) => Ok(Declare { name, binary, hold, query_at: *at }),
            None => Err(self.unexpected("a query")),
        }
    }

    fn fetch(&mut self, skip: bool) -> Result<Fetch, PgError> {
        let mut count = Some(1);
        if self.accept("NEXT") {
        } else if self.accept("ALL") {
            count = None;
        } else if self.accept("FORWARD") {
            if self.accept("ALL") {
                count = None;
            } else if let Some(number) = self.number() {
                count = Some(number);
            }
        } else if let Some(number) = self.number() {
            count = Some(number);
        } else if self.peek() == Some(&Token::Minus)
            || matches!(
                self.peek_keyword().as_deref(),
                Some("PRIOR" | "FIRST" | "LAST" | "ABSOLUTE" | "RELATIVE" | "BACKWARD")
            )
        {
            return Err(only_forwards().hint("FETCH FORWARD n and MOVE FORWARD n work"));
        }
        let _ = self.accept("FROM") || self.accept("IN");
        Ok(Fetch { cursor: self.name()?, count, skip })
    }

    fn copy(&mut self) -> Result<CopyOut, PgError> {
        let query =
            if self.peek() == Some(&Token::LParen) { self.parenthesised()? } else { self.copied_table()? };
        if self.accept("FROM") {
            return Err(self.piece.refused("COPY FROM"));
        }
        self.expect("TO")?;
        if !self.accept("STDOUT") {
            return Err(self
                .piece
                .refused("COPY TO a file or program")
                .hint("COPY … TO STDOUT works, and psql's \\copy"));
        }
        let mut copy = CopyOut { query, csv: false, header: false, delimiter: b'\t', null: "\\N".to_owned() };
        let (mut delimiter, mut null) = (None, None);
        self.accept("WITH");
        while let Some(token) = self.peek() {
            if matches!(token, Token::LParen | Token::RParen | Token::Comma) {
                self.next += 1;
                continue;
            }
            match self.name()?.as_str() {
                "csv" => copy.csv = true,
                "format" => {
                    copy.csv = match self.text()?.as_str() {
                        "csv" => true,
                        "text" => false,
                        other => {
                            return Err(PgError::unsupported(format!(
                                "COPY format \"{other}\" is not supported"
                            ))
                            .hint("csv and text work"));
                        }
                    }
                }
                "header" => {
                    copy.header = match self.peek_keyword().as_deref() {
                        Some(value @ ("TRUE" | "ON" | "FALSE" | "OFF")) => {
                            let on = matches!(value, "TRUE" | "ON");
                            self.next += 1;
                            on
                        }
                        _ => true,
                    }
                }
                "delimiter" => {
                    self.accept("AS");
                    delimiter = Some(self.text()?);
                }
                "null" => {
                    self.accept("AS");
                    null = Some(self.text()?);
                }
                "encoding" => drop(self.text()?),
                other => {
                    return Err(PgError::unsupported(format!("COPY option \"{other}\" is not supported")));
                }
            }
        }
        copy.delimiter = match delimiter.as_deref().map(str::as_bytes) {
            None if copy.csv => b',',
            None => b'\t',
            Some([byte]) if byte.is_ascii() && !matches!(byte, b'\n' | b'\r' | b'"' | b'\\') => *byte,
            Some(_) => {
                return Err(PgError::new(
                    code::INVALID_PARAMETER_VALUE,
                    "COPY delimiter must be a single character",
                ));
            }
        };
        copy.null = null.unwrap_or_else(|| if copy.csv { String::new() } else { "\\N".to_owned() });
        Ok(copy)
    }

    /// A text, quoted or not; unquoted in lower case.
    fn text(&mut self) -> Result<String, PgError> {
        if let Some(Token::SingleQuotedString(text) | Token::EscapedStringLiteral(text)) = self.peek() {
            let text = text.clone();
            self.next += 1;
            return Ok(text);
        }
        self.name()
    }

    /// The text between the parenthesis here and its partner.
    fn parenthesised(&mut self) -> Result<String, PgError> {
        let start = self.piece.tokens[self.next].1 + 1;
        let mut depth = 0_usize;
        while let Some((token, at)) = self.piece.tokens.get(self.next) {
            self.next += 1;
            match token {
                Token::LParen => depth += 1,
                Token::RParen if depth == 1 => return Ok(self.piece.text[start..*at].to_owned()),
                Token::RParen => depth -= 1,
                _ => {}
            }
        }
        Err(self.unexpected(")"))
    }

    /// `table` or `table (column, …)`, as a query.
    fn copied_table(&mut self) -> Result<String, PgError> {
        let start = self.piece.tokens.get(self.next).map_or(0, |(_, at)| *at);
        let mut end = start;
        while let Some((token, at)) = self.piece.tokens.get(self.next) {
            let is_word = matches!(token, Token::Word(word) if !matches!(word.keyword, Keyword::TO | Keyword::FROM) || word.quote_style.is_some());
            if !is_word && *token != Token::Period {
                break;
            }
            self.next += 1;
            end = self.piece.tokens.get(self.next).map_or(self.piece.text.len(), |(_, next)| *next).max(*at);
        }
        let table = self.piece.text[start..end].trim();
        if table.is_empty() {
            return Err(self.unexpected("a table or a query in parentheses"));
        }
        let columns =
            if self.peek() == Some(&Token::LParen) { self.parenthesised()? } else { "*".to_owned() };
        Ok(format!("SELECT {columns} FROM {table}"))
    }
}

fn only_forwards() -> PgError {
    PgError::new(code::OBJECT_NOT_IN_STATE, "cursor can only scan forward")
}

#[cfg(test)]
mod tests;
