//! Real services for the time of a test: started unless they run, and stopped again if they did not.

use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::process::output_of;
use crate::{Places, tools};

/// Services that tests of this workspace need.
const NEEDED: &str = "kafka,postgres,clickhouse,redis,s3";

/// Running services.
pub(crate) struct Services<'a> {
    places: &'a Places,
    /// Whether they are ours to stop.
    are_own: bool,
    /// Name and value of the environment variables that tell tests where they are.
    pub variables: Vec<(String, String)>,
    /// What cannot be tested, because a service cannot be had.
    pub not_run: Vec<String>,
}

impl<'a> Services<'a> {
    /// Starts what tests need.
    ///
    /// # Errors
    /// A service cannot be had, in CI: the variable `CI` is set. Elsewhere it is told in `not_run`.
    pub(crate) fn start(places: &'a Places) -> Result<Self> {
        let mut services = Self { places, are_own: false, variables: Vec::new(), not_run: Vec::new() };
        services.are_own =
            services.command("status")?.output().context("cannot start Python")?.status.code() != Some(0);
        match services.command("up").and_then(|mut up| output_of(&mut up)) {
            Ok(output) => services.variables = variables_in(&output),
            Err(error) if is_ci() => bail!("{error:#}"),
            Err(error) => {
                println!("{error:#}");
                services.not_run.push(format!("tests that need {NEEDED}: it cannot be had here, see above"));
            }
        }
        Ok(services)
    }

    fn command(&self, action: &str) -> Result<Command> {
        let mut command = tools::services(self.places)?;
        command.args([action, "--only", NEEDED]);
        Ok(command)
    }
}

impl Drop for Services<'_> {
    fn drop(&mut self) {
        if !self.are_own {
            return;
        }
        let stopped = self.command("down").and_then(|mut down| output_of(&mut down));
        if let Err(error) = stopped {
            println!("{NEEDED} was not stopped: {error:#}");
        }
    }
}

/// Whether nothing may be left out.
fn is_ci() -> bool {
    std::env::var_os("CI").is_some_and(|value| !value.is_empty())
}

fn variables_in(output: &str) -> Vec<(String, String)> {
    let variable = |line: &str| {
        line.strip_prefix("export ")?.split_once('=').map(|(name, value)| (name.to_owned(), value.to_owned()))
    };
    output.lines().filter_map(variable).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_are_those_that_a_shell_would_take() {
        let found = variables_in("export CATCHMENT_TEST_KAFKA=127.0.0.1:9092\nother\nexport A=b=c\n");
        let expected = [("CATCHMENT_TEST_KAFKA", "127.0.0.1:9092"), ("A", "b=c")];
        assert_eq!(found, expected.map(|(name, value)| (name.to_owned(), value.to_owned())));
    }
}
