//! From file, environment and flags to [`Settings`].

use std::collections::HashMap;
use std::ops::Range;
use std::path::{Path, PathBuf};

use config::{Config, Environment, File, FileFormat};
use thiserror::Error;

use super::{Settings, budget};

const FILE: &str = "catchment.toml";
const PREFIX: &str = "CATCHMENT_";
/// Variables that are for the client commands.
const OF_CLIENTS: [&str; 3] = ["CATCHMENT_CA", "CATCHMENT_TOKEN", "CATCHMENT_URL"];
/// Variables that are for the tests, which a developer's shell may well have: addresses of services.
const OF_TESTS: &str = "CATCHMENT_TEST_";

/// Settings from the command line: key and value.
pub(crate) type Overrides = Vec<(&'static str, String)>;

/// A mistake in the settings.
#[derive(Debug, Error)]
pub(crate) enum SettingsError {
    #[error("the settings file {path} cannot be read: {source}", path = .path.display())]
    Read { path: PathBuf, source: std::io::Error },
    #[error("{path}:{line}:{column}: {message}", path = .path.display())]
    File { path: PathBuf, line: usize, column: usize, message: String },
    #[error("the environment variable {name}: {message}")]
    Environment { name: String, message: String },
    #[error("{0}")]
    Together(#[from] config::ConfigError),
}

/// Reads the settings.
///
/// # Errors
/// Says in which file and line, or in which variable, the mistake is.
pub(crate) fn load(
    file: Option<&Path>,
    environment: impl Iterator<Item = (String, String)>,
    overrides: &Overrides,
) -> Result<Settings, SettingsError> {
    let file = match file {
        Some(path) => Some(read(path)?),
        None if Path::new(FILE).is_file() => Some(read(Path::new(FILE))?),
        None => None,
    };
    let environment: HashMap<String, String> = environment
        .filter(|(name, _)| name.starts_with(PREFIX) && !name.starts_with(OF_TESTS))
        .filter(|(name, _)| !OF_CLIENTS.contains(&name.as_str()))
        .collect();
    for (name, value) in &environment {
        let alone = HashMap::from([(name.clone(), value.clone())]);
        let checked = Config::builder().add_source(variables(alone)).build();
        if let Err(error) = checked.and_then(Config::try_deserialize::<Settings>) {
            return Err(SettingsError::Environment {
                name: name.clone(),
                message: with_hint(&error.to_string()),
            });
        }
    }
    let layered = |shares: Vec<(&'static str, u64)>| -> Result<Settings, SettingsError> {
        let mut builder = Config::builder();
        for (key, value) in shares {
            builder = builder.set_default(key, value)?;
        }
        if let Some(text) = &file {
            builder = builder.add_source(File::from_str(text, FileFormat::Toml));
        }
        builder = builder.add_source(variables(environment.clone()));
        for (key, value) in overrides {
            builder = builder.set_override(*key, value.as_str())?;
        }
        Ok(builder.build()?.try_deserialize()?)
    };
    // The budget is known after the first pass; its shares are defaults, so that what is set stays as it is.
    let budget = layered(Vec::new())?;
    let mut settings = layered(budget::shares(budget.memory_bytes_max, budget.log.partitions_of_new()))?;
    // Whatever is said about the folder then says where it is.
    settings.data = std::path::absolute(&settings.data)
        .map_err(|source| SettingsError::Read { path: settings.data.clone(), source })?;
    Ok(settings)
}

fn variables(source: HashMap<String, String>) -> Environment {
    Environment::with_prefix(PREFIX.trim_end_matches('_'))
        .prefix_separator("_")
        .separator("__")
        .source(Some(source))
}

/// The text of a file whose every key and value is known to be good.
fn read(path: &Path) -> Result<String, SettingsError> {
    let text = std::fs::read_to_string(path)
        .map_err(|source| SettingsError::Read { path: path.to_owned(), source })?;
    match toml::from_str::<Settings>(&text) {
        Ok(_) => Ok(text),
        Err(error) => {
            let (line, column) = position(&text, error.span().unwrap_or_default());
            let message = with_hint(error.message());
            Err(SettingsError::File { path: path.to_owned(), line, column, message })
        }
    }
}

/// Line and column, from 1.
fn position(text: &str, span: Range<usize>) -> (usize, usize) {
    let before = text.get(..span.start).unwrap_or_default();
    let line = before.matches('\n').count() + 1;
    let column = before.rsplit('\n').next().unwrap_or_default().chars().count() + 1;
    (line, column)
}

/// Serde's message about an unknown key, shortened, with the known key that is nearest.
fn with_hint(message: &str) -> String {
    let mut quoted = message.split('`').skip(1).step_by(2);
    let Some(unknown) = quoted.next().filter(|_| message.starts_with("unknown field")) else {
        return message.to_owned();
    };
    let known: Vec<&str> = quoted.collect();
    let nearest = known
        .iter()
        .map(|name| (strsim::damerau_levenshtein(unknown, name), *name))
        .min()
        .filter(|(distance, _)| *distance <= 2.max(unknown.chars().count() / 3));
    match nearest {
        Some((_, name)) => format!("there is no setting `{unknown}` here; did you mean `{name}`?"),
        None => format!("there is no setting `{unknown}` here; there are: {}", known.join(", ")),
    }
}
