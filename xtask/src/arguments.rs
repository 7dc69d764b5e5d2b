//! What was asked for on the command line.

use anyhow::{Result, bail};

use crate::steps;

/// Printed by `cargo xtask help`, before the list of steps.
pub(crate) const HELP: &str = "\
cargo xtask test [--only STEP,…] [--skip STEP,…] [-k EXPRESSION] [--keep-going]
    Runs all checks in order and stops at the first that fails.
    --only, --skip   choose steps; what the chosen steps need is installed in any case
    -k EXPRESSION    given to pytest: only tests whose names match; implies --only pytest when nothing is chosen
    --keep-going     goes on after a failure
cargo xtask tidy
    Checks only the rules of this repository.
cargo xtask services up|down|status [--only NAME,…] [--wipe]
    Runs real services on free ports of loopback, with their data in the target folder, for tests and for trying things
    out: kafka, postgres, redis, s3, mosquitto, and, when it is named, clickhouse. `up` installs what is missing and
    prints the variables that tests take; `down --wipe` removes the data too.

Steps, in order:
";

/// A command of xtask.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Command {
    /// Explain.
    Help,
    /// Run steps.
    Test(Selection),
    /// Run the tidy check alone.
    Tidy,
    /// Start, stop or show real services; the arguments are understood there.
    Services(Vec<String>),
}

/// Which steps, and how.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Selection {
    /// Only these; all when empty.
    pub only: Vec<String>,
    /// Not these.
    pub skip: Vec<String>,
    /// For pytest.
    pub expression: Option<String>,
    /// Go on after a failure.
    pub keep_going: bool,
}

impl Selection {
    /// Whether the step named so is to run.
    pub(crate) fn has(&self, step: &str) -> bool {
        let named = |names: &[String]| names.iter().any(|name| name == step);
        (self.only.is_empty() || named(&self.only)) && !named(&self.skip)
    }
}

/// Understands the arguments after the program's name.
pub(crate) fn parse(mut arguments: impl Iterator<Item = String>) -> Result<Command> {
    match arguments.next().as_deref() {
        Some("test") => parse_test(arguments).map(Command::Test),
        Some("tidy") => match arguments.next() {
            None => Ok(Command::Tidy),
            Some(other) => bail!("tidy takes no arguments, but there is `{other}`"),
        },
        Some("services") => Ok(Command::Services(arguments.collect())),
        None | Some("help" | "--help" | "-h") => Ok(Command::Help),
        Some(other) => bail!("there is no command `{other}`; see `cargo xtask help`"),
    }
}

fn parse_test(mut arguments: impl Iterator<Item = String>) -> Result<Selection> {
    let mut selection = Selection::default();
    while let Some(argument) = arguments.next() {
        let (flag, inline) = match argument.split_once('=') {
            Some((flag, value)) => (flag.to_owned(), Some(value.to_owned())),
            None => (argument, None),
        };
        let mut value = || match inline.clone().or_else(|| arguments.next()) {
            Some(value) => Ok(value),
            None => bail!("{flag} wants a value; see `cargo xtask help`"),
        };
        match flag.as_str() {
            "--only" => selection.only.extend(step_names(&value()?)?),
            "--skip" => selection.skip.extend(step_names(&value()?)?),
            "-k" => selection.expression = Some(value()?),
            "--keep-going" => selection.keep_going = true,
            _ => bail!("`cargo xtask test` does not know {flag}; see `cargo xtask help`"),
        }
    }
    if selection.expression.is_some() && selection.only.is_empty() {
        selection.only.push("pytest".to_owned());
    }
    Ok(selection)
}

fn step_names(list: &str) -> Result<Vec<String>> {
    let known: Vec<_> = steps::names().collect();
    list.split(',')
        .map(|name| match known.contains(&name) {
            true => Ok(name.to_owned()),
            false => bail!("there is no step `{name}`; the steps are {}", known.join(", ")),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(line: &str) -> Result<Command> {
        parse(line.split_whitespace().map(str::to_owned))
    }

    #[test]
    fn steps_are_chosen() {
        let Command::Test(selection) =
            parsed("test --only clippy,pytest --skip=pytest --keep-going").unwrap()
        else {
            panic!("not a test command");
        };
        assert!(selection.has("clippy") && !selection.has("pytest") && !selection.has("format"));
        assert!(selection.keep_going);
    }

    #[test]
    fn an_expression_means_pytest() {
        let expected = Selection {
            only: vec!["pytest".to_owned()],
            expression: Some("mqtt".to_owned()),
            ..Selection::default()
        };
        assert_eq!(parsed("test -k mqtt").unwrap(), Command::Test(expected));
    }

    #[test]
    fn mistakes_are_told() {
        let message = |line: &str| parsed(line).unwrap_err().to_string();
        assert!(
            message("test --only lint")
                .starts_with("there is no step `lint`; the steps are tools, format, tidy,")
        );
        assert!(message("test --only").contains("wants a value"));
        assert!(message("test --fast").contains("does not know --fast"));
        assert!(message("deploy").contains("no command `deploy`"));
    }
}
