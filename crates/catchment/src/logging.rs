//! Log lines: human on a terminal, plain or JSON elsewhere. They go to standard error; standard output is for results.

use std::io::IsTerminal;

use clap::ValueEnum;
use serde::{Deserialize, Serialize};
use tracing_subscriber::EnvFilter;

/// How log lines look.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(crate) enum LogFormat {
    /// Human on a terminal, plain otherwise.
    #[default]
    Auto,
    /// With colours.
    Human,
    /// Without.
    Plain,
    /// One object a line.
    Json,
}

impl LogFormat {
    /// As settings have it.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Human => "human",
            Self::Plain => "plain",
            Self::Json => "json",
        }
    }
}

/// Installs the subscriber of this process.
///
/// # Errors
/// When `level` is not a filter, or one is installed already.
pub(crate) fn install(format: LogFormat, level: &str) -> anyhow::Result<()> {
    let filter = EnvFilter::try_new(level)
        .map_err(|error| anyhow::anyhow!("{level:?} is not a log level or filter: {error}"))?;
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    let human = match format {
        LogFormat::Json => {
            return builder.json().flatten_event(true).try_init().map_err(anyhow::Error::from_boxed);
        }
        LogFormat::Human => true,
        LogFormat::Plain => false,
        LogFormat::Auto => std::io::stderr().is_terminal(),
    };
    builder.with_ansi(human).with_target(!human).try_init().map_err(anyhow::Error::from_boxed)
}
