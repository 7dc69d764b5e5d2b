//! The steps of `cargo xtask test`, in the order in which they run: tools, then what is refused within seconds, then
//! the one expensive build, then everything that uses it.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::arguments::Selection;
use crate::process::{Outcome, Tally};
use crate::services::Services;
use crate::{Places, process, tidy, tools};

struct Step {
    name: &'static str,
    about: &'static str,
    run: fn(&Places, &Selection) -> Result<Done>,
}

const STEPS: &[Step] = &[
    Step { name: "tools", about: "what the other steps need is installed", run: install_tools },
    Step { name: "format", about: "the sources are formatted", run: format },
    Step { name: "tidy", about: "the rules of this repository hold", run: check_tidy },
    Step { name: "build", about: "the product builds, as users build it", run: build },
    Step { name: "clippy", about: "clippy has nothing to say", run: clippy },
    Step { name: "test", about: "unit, integration and documentation tests pass", run: test },
    Step { name: "fuzz", about: "what meets bytes from outside stands made-up ones", run: fuzz },
    Step { name: "pytest", about: "the product does what it should, driven from outside", run: pytest },
    Step { name: "doc", about: "the documentation builds without warnings", run: doc },
    Step { name: "deny", about: "licences, sources and advisories of all dependencies", run: deny },
];

/// Names of all steps.
pub(crate) fn names() -> impl Iterator<Item = &'static str> {
    STEPS.iter().map(|step| step.name)
}

/// Prints what the steps are.
pub(crate) fn print_list() {
    for step in STEPS {
        println!("    {:<8} {}", step.name, step.about);
    }
}

/// How a step went that could be carried out.
#[derive(Default)]
struct Done {
    /// Tests counted; nothing for a step that is one check.
    tally: Tally,
    /// Whether what was checked is as it should be.
    is_good: bool,
    /// Checks that were left out, with the reason.
    not_run: Vec<String>,
}

impl Done {
    fn good() -> Self {
        Self { is_good: true, ..Self::default() }
    }
}

struct Line {
    name: &'static str,
    took: Duration,
    outcome: String,
}

/// Runs what is selected, prints a summary, and says whether all is well.
pub(crate) fn run(places: &Places, selection: &Selection) -> Result<bool> {
    let chosen: Vec<_> = STEPS.iter().filter(|step| selection.has(step.name)).collect();
    if chosen.is_empty() {
        bail!("no step is left to run");
    }
    let mut total = Tally::default();
    let mut lines = Vec::new();
    let mut not_run = Vec::new();
    for step in chosen {
        println!("\n━━━━ {}: {}", step.name, step.about);
        let started = Instant::now();
        let mut done = (step.run)(places, selection).unwrap_or_else(|error| {
            println!("{error:#}");
            Done::default()
        });
        // A step without tests of its own counts as one; so does a step that broke off before it could fail a test.
        match done.is_good {
            true if done.tally == Tally::default() => done.tally.passed = 1,
            false if done.tally.failed == 0 => done.tally.failed = 1,
            _ => {}
        }
        let took = started.elapsed();
        let outcome = match done.is_good {
            true => format!("ok, {} passed", done.tally.passed),
            false => format!("FAILED, {} passed, {} failed", done.tally.passed, done.tally.failed),
        };
        println!("━━━━ {}: {outcome} ({:.1} s)", step.name, took.as_secs_f64());
        total += done.tally;
        lines.push(Line { name: step.name, took, outcome });
        not_run.append(&mut done.not_run);
        if !done.is_good && !selection.keep_going {
            break;
        }
    }
    print_summary(selection, &lines, &not_run);
    println!("{} passed, {} failed", total.passed, total.failed);
    Ok(total.failed == 0)
}

fn print_summary(selection: &Selection, lines: &[Line], not_run: &[String]) {
    println!("\n━━━━ summary");
    for step in STEPS {
        match lines.iter().find(|line| line.name == step.name) {
            Some(line) => println!("{:<8} {:>7.1} s  {}", step.name, line.took.as_secs_f64(), line.outcome),
            None if selection.has(step.name) => {
                println!("{:<8} {:>9}  not run: an earlier step failed", step.name, "")
            }
            None => println!("{:<8} {:>9}  not run: not selected", step.name, ""),
        }
    }
    not_run.iter().for_each(|what| println!("NOT RUN  {what}"));
}

fn cargo(places: &Places, arguments: &str) -> Command {
    let mut command = Command::new(tools::cargo());
    command.current_dir(&places.root).args(arguments.split_whitespace());
    // One target folder for everything, however this program came to know it.
    command.env("CARGO_TARGET_DIR", &places.target);
    // What Cargo says of us is nothing of what is built: build scripts that look at it would run anew, and all that depends
    // on them be built anew, whenever a developer calls Cargo by hand in between.
    let of_us = |name: &str| name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_");
    std::env::vars().filter(|(name, _)| of_us(name)).for_each(|(name, _)| {
        command.env_remove(name);
    });
    command
}

fn one_command(mut command: Command) -> Result<Done> {
    process::run(&mut command).map(|()| Done::good())
}

/// Runs tests, with the services that they need.
fn counted(places: &Places, command: &mut Command) -> Result<Done> {
    let services = Services::start(places)?;
    let Outcome { tally, is_good, mut not_run } =
        process::run_counted(command.envs(services.variables.iter().cloned()))?;
    not_run.extend(services.not_run.iter().cloned());
    Ok(Done { tally, is_good, not_run })
}

/// First of all, so that a tool that cannot be had is known before the long build and not after it.
fn install_tools(places: &Places, selection: &Selection) -> Result<Done> {
    if selection.has("pytest") || selection.has("test") {
        tools::install_commands()?;
        tools::python(places)?;
    }
    if selection.has("deny") {
        tools::cargo_deny(places)?;
    }
    Ok(Done::good())
}

fn format(places: &Places, _: &Selection) -> Result<Done> {
    one_command(cargo(places, "fmt --all --check"))
}

fn check_tidy(places: &Places, _: &Selection) -> Result<Done> {
    let findings = tidy::check(&places.root)?;
    findings.iter().for_each(|finding| println!("{finding}"));
    Ok(Done { is_good: findings.is_empty(), ..Done::default() })
}

fn build(places: &Places, _: &Selection) -> Result<Done> {
    one_command(cargo(places, "build --locked --release -p catchment"))
}

/// In the release profile, too: build scripts, which build libraries of C, and procedural macros are those of the other steps.
fn clippy(places: &Places, _: &Selection) -> Result<Done> {
    one_command(cargo(places, "clippy --locked --release --workspace --all-targets -- -D warnings"))
}

/// In the release profile, so that dependencies are built once for users, tests and benchmarks.
fn test(places: &Places, _: &Selection) -> Result<Done> {
    counted(places, &mut cargo(places, "test --locked --release --workspace --no-fail-fast"))
}

/// Targets of `fuzz/targets`, and the largest input that is made up for each, in bytes.
const FUZZ_TARGETS: &[(&str, u32)] =
    &[("packet", 2048), ("topics", 512), ("sessions", 256), ("journal", 4096), ("proxy", 512)];
/// How long each is given beyond its kept inputs, in seconds.
const FUZZ_S: u32 = 8;

/// Tries all inputs that are kept in `fuzz/corpus`, then goes on from them for a while. New ones that reach new code are
/// left in the target folder, where the next run finds them.
fn fuzz(places: &Places, _: &Selection) -> Result<Done> {
    let mut build = cargo(places, "build --locked --release -p catchment-fuzz");
    build.env("RUSTC_WORKSPACE_WRAPPER", places.root.join("fuzz/rustc-with-coverage.sh"));
    process::run(&mut build)?;
    let mut done = Done::good();
    for (target, bytes_max) in FUZZ_TARGETS {
        let found = places.target.join("fuzz").join(target);
        std::fs::create_dir_all(&found).with_context(|| format!("cannot make {}", found.display()))?;
        let mut run = Command::new(places.target.join("release").join(format!("fuzz_{target}")));
        run.current_dir(&places.root).arg(&found).arg(places.root.join("fuzz/corpus").join(target));
        run.arg(format!("-max_total_time={FUZZ_S}")).arg(format!("-max_len={bytes_max}"));
        run.arg(format!("-artifact_prefix={}/{target}-", places.target.join("fuzz").display()));
        run.args(["-timeout=10", "-rss_limit_mb=1024", "-verbosity=0", "-print_final_stats=1"]);
        match process::run(&mut run) {
            Ok(()) => done.tally.passed += 1,
            Err(error) => {
                println!(
                    "{error:#}: the input is the file named above; CONTRIBUTING.md tells how to repeat it"
                );
                done.tally.failed += 1;
                done.is_good = false;
            }
        }
    }
    Ok(done)
}

fn pytest(places: &Places, selection: &Selection) -> Result<Done> {
    let binary = places.binary();
    if !binary.is_file() {
        bail!("there is no {}: run the step `build` before", binary.display());
    }
    tools::install_commands()?;
    let python = tools::python(places)?;
    let mut command = Command::new(python);
    command.current_dir(&places.root).args(["-m", "pytest", "tests"]).env("CATCHMENT_BIN", binary);
    if let Some(expression) = &selection.expression {
        command.args(["-k", expression]);
    }
    counted(places, &mut command)
}

fn doc(places: &Places, _: &Selection) -> Result<Done> {
    let mut command = cargo(places, "doc --locked --release --workspace --no-deps --document-private-items");
    command.env("RUSTDOCFLAGS", "-D warnings");
    one_command(command)
}

fn deny(places: &Places, _: &Selection) -> Result<Done> {
    let program = tools::cargo_deny(places)?;
    let deny = |arguments: &str| {
        let mut command = Command::new(&program);
        command.current_dir(&places.root).args(arguments.split_whitespace());
        command
    };
    process::run(&mut deny("--locked check licenses bans sources"))?;
    let mut done = Done::good();
    match tools::advisories() {
        tools::Advisories::Reachable => process::run(&mut deny("--locked check advisories"))?,
        tools::Advisories::CopyFrom(path) => {
            process::run(&mut deny("--locked --offline check advisories"))?;
            done.not_run.push(newest_advisories_not_checked(&path));
        }
        tools::Advisories::None => {
            let reason = "advisories: not checked, the database could not be reached";
            println!("{reason}");
            done.not_run.push(reason.to_owned());
        }
    }
    Ok(done)
}

fn newest_advisories_not_checked(copy: &Path) -> String {
    let copy = copy.display();
    format!("advisories: checked with the copy at {copy} only, the database could not be reached")
}
