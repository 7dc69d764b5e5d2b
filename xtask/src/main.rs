//! The project's own commands.
//!
//! `cargo xtask test` checks everything there is to check and installs what that needs; `.ci/run` calls it too.
//! `cargo xtask tidy` is the part of it that takes a second: the rules of this repository that no other tool knows.
//! `cargo xtask services` runs the real engines (`tests/harness/services`).

mod arguments;
mod process;
mod services;
mod steps;
mod tidy;
mod tools;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result};

use crate::arguments::Command;

/// Where things are.
struct Places {
    /// Top folder of the repository.
    root: PathBuf,
    /// Cargo's target folder; tools that are installed for the tests live in it too.
    target: PathBuf,
}

impl Places {
    fn find() -> Result<Self> {
        // Of this run: clones that share a target folder share the executable, too.
        let own = std::env::var_os("CARGO_MANIFEST_DIR").context("run it as `cargo xtask`")?;
        let root = Path::new(&own).parent().context("xtask has no folder above it")?;
        // Cargo puts this program at TARGET/debug/xtask, whatever its settings are.
        let program = std::env::current_exe().context("cannot tell where this program is")?;
        let target = program.ancestors().nth(2).context("this program is not in a target folder")?;
        Ok(Self { root: root.to_owned(), target: target.to_owned() })
    }

    /// The product, as the build step leaves it.
    fn binary(&self) -> PathBuf {
        self.target.join("release/catchment")
    }
}

fn main() -> ExitCode {
    let outcome = arguments::parse(std::env::args().skip(1)).and_then(|command| {
        let places = Places::find()?;
        match command {
            Command::Help => {
                print!("{}", arguments::HELP);
                steps::print_list();
                Ok(true)
            }
            Command::Test(selection) => steps::run(&places, &selection),
            Command::Tidy => {
                let findings = tidy::check(&places.root)?;
                findings.iter().for_each(|finding| println!("{finding}"));
                Ok(findings.is_empty())
            }
            Command::Services(arguments) => {
                let mut command = tools::services(&places)?;
                Ok(command.args(arguments).status().context("cannot start Python")?.success())
            }
        }
    });
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}
