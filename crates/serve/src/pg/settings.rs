//! The variables of one session: SET, SHOW, RESET, `current_setting`.
//!
//! Clients set many variables that have no meaning here; those are kept and shown. Where the only true value is fixed
//! (time zone UTC, ISO dates, UTF-8), setting another one warns or fails instead of pretending.

use std::collections::BTreeMap;
use std::time::Duration;

use super::error::{PgError, code};

/// The PostgreSQL release whose catalog and behaviour are shown. Not newer than the `psql` that people have, or it warns.
pub(super) const SERVER_VERSION: &str = "15.14";
const SERVER_VERSION_NUM: &str = "150014";

/// What a variable may be set to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// Anything.
    Free,
    /// Nothing.
    Fixed,
    /// Anything, but it stays as it is, with a warning unless the value means the same.
    Stays(&'static [&'static str]),
    /// Names of UTF-8 only.
    Encoding,
    /// A time.
    Duration,
}

/// Name as clients are told it, initial value, kind.
const KNOWN: &[(&str, &str, Kind)] = &[
    ("application_name", "", Kind::Free),
    ("array_nulls", "on", Kind::Free),
    ("backslash_quote", "safe_encoding", Kind::Free),
    ("block_size", "8192", Kind::Fixed),
    ("bytea_output", "hex", Kind::Stays(&["hex"])),
    ("client_encoding", "UTF8", Kind::Encoding),
    ("client_min_messages", "notice", Kind::Free),
    ("data_checksums", "on", Kind::Fixed),
    ("DateStyle", "ISO, MDY", Kind::Stays(&["iso"])),
    ("default_tablespace", "", Kind::Free),
    ("default_transaction_deferrable", "off", Kind::Free),
    ("default_transaction_isolation", "repeatable read", Kind::Free),
    ("default_transaction_read_only", "on", Kind::Free),
    ("enable_seqscan", "on", Kind::Free),
    ("escape_string_warning", "on", Kind::Free),
    ("extra_float_digits", "1", Kind::Free),
    ("geqo", "on", Kind::Free),
    ("idle_in_transaction_session_timeout", "0", Kind::Free),
    ("idle_session_timeout", "0", Kind::Free),
    ("in_hot_standby", "off", Kind::Fixed),
    ("integer_datetimes", "on", Kind::Fixed),
    ("IntervalStyle", "postgres", Kind::Stays(&["postgres"])),
    ("is_superuser", "off", Kind::Fixed),
    ("jit", "off", Kind::Free),
    ("lc_collate", "C", Kind::Fixed),
    ("lc_ctype", "C", Kind::Fixed),
    ("lc_messages", "C", Kind::Free),
    ("lc_monetary", "C", Kind::Free),
    ("lc_numeric", "C", Kind::Free),
    ("lc_time", "C", Kind::Free),
    ("lock_timeout", "0", Kind::Free),
    ("maintenance_work_mem", "64MB", Kind::Free),
    ("max_identifier_length", "63", Kind::Fixed),
    ("max_index_keys", "32", Kind::Fixed),
    ("max_parallel_workers_per_gather", "0", Kind::Free),
    ("row_security", "on", Kind::Free),
    ("search_path", "main", Kind::Free),
    ("server_encoding", "UTF8", Kind::Fixed),
    ("server_version", SERVER_VERSION, Kind::Fixed),
    ("server_version_num", SERVER_VERSION_NUM, Kind::Fixed),
    ("session_authorization", "", Kind::Fixed),
    ("session_replication_role", "origin", Kind::Fixed),
    ("standard_conforming_strings", "on", Kind::Stays(&["on", "true", "yes", "1"])),
    ("statement_timeout", "0", Kind::Duration),
    ("synchronize_seqscans", "on", Kind::Free),
    ("synchronous_commit", "on", Kind::Free),
    ("temp_buffers", "8MB", Kind::Free),
    (
        "TimeZone",
        "UTC",
        Kind::Stays(&[
            "utc", "etc/utc", "gmt", "etc/gmt", "etc/uct", "uct", "zulu", "z", "0", "+00", "+00:00",
        ]),
    ),
    ("timezone_abbreviations", "Default", Kind::Free),
    ("transaction_deferrable", "off", Kind::Free),
    ("transaction_isolation", "repeatable read", Kind::Free),
    ("transaction_read_only", "on", Kind::Free),
    ("transform_null_equals", "off", Kind::Free),
    ("wal_level", "replica", Kind::Fixed),
    ("work_mem", "4MB", Kind::Free),
    ("xmloption", "content", Kind::Free),
];

/// Variables whose value clients are told at the start and at every change.
pub(super) const REPORTED: &[&str] = &[
    "application_name",
    "client_encoding",
    "DateStyle",
    "default_transaction_read_only",
    "in_hot_standby",
    "integer_datetimes",
    "IntervalStyle",
    "is_superuser",
    "server_encoding",
    "server_version",
    "session_authorization",
    "standard_conforming_strings",
    "TimeZone",
];

/// Longest value that is kept, in bytes.
const VALUE_BYTES_MAX: usize = 4096;
/// Most variables of a client's own (with a dot in the name).
const CUSTOM_MAX: usize = 100;

/// What came of setting a variable.
#[derive(Debug, Default)]
pub(super) struct Change {
    /// To tell the client: name and value.
    pub(super) report: Option<(&'static str, String)>,
    pub(super) warning: Option<PgError>,
}

/// The variables of one session.
#[derive(Debug)]
pub(super) struct Settings {
    /// By name in lower case.
    initial: BTreeMap<String, String>,
    values: BTreeMap<String, String>,
    /// Values from before SET LOCAL, latest last.
    before_local: Vec<(String, Option<String>)>,
}

impl Settings {
    /// The variables of a new session of `user`.
    pub(super) fn new(user: &str, statement_timeout: Duration) -> Self {
        let mut initial: BTreeMap<_, _> =
            KNOWN.iter().map(|(name, value, _)| (name.to_ascii_lowercase(), (*value).to_owned())).collect();
        initial.insert("session_authorization".to_owned(), user.to_owned());
        initial.insert("statement_timeout".to_owned(), show_duration(statement_timeout));
        Self { values: initial.clone(), initial, before_local: Vec::new() }
    }

    /// Sets from the start-up packet: what a client asks there is its default, and never fails the connection.
    pub(super) fn start_with(&mut self, name: &str, value: &str) {
        if self.set(name, Some(value), false).is_ok()
            && let Some(value) = self.values.get(&name.to_ascii_lowercase())
        {
            self.initial.insert(name.to_ascii_lowercase(), value.clone());
        }
    }

    /// `options` of the start-up packet: `-c name=value` and `--name=value`.
    pub(super) fn start_with_options(&mut self, options: &str) {
        let mut words = options.split_ascii_whitespace();
        while let Some(word) = words.next() {
            let assignment = match word.strip_prefix("-c") {
                Some("") => words.next(),
                Some(attached) => Some(attached),
                None => word.strip_prefix("--"),
            };
            if let Some((name, value)) = assignment.and_then(|text| text.split_once('=')) {
                self.start_with(&name.replace('-', "_"), &value.replace("\\ ", " "));
            }
        }
    }

    /// The value, if the variable exists.
    pub(super) fn get(&self, name: &str) -> Option<&str> {
        self.values.get(&name.to_ascii_lowercase()).map(String::as_str)
    }

    /// Name as clients know it.
    pub(super) fn display_name(name: &str) -> Option<&'static str> {
        known(name).map(|(name, ..)| *name)
    }

    /// All names and values.
    pub(super) fn all(&self) -> impl Iterator<Item = (&str, &str)> {
        self.values.iter().map(|(name, value)| (Self::display_name(name).unwrap_or(name), value.as_str()))
    }

    /// Sets a variable; without a value, back to what it was at the start. `local`: until the transaction ends.
    pub(super) fn set(&mut self, name: &str, value: Option<&str>, local: bool) -> Result<Change, PgError> {
        let key = name.to_ascii_lowercase();
        let Some((display, _, kind)) = known(name) else { return self.set_custom(&key, value, local) };
        let Some(value) = value else {
            let initial = self.initial.get(&key).cloned();
            return Ok(self.store(&key, initial, local));
        };
        if value.len() > VALUE_BYTES_MAX {
            return Err(invalid(display, "is too long"));
        }
        let kept = match kind {
            Kind::Free => value.to_owned(),
            Kind::Fixed => {
                return Err(PgError::new(
                    code::CANNOT_CHANGE,
                    format!("parameter \"{display}\" cannot be changed"),
                ));
            }
            Kind::Duration => show_duration(parse_duration(value).ok_or_else(|| {
                invalid(display, &format!("is not a time: \"{value}\""))
                    .hint("examples: 30000, '30s', '5min', 0 for the longest allowed")
            })?),
            Kind::Encoding if is_utf8(value) => "UTF8".to_owned(),
            Kind::Encoding => {
                return Err(
                    invalid(display, &format!("cannot be \"{value}\"")).hint("only UTF8 is spoken here")
                );
            }
            Kind::Stays(same) => {
                let first = value.split(',').next().unwrap_or_default().trim().to_ascii_lowercase();
                let current = self.values.get(&key).cloned().unwrap_or_default();
                let warning = (!same.contains(&first.as_str())).then(|| {
                    PgError::warning(
                        "01000",
                        format!("\"{display}\" stays \"{current}\" here; \"{value}\" was ignored"),
                    )
                });
                return Ok(Change { report: None, warning });
            }
        };
        Ok(self.store(&key, Some(kept), local))
    }

    fn set_custom(&mut self, key: &str, value: Option<&str>, local: bool) -> Result<Change, PgError> {
        if !key.contains('.') {
            return Err(unrecognized(key));
        }
        let customs = self.values.keys().filter(|name| name.contains('.')).count();
        if customs >= CUSTOM_MAX || value.is_some_and(|value| value.len() > VALUE_BYTES_MAX) {
            return Err(PgError::new(code::LIMIT_EXCEEDED, "too many or too long custom parameters"));
        }
        Ok(self.store(key, value.map(str::to_owned), local))
    }

    fn store(&mut self, key: &str, value: Option<String>, local: bool) -> Change {
        let before = match value.clone() {
            Some(value) => self.values.insert(key.to_owned(), value),
            None => self.values.remove(key),
        };
        if local && !self.before_local.iter().any(|(name, _)| name == key) {
            self.before_local.push((key.to_owned(), before));
        }
        let report = REPORTED.iter().find(|name| name.eq_ignore_ascii_case(key)).copied().zip(value);
        Change { report, warning: None }
    }

    /// All variables as at the start.
    pub(super) fn reset_all(&mut self) -> Vec<(&'static str, String)> {
        let before = std::mem::replace(&mut self.values, self.initial.clone());
        self.changed_since(&before)
    }

    /// A transaction ended: what was set locally is as before.
    pub(super) fn end_transaction(&mut self) -> Vec<(&'static str, String)> {
        if self.before_local.is_empty() {
            return Vec::new();
        }
        let now = self.values.clone();
        for (key, value) in self.before_local.drain(..).rev() {
            match value {
                Some(value) => self.values.insert(key, value),
                None => self.values.remove(&key),
            };
        }
        self.changed_since(&now)
    }

    fn changed_since(&self, before: &BTreeMap<String, String>) -> Vec<(&'static str, String)> {
        let changed = |name: &&&str| {
            let key = name.to_ascii_lowercase();
            before.get(&key) != self.values.get(&key)
        };
        REPORTED.iter().filter(changed).filter_map(|name| Some((*name, self.get(name)?.to_owned()))).collect()
    }

    /// Time limit of a statement; nothing means the longest that is allowed.
    pub(super) fn statement_timeout(&self) -> Option<Duration> {
        self.get("statement_timeout").and_then(parse_duration).filter(|timeout| !timeout.is_zero())
    }
}

fn known(name: &str) -> Option<&'static (&'static str, &'static str, Kind)> {
    KNOWN.iter().find(|(known, ..)| known.eq_ignore_ascii_case(name))
}

/// The error for a variable that does not exist.
pub(super) fn unrecognized(name: &str) -> PgError {
    PgError::new(code::UNDEFINED_OBJECT, format!("unrecognized configuration parameter \"{name}\""))
        .hint("SHOW ALL lists the parameters")
}

fn invalid(name: &str, what: &str) -> PgError {
    PgError::new(code::INVALID_PARAMETER_VALUE, format!("invalid value for parameter \"{name}\": it {what}"))
}

fn is_utf8(value: &str) -> bool {
    let name: String = value.chars().filter(char::is_ascii_alphanumeric).collect();
    ["utf8", "unicode", "sqlascii"].iter().any(|known| name.eq_ignore_ascii_case(known))
}

/// A number of milliseconds, or a number and `us`, `ms`, `s`, `min`, `h`, `d`.
fn parse_duration(text: &str) -> Option<Duration> {
    let text = text.trim();
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let number: f64 = text[..digits].parse().ok()?;
    let unit_ms = match text[digits..].trim() {
        "us" => 0.001,
        "" | "ms" => 1.0,
        "s" => 1e3,
        "min" => 60e3,
        "h" => 3_600e3,
        "d" => 86_400e3,
        _ => return None,
    };
    Duration::try_from_secs_f64(number * unit_ms / 1e3)
        .ok()
        .filter(|duration| duration.as_millis() <= i32::MAX as u128)
}

fn show_duration(duration: Duration) -> String {
    match u64::try_from(duration.as_millis()).unwrap_or(u64::MAX) {
        0 => "0".to_owned(),
        ms if ms % 3_600_000 == 0 => format!("{}h", ms / 3_600_000),
        ms if ms % 60_000 == 0 => format!("{}min", ms / 60_000),
        ms if ms % 1000 == 0 => format!("{}s", ms / 1000),
        ms => format!("{ms}ms"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings() -> Settings {
        Settings::new("admin", Duration::from_secs(30))
    }

    #[test]
    fn times_have_units() {
        let mut settings = settings();
        for (text, ms) in [("250", 250), ("'2s'", 0), ("2s", 2000), ("1.5min", 90_000), ("1h", 3_600_000)] {
            let result = settings.set("statement_timeout", Some(text), false);
            assert_eq!(result.is_ok(), ms != 0, "{text}");
            if ms != 0 {
                assert_eq!(settings.statement_timeout(), Some(Duration::from_millis(ms)));
            }
        }
        settings.set("statement_timeout", Some("0"), false).unwrap();
        assert_eq!(settings.statement_timeout(), None);
        settings.set("STATEMENT_TIMEOUT", None, false).unwrap();
        assert_eq!(settings.get("statement_timeout"), Some("30s"));
    }

    #[test]
    fn what_cannot_change_does_not_pretend() {
        let mut settings = settings();
        assert!(settings.set("timezone", Some("Europe/Paris"), false).unwrap().warning.is_some());
        assert!(settings.set("TimeZone", Some("UTC"), false).unwrap().warning.is_none());
        assert_eq!(settings.get("timezone"), Some("UTC"));
        assert!(settings.set("datestyle", Some("ISO, DMY"), false).unwrap().warning.is_none());
        assert_eq!(settings.set("client_encoding", Some("LATIN1"), false).unwrap_err().code(), "22023");
        assert_eq!(settings.set("server_version", Some("17"), false).unwrap_err().code(), "55P02");
        assert_eq!(settings.set("no_such_thing", Some("1"), false).unwrap_err().code(), "42704");
        assert!(settings.set("my.own", Some("1"), false).is_ok());
    }

    #[test]
    fn local_values_end_with_the_transaction() {
        let mut settings = settings();
        settings.set("application_name", Some("a"), true).unwrap();
        settings.set("application_name", Some("b"), true).unwrap();
        assert_eq!(settings.end_transaction(), [("application_name", String::new())]);
        assert_eq!(settings.get("application_name"), Some(""));
    }

    #[test]
    fn options_of_the_start_up_packet_are_defaults() {
        let mut settings = settings();
        settings
            .start_with_options("-c statement_timeout=5s --application-name=x -cwork_mem=1MB -c nonsense");
        settings.reset_all();
        assert_eq!(settings.get("statement_timeout"), Some("5s"));
        assert_eq!(settings.get("application_name"), Some("x"));
        assert_eq!(settings.get("work_mem"), Some("1MB"));
    }
}
