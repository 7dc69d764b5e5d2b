//! The extended protocol: Parse, Bind, Describe, Execute, Close, Sync.

use std::sync::{Arc, OnceLock};

use pgwire::messages::PgWireBackendMessage as Reply;
use pgwire::messages::data::{NoData, ParameterDescription};
use pgwire::messages::extendedquery::{
    Bind, BindComplete, Close, CloseComplete, Describe, Execute, Parse, ParseComplete, PortalSuspended,
    TARGET_TYPE_BYTE_STATEMENT,
};
use pgwire::messages::response::EmptyQueryResponse;

use super::{Bound, Portal, Session, counted, no_cursor, no_statement, show_columns};
use crate::pg::command::{Command, split};
use crate::pg::encode::{Column, Format, Formats, describe};
use crate::pg::error::{Fault, PgError, code};
use crate::pg::params;
use crate::pg::question::Question;
use crate::pg::rows::DataRows;
use crate::pg::wire::Writer;

/// Most prepared statements of a session.
const STATEMENTS_MAX: usize = 2048;

/// A prepared statement.
pub(super) struct Prepared {
    text: String,
    /// Nothing for an empty statement.
    command: Option<Command>,
    chars_before: usize,
    /// For questions, and cursors over them.
    pub(super) question: Option<Question>,
    /// The columns that clients were told; rows keep to them.
    columns: OnceLock<Arc<[Column]>>,
}

impl Prepared {
    /// A question alone.
    pub(super) fn question(question: Question) -> Self {
        let columns = OnceLock::new();
        Self {
            text: String::new(),
            command: Some(Command::Query),
            chars_before: 0,
            question: Some(question),
            columns,
        }
    }

    pub(super) fn described(&self) -> Option<Arc<[Column]>> {
        self.columns.get().cloned()
    }
}

impl Session {
    pub(in crate::pg) async fn parse(&mut self, message: Parse, writer: &mut Writer) -> Result<(), Fault> {
        let name = message.name.unwrap_or_default();
        if !name.is_empty() && self.statements.contains_key(&name) {
            return Err(PgError::new(
                code::DUPLICATE_STATEMENT,
                format!("prepared statement \"{name}\" already exists"),
            )
            .into());
        }
        if self.statements.len() >= STATEMENTS_MAX {
            return Err(PgError::new(
                code::LIMIT_EXCEEDED,
                format!("there are {STATEMENTS_MAX} prepared statements already"),
            )
            .hint("DEALLOCATE some")
            .into());
        }
        let pieces = split(&message.query)?;
        let prepared = match pieces.as_slice() {
            [] => Prepared {
                text: String::new(),
                command: None,
                chars_before: 0,
                question: None,
                columns: OnceLock::new(),
            },
            [piece] => {
                let command = piece.command()?;
                self.check_transaction(&command)?;
                let (text, chars_before) = (piece.text, piece.chars_before);
                let asked = match &command {
                    Command::Query => Some((text, chars_before)),
                    Command::Declare(declare) => Some((
                        &text[declare.query_at..],
                        chars_before + text[..declare.query_at].chars().count(),
                    )),
                    _ => None,
                };
                let question = match asked {
                    Some((text, before)) => Some(
                        Question::plan(&self.shared, &self.context, text, before, &message.type_oids).await?,
                    ),
                    None => None,
                };
                Prepared {
                    text: text.to_owned(),
                    command: Some(command),
                    chars_before,
                    question,
                    columns: OnceLock::new(),
                }
            }
            _ => {
                return Err(PgError::new(
                    code::SYNTAX,
                    "cannot insert multiple commands into a prepared statement",
                )
                .into());
            }
        };
        self.statements.insert(name, Arc::new(prepared));
        writer.put(Reply::ParseComplete(ParseComplete::new()));
        Ok(())
    }

    pub(in crate::pg) fn bind(&mut self, message: Bind, writer: &mut Writer) -> Result<(), Fault> {
        let statement = message.statement_name.as_deref().unwrap_or_default();
        let prepared = Arc::clone(self.statements.get(statement).ok_or_else(|| no_statement(statement))?);
        if let Some(command) = &prepared.command {
            self.check_transaction(command)?;
        }
        let name = message.portal_name.unwrap_or_default();
        self.check_portal(&name)?;
        let parameters = prepared.question.as_ref().map_or(&[][..], |question| &question.parameters);
        if message.parameters.len() != parameters.len() {
            let (given, wanted) = (message.parameters.len(), parameters.len());
            let message = format!(
                "bind message supplies {given} parameters, but prepared statement \"{statement}\" requires {wanted}"
            );
            return Err(PgError::new(code::PROTOCOL_VIOLATION, message).into());
        }
        let codes = Formats::from_codes(&message.parameter_format_codes)?;
        if let Formats::Each(formats) = &codes
            && formats.len() != parameters.len()
        {
            return Err(PgError::new(
                code::PROTOCOL_VIOLATION,
                "bind message has another number of parameter formats than of parameters",
            )
            .into());
        }
        let mut values = Vec::with_capacity(parameters.len());
        for (index, (value, parameter)) in message.parameters.iter().zip(parameters).enumerate() {
            values.push(params::decode(value.as_ref(), codes.get(index), &parameter.ty, &parameter.arrow)?);
        }
        let plan = match &prepared.question {
            Some(question) => Some(question.bind(&self.shared, values)?),
            None => None,
        };
        let formats = Formats::from_codes(&message.result_column_format_codes)?;
        self.portals.insert(name, Portal { prepared, plan, formats, rows: None, cursor: false, hold: false });
        writer.put(Reply::BindComplete(BindComplete::new()));
        Ok(())
    }

    pub(in crate::pg) fn describe(&mut self, message: &Describe, writer: &mut Writer) -> Result<(), Fault> {
        let name = message.name.as_deref().unwrap_or_default();
        let (prepared, formats, is_cursor) = if message.target_type == TARGET_TYPE_BYTE_STATEMENT {
            let prepared = Arc::clone(self.statements.get(name).ok_or_else(|| no_statement(name))?);
            let types = prepared
                .question
                .iter()
                .flat_map(|question| &question.parameters)
                .map(|parameter| parameter.ty.oid());
            writer.put(Reply::ParameterDescription(ParameterDescription::new(types.collect())));
            (prepared, Formats::All(Format::Text), false)
        } else {
            let portal = self.portals.get(name).ok_or_else(|| no_cursor(name))?;
            (Arc::clone(&portal.prepared), portal.formats.clone(), portal.cursor)
        };
        // A cursor's statement has no rows; the cursor has.
        let columns = if is_cursor { self.question_columns(&prepared)? } else { self.columns(&prepared)? };
        match columns {
            Some(columns) => {
                formats.check(columns.len())?;
                writer.put(Reply::RowDescription(describe(&columns, &formats)));
            }
            None => writer.put(Reply::NoData(NoData::new())),
        }
        Ok(())
    }

    /// What a statement's rows look like, if it has any.
    fn columns(&self, prepared: &Prepared) -> Result<Option<Arc<[Column]>>, PgError> {
        match &prepared.command {
            Some(Command::Query) => {}
            Some(command @ (Command::Show(_) | Command::ShowAll)) => {
                return Ok(Some(show_columns(command).into()));
            }
            Some(Command::Fetch(fetch)) if !fetch.skip => {
                let portal = self.portals.get(&fetch.cursor).ok_or_else(|| no_cursor(&fetch.cursor))?;
                if let Some(rows) = &portal.rows {
                    return Ok(Some(Arc::clone(rows.columns())));
                }
                return self.question_columns(&portal.prepared);
            }
            _ => return Ok(None),
        }
        self.question_columns(prepared)
    }

    fn question_columns(&self, prepared: &Prepared) -> Result<Option<Arc<[Column]>>, PgError> {
        let Some(question) = &prepared.question else { return Ok(None) };
        if let Some(columns) = prepared.columns.get() {
            return Ok(Some(Arc::clone(columns)));
        }
        let columns = question.columns(&self.shared, &self.context)?;
        Ok(Some(Arc::clone(prepared.columns.get_or_init(|| columns))))
    }

    pub(in crate::pg) async fn execute(
        &mut self,
        message: Execute,
        writer: &mut Writer,
    ) -> Result<(), Fault> {
        let name = message.name.unwrap_or_default();
        // Out of the session while it runs: an interrupted portal is gone.
        let mut portal = self.portals.remove(&name).ok_or_else(|| no_cursor(&name))?;
        let prepared = Arc::clone(&portal.prepared);
        let Some(command) = &prepared.command else {
            writer.put(Reply::EmptyQueryResponse(EmptyQueryResponse::new()));
            self.portals.insert(name, portal);
            return Ok(());
        };
        self.check_transaction(command)?;
        if *command != Command::Query && !portal.cursor {
            let bound = portal.plan.take().map(|plan| Bound { prepared: Arc::clone(&prepared), plan });
            self.command(
                command,
                &prepared.text,
                prepared.chars_before,
                bound,
                &portal.formats,
                false,
                writer,
            )
            .await?;
            return Ok(());
        }
        let mut rows = match portal.rows.take() {
            Some(rows) => rows,
            None => self.start(&mut portal).await?,
        };
        portal.formats.check(rows.columns().len())?;
        // Zero, and what PostgreSQL takes for it, is all.
        let max = u64::try_from(message.max_rows).ok().filter(|max| *max > 0);
        let sent = rows.send(&DataRows(&portal.formats), max, writer).await?;
        if max == Some(sent) {
            writer.put(Reply::PortalSuspended(PortalSuspended::new()));
        } else {
            let tag = prepared.question.as_ref().map_or("SELECT", |question| question.tag);
            self.complete(&counted(tag, sent), writer);
        }
        portal.rows = Some(rows);
        self.portals.insert(name, portal);
        Ok(())
    }

    pub(in crate::pg) fn close(&mut self, message: &Close, writer: &mut Writer) {
        let name = message.name.as_deref().unwrap_or_default();
        if message.target_type == TARGET_TYPE_BYTE_STATEMENT {
            self.statements.remove(name);
        } else {
            self.portals.remove(name);
        }
        writer.put(Reply::CloseComplete(CloseComplete::new()));
    }

    pub(in crate::pg) async fn sync(&mut self, writer: &mut Writer) -> Result<(), Fault> {
        self.portals.remove("");
        self.end_of_request();
        self.put_ready(writer);
        writer.flush().await?;
        Ok(())
    }
}
