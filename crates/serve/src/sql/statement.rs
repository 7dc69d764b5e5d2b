//! Which statements may run: one at a time, and only questions.
//!
//! An allow-list over the parsed statement and everything nested in it, not a search for bad words. It is the first of
//! three fences: the session has no file formats, table factories or writable schemas, and the plan is checked again.

use std::ops::ControlFlow;

use datafusion::sql::parser::{DFParserBuilder, Statement};
use datafusion::sql::sqlparser::ast::{self, Set, SetExpr, visit_statements};
use datafusion::sql::sqlparser::dialect::PostgreSqlDialect;
use datafusion::sql::sqlparser::keywords::Keyword;
use datafusion::sql::sqlparser::tokenizer::{Token, TokenWithSpan, Tokenizer};

use super::error::{Position, SqlError, SqlErrorKind, not_allowed};

/// Deepest nesting of a query's text. The parser recurses; a deeper text is an attack or a generator's fault.
const RECURSION_MAX: usize = 50;

/// Variables that a session may set: they change how answers look and nothing else.
const VARIABLES: [&str; 3] = ["datafusion.execution.time_zone", "timezone", "time.zone"];

/// Longest text of a query, in bytes.
const TEXT_BYTES_MAX: usize = 1 << 20;
/// Operators and keywords on the way from the outermost to the innermost part of a text. Chains like `1+1+1…` parse without
/// recursion but into deep trees, which are then walked, and dropped, by recursion; a thread whose stack overflows takes the
/// process with it.
const CHAIN_MAX: usize = 1_000;

/// Parses one statement in PostgreSQL's dialect. A trailing semicolon is fine.
///
/// # Errors
/// [`SqlErrorKind::Syntax`] with the place, also for an empty text, several statements, and texts that are too long or
/// too deeply nested.
pub fn parse(sql: &str) -> Result<Statement, SqlError> {
    if sql.len() > TEXT_BYTES_MAX {
        let message = format!("the query has {} bytes, at most {TEXT_BYTES_MAX} are allowed", sql.len());
        return Err(SqlError::new(SqlErrorKind::Syntax, message));
    }
    let dialect = PostgreSqlDialect {};
    let tokens = Tokenizer::new(&dialect, sql).tokenize_with_location();
    let tokens = tokens.map_err(|error| SqlError {
        position: Some(Position { line: error.location.line, column: error.location.column }),
        ..SqlError::new(SqlErrorKind::Syntax, error.message)
    })?;
    check_chains(&tokens)?;
    let translate = |error| SqlError::from_engine(&error, &[]);
    let mut parser = DFParserBuilder::new(tokens)
        .with_dialect(&dialect)
        .with_recursion_limit(RECURSION_MAX)
        .build()
        .map_err(translate)?;
    let mut statements = parser.parse_statements().map_err(translate)?;
    match (statements.pop_front(), statements.len()) {
        (None, _) => {
            Err(SqlError::new(SqlErrorKind::Syntax, "there is no statement")
                .hint("try SELECT * FROM snapshot"))
        }
        (Some(statement), 0) => Ok(statement),
        (Some(_), more) => {
            Err(SqlError::new(SqlErrorKind::NotAllowed, format!("there are {} statements", more + 1))
                .hint("send one statement at a time"))
        }
    }
}

/// Bounds how deep the tree of a text can become, before there is one. A comma ends a chain, a parenthesis begins one inside
/// the other.
fn check_chains(tokens: &[TokenWithSpan]) -> Result<(), SqlError> {
    let mut outer = Vec::new();
    let (mut chain, mut sum) = (0, 0);
    for token in tokens {
        match &token.token {
            Token::LParen | Token::LBracket => outer.push(std::mem::take(&mut chain)),
            Token::RParen | Token::RBracket => {
                sum -= chain;
                chain = outer.pop().unwrap_or_default();
                // `x[1][1]…` and calls of calls nest to the left.
                (chain, sum) = (chain + 1, sum + 1);
            }
            Token::Comma | Token::SemiColon => {
                sum -= chain;
                chain = 0;
            }
            Token::Word(word) if word.keyword == Keyword::NoKeyword => {}
            Token::Whitespace(_)
            | Token::Number(..)
            | Token::SingleQuotedString(_)
            | Token::Placeholder(_)
            | Token::Period
            | Token::EOF => {}
            _ => (chain, sum) = (chain + 1, sum + 1),
        }
        if sum > CHAIN_MAX {
            let start = token.span.start;
            return Err(SqlError {
                position: Some(Position { line: start.line, column: start.column }),
                ..SqlError::new(
                    SqlErrorKind::Syntax,
                    "the query is nested too deeply, or has too long a chain of operators",
                )
                .hint("use IN (…) or a join with VALUES in place of a long chain of OR")
            });
        }
    }
    Ok(())
}

/// Refuses everything that is not a question: only SELECT, WITH, VALUES, TABLE, EXPLAIN, SHOW, DESCRIBE, and SET of the
/// time zone pass, and what is nested in them must pass too.
///
/// # Errors
/// [`SqlErrorKind::NotAllowed`].
pub fn check_read_only(statement: &Statement) -> Result<(), SqlError> {
    match statement {
        Statement::Explain(explain) => check_read_only(&explain.statement),
        Statement::Statement(statement) => {
            let found = visit_statements(statement.as_ref(), |nested| match refused(nested) {
                Some(what) => ControlFlow::Break(what),
                None => ControlFlow::Continue(()),
            });
            match found {
                ControlFlow::Break(what) => Err(not_allowed(&format!("{what} is not allowed"))),
                ControlFlow::Continue(()) => Ok(()),
            }
        }
        Statement::CopyTo(_) => Err(not_allowed("COPY is not allowed")),
        Statement::CreateExternalTable(_) => Err(not_allowed("CREATE EXTERNAL TABLE is not allowed")),
        Statement::Reset(_) => Err(not_allowed("RESET is not allowed")),
    }
}

/// The name of what is refused, or nothing.
fn refused(statement: &ast::Statement) -> Option<String> {
    use ast::Statement as Sql;
    match statement {
        Sql::Query(query) => refused_in_query(query),
        Sql::Explain { .. }
        | Sql::ExplainTable { .. }
        | Sql::ShowFunctions { .. }
        | Sql::ShowVariable { .. }
        | Sql::ShowVariables { .. }
        | Sql::ShowColumns { .. }
        | Sql::ShowDatabases { .. }
        | Sql::ShowSchemas { .. }
        | Sql::ShowTables { .. }
        | Sql::ShowViews { .. } => None,
        Sql::Set(Set::SetTimeZone { .. }) => None,
        Sql::Set(Set::SingleAssignment { variable, .. })
            if VARIABLES.iter().any(|allowed| variable.to_string().eq_ignore_ascii_case(allowed)) =>
        {
            None
        }
        Sql::Set(_) => Some("SET of anything but the time zone".to_owned()),
        // The first word or two of the statement's own text name it best.
        other => {
            let text = other.to_string();
            let words: Vec<_> = text
                .split_whitespace()
                .take_while(|word| word.chars().all(|c| c.is_ascii_uppercase()))
                .take(2)
                .collect();
            Some(if words.is_empty() { "this statement".to_owned() } else { words.join(" ") })
        }
    }
}

/// `SELECT … INTO` and locks; nested statements are visited on their own.
fn refused_in_query(query: &ast::Query) -> Option<String> {
    if !query.locks.is_empty() {
        return Some("SELECT … FOR UPDATE".to_owned());
    }
    let nested =
        query.with.iter().flat_map(|with| &with.cte_tables).find_map(|cte| refused_in_query(&cte.query));
    nested.or_else(|| refused_in_body(&query.body))
}

fn refused_in_body(body: &SetExpr) -> Option<String> {
    match body {
        SetExpr::Select(select) => select.into.is_some().then(|| "SELECT INTO".to_owned()),
        SetExpr::Query(query) => refused_in_query(query),
        SetExpr::SetOperation { left, right, .. } => refused_in_body(left).or_else(|| refused_in_body(right)),
        SetExpr::Values(_) | SetExpr::Table(_) => None,
        SetExpr::Insert(_) | SetExpr::Update(_) | SetExpr::Delete(_) | SetExpr::Merge(_) => {
            Some("a statement that writes".to_owned())
        }
    }
}
