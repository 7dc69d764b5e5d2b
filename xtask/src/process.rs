//! Running other programs: their output goes on to ours, and the tests that they report are counted on the way.

use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};

/// Tests that passed and failed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    /// Number of tests that passed.
    pub passed: u64,
    /// Number of tests that failed.
    pub failed: u64,
}

impl std::ops::AddAssign for Tally {
    fn add_assign(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
    }
}

/// Runs a command to its end with its output on ours.
///
/// Fails when it cannot be started or ends badly.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    print_command(command);
    let status = command.status().with_context(|| cannot_start(command))?;
    if !status.success() {
        bail!("`{}` ended with {status}", name(command));
    }
    Ok(())
}

/// What a run of tests came to.
#[derive(Debug, Default)]
pub(crate) struct Outcome {
    /// Tests counted.
    pub tally: Tally,
    /// Whether the command ended well.
    pub is_good: bool,
    /// Tests that say that they were left out, with the reason: lines that begin with [`NOT_RUN`].
    pub not_run: Vec<String>,
}

/// How a test says that it was left out.
const NOT_RUN: &str = "NOT RUN  ";

/// Like [`run`], and counts the results that `cargo test` and pytest print.
pub(crate) fn run_counted(command: &mut Command) -> Result<Outcome> {
    print_command(command);
    let mut child = command.stdout(Stdio::piped()).spawn().with_context(|| cannot_start(command))?;
    let output = child.stdout.take().context("the program's output is not connected")?;
    let mut outcome = Outcome::default();
    let mut stdout = std::io::stdout();
    for line in BufReader::new(output).split(b'\n') {
        let mut line = line.context("reading the program's output")?;
        let text = String::from_utf8_lossy(&line);
        outcome.tally += results_in(&text);
        outcome.not_run.extend(text.strip_prefix(NOT_RUN).map(|what| what.trim().to_owned()));
        line.push(b'\n');
        stdout.write_all(&line).and_then(|()| stdout.flush()).context("writing the program's output")?;
    }
    let status = child.wait().with_context(|| format!("waiting for `{}`", name(command)))?;
    outcome.is_good = status.success();
    Ok(outcome)
}

/// What a command prints, or an error that carries what it complained of.
pub(crate) fn output_of(command: &mut Command) -> Result<String> {
    let output = command.output().with_context(|| cannot_start(command))?;
    if !output.status.success() {
        bail!(
            "`{}` ended with {}: {}",
            name(command),
            output.status,
            String::from_utf8_lossy(&output.stderr)
        );
    }
    String::from_utf8(output.stdout).with_context(|| format!("the output of `{}` is not text", name(command)))
}

/// Whether a command can be started and ends well within the time; its output is dropped.
pub(crate) fn succeeds(command: &mut Command, limit: Duration) -> bool {
    let started = std::time::Instant::now();
    let silent = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let Ok(mut child) = silent.spawn() else { return false };
    while started.elapsed() < limit {
        match child.try_wait() {
            Ok(Some(status)) => return status.success(),
            Ok(None) => std::thread::sleep(Duration::from_millis(20)),
            Err(_) => break,
        }
    }
    // Too late: an error here means that it has just ended by itself, which changes nothing.
    let _ = child.kill();
    let _ = child.wait();
    false
}

fn name(command: &Command) -> String {
    command.get_program().to_string_lossy().into_owned()
}

fn cannot_start(command: &Command) -> String {
    format!("cannot start `{}`: is it installed?", name(command))
}

fn print_command(command: &Command) {
    let words: Vec<_> = std::iter::once(command.get_program())
        .chain(command.get_args())
        .map(|word| word.to_string_lossy())
        .collect();
    // Not on standard output: that of `cargo xtask services up` is for a shell.
    eprintln!("$ {}", words.join(" "));
}

/// Counts in `test result: ok. 3 passed; 0 failed; …` of cargo and `=== 1 failed, 3 passed in 0.12s ===` of pytest,
/// whose errors outside of a test count as failures.
fn results_in(line: &str) -> Tally {
    let line = without_colours(line);
    let is_pytest = line.starts_with('=') && line.ends_with('=') && line.contains(" in ");
    let parts = match line.strip_prefix("test result: ") {
        Some(results) => results.trim_start_matches("ok. ").trim_start_matches("FAILED. "),
        None if is_pytest => line.trim_matches(['=', ' ']),
        None => return Tally::default(),
    };
    let mut tally = Tally::default();
    for part in parts.split([',', ';']) {
        let mut words = part.split_whitespace();
        let (Some(Ok(count)), Some(what)) = (words.next().map(str::parse::<u64>), words.next()) else {
            continue;
        };
        match what {
            "passed" => tally.passed += count,
            "failed" | "error" | "errors" => tally.failed += count,
            _ => {}
        }
    }
    tally
}

fn without_colours(line: &str) -> String {
    let mut plain = String::with_capacity(line.len());
    let mut inside = false;
    for character in line.trim_end().chars() {
        match character {
            '\u{1b}' => inside = true,
            'm' if inside => inside = false,
            _ if inside => {}
            _ => plain.push(character),
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_are_counted() {
        let counted = |line: &str| {
            let Tally { passed, failed } = results_in(line);
            (passed, failed)
        };
        assert_eq!(counted("test result: ok. 3 passed; 0 failed; 1 ignored; 0 measured"), (3, 0));
        assert_eq!(counted("test result: FAILED. 3 passed; 2 failed; 0 ignored"), (3, 2));
        assert_eq!(counted("=== 1 failed, 30 passed, 2 errors in 61.20s (0:01:01) ==="), (30, 3));
        assert_eq!(counted("\u{1b}[32m==== \u{1b}[1m7 passed\u{1b}[0m in 1.2s ====\u{1b}[0m"), (7, 0));
        assert_eq!(counted("=== 12 deselected in 0.1s ==="), (0, 0));
        assert_eq!(counted("a line that says 5 passed in passing"), (0, 0));
    }

    #[test]
    fn a_slow_command_does_not_succeed() {
        let second = Duration::from_secs(1);
        assert!(succeeds(&mut Command::new("true"), second));
        assert!(!succeeds(&mut Command::new("false"), second));
        assert!(!succeeds(&mut Command::new("no-such-program-here"), second));
        assert!(!succeeds(Command::new("sleep").arg("5"), Duration::from_millis(50)));
    }
}
