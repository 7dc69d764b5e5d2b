//! The rules of this repository that no other tool checks.
//!
//! - Crates depend in one direction only: [`FORBIDDEN`] is the list, checked against all that Cargo resolves.
//! - Concrete engines are named in the composition root alone, apart from tests.
//! - Tests build each dependency with the features that the product has, or it would be built twice.
//! - Documents name files that exist; sources are short, have a head and leave nothing to do.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};

use crate::process::output_of;
use crate::tools::cargo;

const LINES_MAX: usize = 700;

/// A crate, what must not be among its dependencies, direct or not, and the reason. Dependencies of tests are free.
const FORBIDDEN: &[(&str, &[&str], &str)] = &[
    ("catchment-types", &["tokio", "datafusion"], "the words of the platform do no I/O"),
    ("catchment-decode", &["tokio", "datafusion"], "decoding is pure"),
    (
        "catchment-gateway",
        &["catchment-store", "catchment-serve", "catchment-distribute", "catchment-decode", "datafusion"],
        "the gateway sees the log and nothing behind it",
    ),
    (
        "catchment-eventlog",
        &["catchment-gateway", "catchment-decode", "catchment-store", "catchment-serve", "datafusion"],
        "the log knows neither who writes nor who reads",
    ),
    (
        "catchment-store",
        &["catchment-gateway", "catchment-eventlog", "catchment-distribute", "catchment-serve"],
        "what is stored does not know where it came from",
    ),
    (
        "catchment-distribute",
        &["catchment-gateway", "catchment-serve"],
        "distribution reads the log and fills the store",
    ),
    (
        "catchment-serve",
        &["catchment-gateway", "catchment-eventlog", "catchment-distribute"],
        "answers come from the store alone",
    ),
    (
        "catchment-sim",
        &["catchment-gateway", "catchment-eventlog", "catchment-store", "catchment-serve", "datafusion"],
        "simulated worlds speak the real protocols",
    ),
];

/// Words that only one folder's code may say, with that folder's neighbours that may too.
const ENGINE_NAMES: &[(&str, &[&str])] = &[
    ("eventlog::embedded", &["crates/catchment/", "crates/eventlog/", "xtask/"]),
    ("eventlog::kafka", &["crates/catchment/", "crates/eventlog/", "xtask/"]),
    ("store::redis", &["crates/catchment/", "crates/store/", "xtask/"]),
];

/// First folders of the paths that documents name.
const TOP_FOLDERS: &[&str] =
    &["crates", "xtask", "tests", "bench", "docs", "deploy", "studio", ".ci", ".cargo"];

/// Something that breaks a rule.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Finding {
    /// File, with the line where there is one; or crate.
    place: String,
    /// What is wrong, and what to do.
    message: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.place, self.message)
    }
}

/// Checks everything.
pub(crate) fn check(root: &Path) -> Result<Vec<Finding>> {
    let mut findings = Vec::new();
    let listing = output_of(Command::new("git").current_dir(root).args([
        "ls-files",
        "--cached",
        "--others",
        "--exclude-standard",
    ]))
    .context("listing the files of the repository")?;
    // A file that was removed and not committed yet is still listed.
    let files: BTreeSet<_> = listing.lines().filter(|file| root.join(file).is_file()).collect();
    for file in &files {
        let path = root.join(file);
        if !["rs", "py", "sh", "toml", "md"].contains(&extension(file)) {
            continue;
        }
        let text =
            std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        findings.extend(check_text(file, &text));
        if extension(file) == "md" {
            findings.extend(missing_paths(file, &text, |path| root.join(path).exists()));
        }
    }
    findings.extend(check_directions(root)?);
    findings.extend(check_features(root)?);
    Ok(findings)
}

fn extension(file: &str) -> &str {
    Path::new(file).extension().and_then(|extension| extension.to_str()).unwrap_or("")
}

fn is_test(file: &str) -> bool {
    file.ends_with("/tests.rs")
        || file.contains("/tests/")
        || file.starts_with("tests/")
        || file.contains("/benches/")
}

/// What one file's text alone shows.
fn check_text(file: &str, text: &str) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut find = |place: String, message: String| findings.push(Finding { place, message });
    let is_code = ["rs", "py", "sh"].contains(&extension(file));
    let lines = text.lines().count();
    if is_code && lines > LINES_MAX {
        find(
            file.to_owned(),
            format!("has {lines} lines, at most {LINES_MAX} are allowed: is it still one thing?"),
        );
    }
    if extension(file) == "rs" && file.contains("/src/") && !is_test(file) && !text.starts_with("//!") {
        find(
            file.to_owned(),
            "begins without `//!`: say what the file is, its formats and limits first".to_owned(),
        );
    }
    // Written in two parts, so that this file does not find itself.
    let unfinished = [concat!("TO", "DO"), concat!("FIX", "ME"), concat!("XX", "X:")];
    let mut in_tests = is_test(file);
    for (number, line) in text.lines().enumerate() {
        let place = || format!("{file}:{}", number + 1);
        in_tests |= line.trim() == "#[cfg(test)]";
        if let Some(word) = unfinished.iter().find(|word| line.contains(**word)) {
            find(place(), format!("says {word}: finish it, or write it down where work is planned"));
        }
        if extension(file) != "rs" || in_tests {
            continue;
        }
        for (name, allowed) in ENGINE_NAMES {
            if line.contains(name) && !allowed.iter().any(|folder| file.starts_with(folder)) {
                find(place(), format!("names the engine {name}: only crates/catchment chooses engines"));
            }
        }
    }
    findings
}

/// Paths in backticks and in links of a document that do not exist.
fn missing_paths(document: &str, text: &str, exists: impl Fn(&str) -> bool) -> Vec<Finding> {
    let folder = document.rsplit_once('/').map_or("", |(folder, _)| folder);
    let mut findings = Vec::new();
    let mut in_block = false;
    for (number, line) in text.lines().enumerate() {
        if line.trim_start().starts_with("```") {
            in_block = !in_block;
        }
        if in_block {
            continue;
        }
        let quoted = line.split('`').skip(1).step_by(2).filter_map(repository_path).map(str::to_owned);
        let linked = links(line).map(|link| join(folder, link));
        for path in quoted.chain(linked).filter(|path| !exists(path)) {
            let place = format!("{document}:{}", number + 1);
            findings.push(Finding { place, message: format!("names {path}, which does not exist") });
        }
    }
    findings
}

/// The path that a piece of code in a document means, if it means one: `crates/types/src/time.rs:12` does.
fn repository_path(code: &str) -> Option<&str> {
    let path = code.split([':', '#']).next()?.trim_end_matches('/');
    let (top, _) = path.split_once('/')?;
    let is_path = path.chars().all(|c| c.is_ascii_alphanumeric() || "/._-".contains(c));
    (is_path && TOP_FOLDERS.contains(&top)).then_some(path)
}

/// Targets of Markdown links into the repository.
fn links(line: &str) -> impl Iterator<Item = &str> {
    line.split("](").skip(1).filter_map(|rest| rest.split(')').next()).filter_map(|link| {
        let path = link.split('#').next().unwrap_or("");
        (!path.is_empty() && !path.contains(':')).then_some(path)
    })
}

fn join(folder: &str, link: &str) -> String {
    let mut parts: Vec<_> = folder.split('/').filter(|part| !part.is_empty()).collect();
    for part in link.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    parts.join("/")
}

fn check_directions(root: &Path) -> Result<Vec<Finding>> {
    let mut findings = Vec::new();
    for (package, forbidden, reason) in FORBIDDEN {
        let tree = packages(root, &["--package", package, "--edges", "normal"])?;
        for name in forbidden.iter().filter(|name| tree.keys().any(|found| name_of(found) == **name)) {
            let message =
                format!("depends on {name}: {reason} (`cargo tree -p {package} -i {name}` shows the way)");
            findings.push(Finding { place: (*package).to_owned(), message });
        }
    }
    Ok(findings)
}

fn check_features(root: &Path) -> Result<Vec<Finding>> {
    let product = packages(root, &["--package", "catchment", "--edges", "normal,build"])?;
    let tests = packages(root, &["--workspace", "--edges", "normal,build,dev"])?;
    let different = product.iter().filter(|(package, features)| tests.get(*package) != Some(features));
    Ok(different
        .map(|(package, features)| Finding {
            place: package.clone(),
            message: format!(
                "the tests build it with the features {:?}, the product with {features:?}, so it and all that depends on it \
                 is built twice: make them equal in Cargo.toml",
                tests.get(package).cloned().unwrap_or_default()
            ),
        })
        .collect())
}

/// Packages (`name vVERSION`) of a dependency tree with the feature sets that they are built with.
fn packages(root: &Path, selection: &[&str]) -> Result<BTreeMap<String, BTreeSet<String>>> {
    let mut command = Command::new(cargo());
    command
        .current_dir(root)
        .args(["tree", "--locked", "--prefix", "none", "--format", "{p}|{f}"])
        .args(selection);
    let mut packages = BTreeMap::<String, BTreeSet<String>>::new();
    for line in output_of(&mut command)?.lines() {
        let Some((package, features)) = line.trim_end_matches(" (*)").split_once('|') else { continue };
        packages.entry(package.to_owned()).or_default().insert(features.trim().to_owned());
    }
    Ok(packages)
}

fn name_of(package: &str) -> &str {
    package.split(' ').next().unwrap_or(package)
}

#[cfg(test)]
mod tests;
