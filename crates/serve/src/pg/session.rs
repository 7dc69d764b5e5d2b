//! One session: its statements and portals, its transaction, and what each message does.
//!
//! Data is only read, so a transaction is a state that clients expect to see and nothing more: BEGIN, SAVEPOINT and their
//! kin change the state, an error spoils it until ROLLBACK, cursors end with it. A statement that is interrupted leaves the session as
//! a failed one would: what it used was taken out of the session first.

mod extended;

use std::collections::HashMap;
use std::sync::Arc;

use datafusion::logical_expr::LogicalPlan;
use datafusion::prelude::SessionContext;
use parking_lot::Mutex;
use pgwire::api::Type;
use pgwire::messages::PgWireBackendMessage as Reply;
use pgwire::messages::copy::{CopyDone, CopyOutResponse};
use pgwire::messages::response::{CommandComplete, EmptyQueryResponse, ReadyForQuery, TransactionStatus};
use pgwire::messages::startup::ParameterStatus;

use super::Shared;
use super::command::{Command, CopyOut, Declare, Fetch, Piece, split};
use super::encode::{Column, Format, Formats, describe};
use super::error::{Fault, PgError, code};
use super::question::Question;
use super::rows::{CopyRows, DataRows, Rows, text_row};
use super::settings::{Change, Settings, unrecognized};
use super::wire::Writer;
use crate::sql::QueryOptions;
use extended::Prepared;

/// Most portals and cursors of a session.
const PORTALS_MAX: usize = 64;
/// Most savepoints of a transaction.
const SAVEPOINTS_MAX: usize = 1000;

/// A question on its way: bound, running or ended. Cursors are portals with a name.
struct Portal {
    prepared: Arc<Prepared>,
    /// For questions: the plan with its parameters, until it is started.
    plan: Option<LogicalPlan>,
    formats: Formats,
    rows: Option<Rows>,
    /// Made by DECLARE.
    cursor: bool,
    /// Outlives its transaction.
    hold: bool,
}

/// A question that a command carries, already bound.
struct Bound {
    prepared: Arc<Prepared>,
    plan: LogicalPlan,
}

/// The state of one session.
pub(super) struct Session {
    shared: Arc<Shared>,
    context: SessionContext,
    settings: Arc<Mutex<Settings>>,
    user: String,
    transaction: TransactionStatus,
    savepoints: Vec<String>,
    statements: HashMap<String, Arc<Prepared>>,
    portals: HashMap<String, Portal>,
}

impl Session {
    pub(super) fn new(
        shared: Arc<Shared>,
        context: SessionContext,
        settings: Arc<Mutex<Settings>>,
        user: String,
    ) -> Self {
        Self {
            shared,
            context,
            settings,
            user,
            transaction: TransactionStatus::Idle,
            savepoints: Vec::new(),
            statements: HashMap::new(),
            portals: HashMap::new(),
        }
    }

    /// Time limit of a statement.
    pub(super) fn time_limit(&self) -> std::time::Duration {
        let max = std::time::Duration::from_millis(self.shared.engine.config().timeout_ms_max);
        self.settings.lock().statement_timeout().unwrap_or(max).min(max)
    }

    /// After an error, or when a statement was interrupted.
    pub(super) fn failed(&mut self) {
        if self.transaction == TransactionStatus::Transaction {
            self.transaction = TransactionStatus::Error;
        }
    }

    pub(super) fn put_ready(&self, writer: &mut Writer) {
        writer.put(Reply::ReadyForQuery(ReadyForQuery::new(self.transaction)));
    }

    /// A Query message: all statements of a text, one after the other, until one fails.
    pub(super) async fn simple_query(&mut self, text: &str, writer: &mut Writer) -> Result<(), Fault> {
        let pieces = split(text)?;
        if pieces.is_empty() {
            writer.put(Reply::EmptyQueryResponse(EmptyQueryResponse::new()));
        }
        for piece in &pieces {
            self.statement(piece, writer).await?;
        }
        self.end_of_request();
        self.put_ready(writer);
        writer.flush().await?;
        Ok(())
    }

    /// Portals live as long as the transaction; without one, as long as the request.
    fn end_of_request(&mut self) {
        if self.transaction == TransactionStatus::Idle {
            self.portals.retain(|_, portal| portal.hold);
        }
    }

    async fn statement(&mut self, piece: &Piece<'_>, writer: &mut Writer) -> Result<(), Fault> {
        let command = piece.command()?;
        self.check_transaction(&command)?;
        if command != Command::Query {
            let formats = Formats::All(Format::Text);
            return self
                .command(&command, piece.text, piece.chars_before, None, &formats, true, writer)
                .await;
        }
        let question =
            Question::plan(&self.shared, &self.context, piece.text, piece.chars_before, &[]).await?;
        if !question.parameters.is_empty() {
            return Err(no_parameter().into());
        }
        let plan = question.bind(&self.shared, Vec::new())?;
        let mut rows = question.start(&self.shared, &self.context, plan, None, self.options()).await?;
        let formats = Formats::All(Format::Text);
        writer.put(Reply::RowDescription(describe(rows.columns(), &formats)));
        let sent = rows.send(&DataRows(&formats), None, writer).await?;
        self.complete(&counted(question.tag, sent), writer);
        Ok(())
    }

    fn options(&self) -> QueryOptions {
        QueryOptions {
            timeout: Some(self.time_limit()),
            limit_rows: None,
            origin: "postgres",
            user: self.user.clone(),
        }
    }

    fn complete(&self, tag: &str, writer: &mut Writer) {
        writer.put(Reply::CommandComplete(CommandComplete::new(tag.to_owned())));
        self.shared.metrics.statement("ok");
    }

    /// In a spoiled transaction only its end is accepted.
    fn check_transaction(&self, command: &Command) -> Result<(), PgError> {
        let ends = matches!(command, Command::Commit | Command::Rollback | Command::RollbackTo(_));
        if self.transaction != TransactionStatus::Error || ends {
            return Ok(());
        }
        let message = "current transaction is aborted, commands ignored until end of transaction block";
        Err(PgError::new(code::FAILED_TRANSACTION, message).hint("send ROLLBACK"))
    }

    /// Everything but questions.
    #[allow(clippy::too_many_arguments, reason = "the statement, its place, how it is answered and where")]
    async fn command(
        &mut self,
        command: &Command,
        text: &str,
        chars_before: usize,
        bound: Option<Bound>,
        formats: &Formats,
        described: bool,
        writer: &mut Writer,
    ) -> Result<(), Fault> {
        let tag = match command {
            Command::Query => return Err(PgError::new(code::INTERNAL, "a question is not a command").into()),
            Command::Begin
            | Command::Commit
            | Command::Rollback
            | Command::Savepoint(_)
            | Command::Release(_)
            | Command::RollbackTo(_) => self.transact(command, writer)?.to_owned(),
            Command::Set { name, value, local } => {
                let change = self.settings.lock().set(name, value.as_deref(), *local)?;
                if *local && self.transaction == TransactionStatus::Idle {
                    writer.put(
                        PgError::warning(
                            code::NO_ACTIVE_TRANSACTION,
                            "SET LOCAL can only be used in transaction blocks",
                        )
                        .into_message(),
                    );
                    self.end_of_local(writer);
                } else {
                    put_change(change, writer);
                }
                "SET".to_owned()
            }
            Command::Reset(name) => {
                let change = self.settings.lock().set(name, None, false)?;
                put_change(change, writer);
                "RESET".to_owned()
            }
            Command::ResetAll => {
                self.reset_all(writer);
                "RESET".to_owned()
            }
            Command::Show(name) => {
                let value =
                    self.settings.lock().get(name).map(str::to_owned).ok_or_else(|| unrecognized(name))?;
                if described {
                    writer.put(Reply::RowDescription(describe(&show_columns(command), formats)));
                }
                text_row(writer, &[&value])?;
                "SHOW".to_owned()
            }
            Command::ShowAll => {
                if described {
                    writer.put(Reply::RowDescription(describe(&show_columns(command), formats)));
                }
                for (name, value) in self.settings.lock().all() {
                    text_row(writer, &[name, value, ""])?;
                }
                "SHOW".to_owned()
            }
            Command::DiscardAll => {
                self.statements.clear();
                self.portals.clear();
                self.reset_all(writer);
                "DISCARD ALL".to_owned()
            }
            Command::Deallocate(None) => {
                self.statements.clear();
                "DEALLOCATE ALL".to_owned()
            }
            Command::Deallocate(Some(name)) => {
                self.statements.remove(name).ok_or_else(|| no_statement(name))?;
                "DEALLOCATE".to_owned()
            }
            Command::Declare(declare) => {
                self.declare(declare, text, chars_before, bound).await?;
                "DECLARE CURSOR".to_owned()
            }
            Command::Fetch(fetch) => self.fetch(fetch, formats, described, writer).await?,
            Command::CloseCursor(None) => {
                self.portals.clear();
                "CLOSE CURSOR ALL".to_owned()
            }
            Command::CloseCursor(Some(name)) => {
                self.portals.remove(name).ok_or_else(|| no_cursor(name))?;
                "CLOSE CURSOR".to_owned()
            }
            Command::CopyOut(copy) => self.copy_out(copy, writer).await?,
            Command::Nothing(tag) => (*tag).to_owned(),
        };
        self.complete(&tag, writer);
        Ok(())
    }

    fn transact(&mut self, command: &Command, writer: &mut Writer) -> Result<&'static str, PgError> {
        let open = self.transaction != TransactionStatus::Idle;
        let mut warn = |code, message: &str| writer.put(PgError::warning(code, message).into_message());
        match command {
            Command::Begin => {
                if open {
                    warn("25001", "there is already a transaction in progress");
                }
                self.transaction = TransactionStatus::Transaction;
                return Ok("BEGIN");
            }
            Command::Commit | Command::Rollback => {
                if !open {
                    warn(code::NO_ACTIVE_TRANSACTION, "there is no transaction in progress");
                }
                let commits = *command == Command::Commit && self.transaction != TransactionStatus::Error;
                self.transaction = TransactionStatus::Idle;
                self.savepoints.clear();
                self.portals.retain(|_, portal| portal.hold);
                self.end_of_local(writer);
                return Ok(if commits { "COMMIT" } else { "ROLLBACK" });
            }
            _ => {}
        }
        let (what, name) = match command {
            Command::Savepoint(name) => ("SAVEPOINT", name),
            Command::Release(name) => ("RELEASE", name),
            Command::RollbackTo(name) => ("ROLLBACK", name),
            _ => return Err(PgError::new(code::INTERNAL, "not a command of transactions")),
        };
        if !open {
            return Err(PgError::new(
                code::NO_ACTIVE_TRANSACTION,
                format!("{what} can only be used in transaction blocks"),
            ));
        }
        if let Command::Savepoint(name) = command {
            if self.savepoints.len() >= SAVEPOINTS_MAX {
                return Err(PgError::new(
                    code::LIMIT_EXCEEDED,
                    format!("there are {SAVEPOINTS_MAX} savepoints already"),
                ));
            }
            self.savepoints.push(name.clone());
            return Ok(what);
        }
        let known = self.savepoints.iter().rposition(|savepoint| savepoint == name);
        let at = known.ok_or_else(|| {
            PgError::new(code::INVALID_SAVEPOINT, format!("savepoint \"{name}\" does not exist"))
        })?;
        // Going back keeps the savepoint itself.
        self.savepoints.truncate(if what == "RELEASE" { at } else { at + 1 });
        if what == "ROLLBACK" {
            self.transaction = TransactionStatus::Transaction;
        }
        Ok(what)
    }

    fn end_of_local(&self, writer: &mut Writer) {
        let changes = self.settings.lock().end_transaction();
        put_status(changes, writer);
    }

    fn reset_all(&self, writer: &mut Writer) {
        let changes = self.settings.lock().reset_all();
        put_status(changes, writer);
    }

    async fn declare(
        &mut self,
        declare: &Declare,
        text: &str,
        chars_before: usize,
        bound: Option<Bound>,
    ) -> Result<(), PgError> {
        if self.transaction == TransactionStatus::Idle && !declare.hold {
            return Err(PgError::new(
                code::NO_ACTIVE_TRANSACTION,
                "DECLARE CURSOR can only be used in transaction blocks",
            )
            .hint("send BEGIN first, or declare the cursor WITH HOLD"));
        }
        self.check_portal(&declare.name)?;
        let Bound { prepared, plan } = match bound {
            Some(bound) => bound,
            None => {
                let query = &text[declare.query_at..];
                let before = chars_before + text[..declare.query_at].chars().count();
                let question = Question::plan(&self.shared, &self.context, query, before, &[]).await?;
                if !question.parameters.is_empty() {
                    return Err(no_parameter());
                }
                let plan = question.bind(&self.shared, Vec::new())?;
                Bound { prepared: Arc::new(Prepared::question(question)), plan }
            }
        };
        let formats = Formats::All(if declare.binary { Format::Binary } else { Format::Text });
        let portal =
            Portal { prepared, plan: Some(plan), formats, rows: None, cursor: true, hold: declare.hold };
        self.portals.insert(declare.name.clone(), portal);
        Ok(())
    }

    /// Whether a portal of this name may be made.
    fn check_portal(&self, name: &str) -> Result<(), PgError> {
        if !name.is_empty() && self.portals.contains_key(name) {
            return Err(PgError::new(code::DUPLICATE_CURSOR, format!("cursor \"{name}\" already exists")));
        }
        if self.portals.len() >= PORTALS_MAX {
            return Err(PgError::new(
                code::LIMIT_EXCEEDED,
                format!("there are {PORTALS_MAX} cursors already"),
            )
            .hint("CLOSE some"));
        }
        Ok(())
    }

    async fn fetch(
        &mut self,
        fetch: &Fetch,
        formats: &Formats,
        described: bool,
        writer: &mut Writer,
    ) -> Result<String, Fault> {
        // Out of the session while it runs: an interrupted cursor is gone.
        let mut portal = self.portals.remove(&fetch.cursor).ok_or_else(|| no_cursor(&fetch.cursor))?;
        let mut rows = match portal.rows.take() {
            Some(rows) => rows,
            None => self.start(&mut portal).await?,
        };
        let formats = if portal.formats == Formats::All(Format::Binary) { &portal.formats } else { formats };
        let tag = if fetch.skip {
            format!("MOVE {}", rows.skip(fetch.count).await?)
        } else {
            formats.check(rows.columns().len())?;
            if described {
                writer.put(Reply::RowDescription(describe(rows.columns(), formats)));
            }
            counted("FETCH", rows.send(&DataRows(formats), fetch.count, writer).await?)
        };
        portal.rows = Some(rows);
        self.portals.insert(fetch.cursor.clone(), portal);
        Ok(tag)
    }

    /// Starts a portal's question.
    async fn start(&self, portal: &mut Portal) -> Result<Rows, PgError> {
        let ended = || PgError::new(code::OBJECT_NOT_IN_STATE, "the portal has no question to run");
        let question = portal.prepared.question.as_ref().ok_or_else(ended)?;
        let plan = portal.plan.take().ok_or_else(ended)?;
        let described = portal.prepared.described();
        question.start(&self.shared, &self.context, plan, described, self.options()).await
    }

    async fn copy_out(&mut self, copy: &CopyOut, writer: &mut Writer) -> Result<String, Fault> {
        let question = Question::plan(&self.shared, &self.context, &copy.query, 0, &[]).await?;
        if !question.parameters.is_empty() {
            return Err(no_parameter().into());
        }
        let plan = question.bind(&self.shared, Vec::new())?;
        let mut rows = question.start(&self.shared, &self.context, plan, None, self.options()).await?;
        let columns = Arc::clone(rows.columns());
        let count =
            i16::try_from(columns.len()).map_err(|_| PgError::new("54011", "too many columns for COPY"))?;
        writer.put(Reply::CopyOutResponse(CopyOutResponse::new(0, count, vec![0; columns.len()])));
        let format = CopyRows { csv: copy.csv, delimiter: copy.delimiter, null: copy.null.clone() };
        if copy.header {
            writer.put_with(b'd', |out| {
                format.header(&columns, out);
                Ok::<_, PgError>(())
            })?;
        }
        let sent = rows.send(&format, None, writer).await?;
        writer.put(Reply::CopyDone(CopyDone::new()));
        Ok(counted("COPY", sent))
    }
}

fn counted(tag: &str, rows: u64) -> String {
    // EXPLAIN does not count.
    if tag == "EXPLAIN" { tag.to_owned() } else { format!("{tag} {rows}") }
}

/// Columns of SHOW.
fn show_columns(command: &Command) -> Vec<Column> {
    let column = |name: &str| Column { name: name.to_owned(), ty: Type::TEXT };
    match command {
        Command::Show(name) => vec![column(Settings::display_name(name).unwrap_or(name))],
        _ => ["name", "setting", "description"].map(column).to_vec(),
    }
}

fn put_change(change: Change, writer: &mut Writer) {
    if let Some(warning) = change.warning {
        writer.put(warning.into_message());
    }
    put_status(change.report, writer);
}

fn put_status(changes: impl IntoIterator<Item = (&'static str, String)>, writer: &mut Writer) {
    for (name, value) in changes {
        writer.put(Reply::ParameterStatus(ParameterStatus::new(name.to_owned(), value)));
    }
}

fn no_parameter() -> PgError {
    PgError::new("42P02", "there is no parameter $1")
        .hint("parameters need the extended protocol: pass values through your driver")
}

fn no_cursor(name: &str) -> PgError {
    PgError::new(code::INVALID_CURSOR_NAME, format!("cursor \"{name}\" does not exist"))
}

fn no_statement(name: &str) -> PgError {
    PgError::new(code::INVALID_STATEMENT_NAME, format!("prepared statement \"{name}\" does not exist"))
}
