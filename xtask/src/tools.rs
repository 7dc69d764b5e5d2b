//! Programs that the steps need and that Cargo does not bring. Each function finds its tool or installs it.
//!
//! Debian packages are installed by apt when we may; otherwise the error tells the command. Everything else goes into
//! the target folder, so that nothing of the machine is changed and a later run finds it again.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::Places;
use crate::process::{output_of, run, succeeds};

const PROBE_LIMIT: Duration = Duration::from_secs(20);

/// A line of shell that ends well where the tool is installed, and the Debian package that brings it.
const DEBIAN_TOOLS: &[(&str, &str)] = &[
    ("command -v mosquitto_pub && command -v mosquitto_sub", "mosquitto-clients"),
    ("command -v kcat", "kcat"),
    ("command -v mosquitto || test -x /usr/sbin/mosquitto", "mosquitto"),
    ("command -v psql", "postgresql-client"),
    ("command -v haproxy || test -x /usr/sbin/haproxy", "haproxy"),
    ("command -v curl", "curl"),
    ("command -v faketime", "faketime"),
    ("python3 -c 'import venv, ensurepip'", "python3-venv"),
];

const CARGO_DENY_VERSION: &str = "0.20.2";

/// Where RustSec publishes the advisories; the default of cargo-deny too. Git's own `url.….insteadOf` setting leads both
/// to a mirror.
const ADVISORIES_URL: &str = "https://github.com/RustSec/advisory-db";

/// The Cargo that runs us.
pub(crate) fn cargo() -> OsString {
    std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into())
}

/// Installs the commands that the tests from outside call.
pub(crate) fn install_commands() -> Result<()> {
    let missing = missing_packages();
    if missing.is_empty() {
        return Ok(());
    }
    let install = format!("apt-get install --yes --no-install-recommends {}", missing.join(" "));
    let is_root = output_of(Command::new("id").arg("-u")).is_ok_and(|id| id.trim() == "0");
    let has_apt = succeeds(Command::new("apt-get").arg("--version"), PROBE_LIMIT);
    if !(is_root && has_apt) {
        bail!(
            "these Debian packages are missing: {}\ninstall them, for instance with `sudo {install}`",
            missing.join(", ")
        );
    }
    let apt = |arguments: &str| {
        let mut command = Command::new("apt-get");
        command.args(arguments.split_whitespace()).env("DEBIAN_FRONTEND", "noninteractive");
        command
    };
    run(&mut apt("update"))?;
    run(&mut apt(install.trim_start_matches("apt-get ")))?;
    match missing_packages() {
        still if still.is_empty() => Ok(()),
        still => bail!("apt-get installed {}, and yet their commands do not work", still.join(", ")),
    }
}

fn missing_packages() -> Vec<&'static str> {
    let works = |line: &str| succeeds(Command::new("sh").args(["-c", line]), PROBE_LIMIT);
    DEBIAN_TOOLS.iter().filter(|(line, _)| !works(line)).map(|(_, package)| *package).collect()
}

/// A Python that has what `tests/requirements.txt` lists, in a virtual environment of its own.
pub(crate) fn python(places: &Places) -> Result<PathBuf> {
    let folder = places.target.join("tools/python");
    let python = folder.join("bin/python");
    let requirements = places.root.join("tests/requirements.txt");
    let wanted = std::fs::read_to_string(&requirements)
        .with_context(|| format!("cannot read {}", requirements.display()))?;
    // Written last: an installation that broke off is done again.
    let stamp = folder.join("requirements.installed");
    if python.is_file() && std::fs::read_to_string(&stamp).is_ok_and(|installed| installed == wanted) {
        return Ok(python);
    }
    run(Command::new("python3").args(["-m", "venv", "--clear"]).arg(&folder))?;
    run(Command::new(&python).args(["-m", "pip", "install", "--quiet", "--requirement"]).arg(&requirements))?;
    std::fs::write(&stamp, wanted).with_context(|| format!("cannot write {}", stamp.display()))?;
    Ok(python)
}

/// What installs, starts and stops the real services; its arguments are to be added.
pub(crate) fn services(places: &Places) -> Result<Command> {
    let mut command = Command::new(python(places)?);
    command.args(["-m", "harness.services"]).current_dir(places.root.join("tests"));
    command.env("CARGO_TARGET_DIR", &places.target);
    Ok(command)
}

/// The path of `cargo-deny`. Built with little optimisation: its own release profile takes three times as long.
pub(crate) fn cargo_deny(places: &Places) -> Result<PathBuf> {
    let folder = places.target.join("tools");
    let program = folder.join("bin/cargo-deny");
    let is_wanted = |program: &Path| {
        output_of(Command::new(program).arg("--version")).is_ok_and(|text| text.contains(CARGO_DENY_VERSION))
    };
    if is_wanted(&program) {
        return Ok(program);
    }
    let build = folder.join("build");
    let mut command = Command::new(cargo());
    command.args(["install", "--locked", "--force", "cargo-deny", "--version", CARGO_DENY_VERSION]);
    command.arg("--root").arg(&folder).arg("--target-dir").arg(&build);
    for (setting, value) in [("LTO", "off"), ("CODEGEN_UNITS", "16"), ("OPT_LEVEL", "1")] {
        command.env(format!("CARGO_PROFILE_RELEASE_{setting}"), value);
    }
    run(&mut command)?;
    // What was built on the way is a hundred times the program's size, and not needed again.
    std::fs::remove_dir_all(&build).with_context(|| format!("cannot remove {}", build.display()))?;
    Ok(program)
}

/// What is known here of security advisories.
pub(crate) enum Advisories {
    /// The database itself can be fetched.
    Reachable,
    /// Only what was fetched earlier, in this folder.
    CopyFrom(PathBuf),
    /// Nothing.
    None,
}

/// Finds out where advisories can come from.
pub(crate) fn advisories() -> Advisories {
    let mut probe = Command::new("git");
    probe.args(["ls-remote", "--exit-code", ADVISORIES_URL, "HEAD"]).env("GIT_TERMINAL_PROMPT", "0");
    if succeeds(&mut probe, PROBE_LIMIT) {
        return Advisories::Reachable;
    }
    let home = std::env::var_os("CARGO_HOME").map(PathBuf::from);
    let home = home.or_else(|| std::env::var_os("HOME").map(|home| Path::new(&home).join(".cargo")));
    let copies = home
        .map(|home| home.join("advisory-dbs"))
        .filter(|folder| std::fs::read_dir(folder).is_ok_and(|mut entries| entries.next().is_some()));
    copies.map_or(Advisories::None, Advisories::CopyFrom)
}
