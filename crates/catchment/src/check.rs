//! `catchment check`: is this configuration sound, what do the engines resolve to, what does the machine give.

mod bridges;
mod clickhouse;
#[cfg(feature = "kafka")]
mod kafka;
mod redis;
mod s3;
mod tls;

use std::fs;
use std::io::Write;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use anyhow::Context;
use catchment_gateway::transport::{ListenerConfig, Protocol};
use catchment_store::registry::RegistryPlace;

use crate::admission;
use crate::engines::{self, Engine, Seam};
use crate::folder;
use crate::settings::{MEMORY_BYTES_MIN, Settings};
use crate::table;

const FREE_BYTES_MIN: u64 = 1 << 30;
const SYNCS: u32 = 20;
/// A block as the log writes it under light load.
const SYNC_BYTES: usize = 16 * 1024;
const SYNC_SLOW: Duration = Duration::from_millis(20);

/// One line of the table.
struct Finding {
    what: String,
    found: String,
    verdict: Verdict,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Verdict {
    Good,
    /// It works, but.
    Note(String),
    /// It does not work.
    Bad(String),
}

/// Prints the table; success when everything is sound.
///
/// # Errors
/// The settings cannot be read at all.
pub(crate) fn check<E: std::error::Error + Send + Sync + 'static>(
    settings: Result<Settings, E>,
) -> anyhow::Result<ExitCode> {
    let settings = settings.context("the settings are not sound")?;
    let mut findings = Vec::new();
    findings.extend(sections(&settings));
    findings.extend(Seam::ALL.map(|seam| engine(&settings, seam)));
    findings.push(roles(&settings));
    findings.extend(settings.all_listeners().iter().map(listener));
    findings.extend(tls::findings(&settings.tls));
    findings.extend(bridges::findings(&settings));
    #[cfg(feature = "kafka")]
    findings.extend(settings.kafka_sources().map(kafka::source));
    findings.push(access(&settings));
    findings.extend(data_folder(&settings));
    let rows: Vec<Vec<String>> = findings
        .iter()
        .map(|finding| {
            let verdict = match &finding.verdict {
                Verdict::Good => "ok".to_owned(),
                Verdict::Note(note) => format!("ok, but {note}"),
                Verdict::Bad(reason) => format!("NOT OK: {reason}"),
            };
            vec![finding.what.clone(), finding.found.clone(), verdict]
        })
        .collect();
    print!("{}", table::render(&["what", "is", "verdict"], &rows));
    let bad = findings.iter().filter(|finding| matches!(finding.verdict, Verdict::Bad(_))).count();
    if bad == 0 {
        println!("\nsound");
        return Ok(ExitCode::SUCCESS);
    }
    println!("\n{bad} finding{} to mend", if bad == 1 { "" } else { "s" });
    Ok(ExitCode::FAILURE)
}

fn finding(what: impl Into<String>, found: impl Into<String>, verdict: Verdict) -> Finding {
    Finding { what: what.into(), found: found.into(), verdict }
}

fn verdict<E: std::fmt::Display>(result: Result<(), E>) -> Verdict {
    result.map_or_else(|error| Verdict::Bad(error.to_string()), |()| Verdict::Good)
}

/// The parts' own checks of their limits.
fn sections(settings: &Settings) -> Vec<Finding> {
    let budget = settings.memory_bytes_max;
    let budget_verdict = match budget < MEMORY_BYTES_MIN {
        true => Verdict::Bad(format!("at least {} are needed", size(MEMORY_BYTES_MIN))),
        false => Verdict::Good,
    };
    vec![
        finding("memory budget", size(budget), budget_verdict),
        finding("settings [network]", "", verdict(settings.network.check())),
        finding("settings of listeners", "", verdict(settings.check_listeners())),
        finding("settings [gateway]", "", verdict(settings.gateway.check())),
        finding("settings [admission]", "", verdict(admission::check(&settings.admission))),
        finding("settings [log]", partitions(settings.log.partitions), verdict(settings.log.check())),
    ]
}

fn partitions(number: u32) -> String {
    match number {
        0 => "partitions: those of the log; of a new one, as many as processors".to_owned(),
        number => format!("{number} partitions"),
    }
}

fn engine(settings: &Settings, seam: Seam) -> Finding {
    let url = settings.engines.get(seam);
    let shown = url.map(engines::hide_credentials).unwrap_or_default();
    match engines::resolve(seam, &settings.engines, &settings.data) {
        Ok(Engine::Postgres(url)) => {
            let (found, verdict) = match probe_registry(&url) {
                Ok(found) => (format!("{shown} → {found}"), Verdict::Good),
                Err(error) => (shown, Verdict::Bad(error)),
            };
            finding(format!("engine {}", seam.name()), found, verdict)
        }
        #[cfg(feature = "kafka")]
        Ok(Engine::Kafka(target)) => kafka::finding(*target, &settings.log),
        Ok(Engine::ClickHouse(target)) => {
            let archive = engines::resolve(Seam::Archive, &settings.engines, &settings.data).ok();
            let place = archive.and_then(|engine| engine.place()).map(|place| place.to_string());
            clickhouse::finding(&target, place.as_deref())
        }
        Ok(Engine::S3(place)) => s3::finding(seam, &place),
        Ok(Engine::Redis(target)) => redis::finding(&target),
        Ok(engine) => {
            let arrow = if shown.is_empty() { "" } else { " → " };
            finding(format!("engine {}", seam.name()), format!("{shown}{arrow}{engine}"), Verdict::Good)
        }
        Err(error) => finding(format!("engine {}", seam.name()), shown, Verdict::Bad(error.to_string())),
    }
}

/// Asks the database what it is.
fn probe_registry(url: &str) -> Result<String, String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let place = RegistryPlace::Postgres(url.to_owned());
    runtime.map_err(|error| error.to_string())?.block_on(place.probe()).map_err(|error| error.to_string())
}

fn roles(settings: &Settings) -> Finding {
    let names: Vec<_> = settings.roles.iter().map(|role| role.name()).collect();
    finding("roles", names.join(", "), verdict(settings.check_roles()))
}

fn listener(listener: &ListenerConfig) -> Finding {
    let flag = listener.protocol.name();
    let verdict = match TcpListener::bind(listener.address) {
        Ok(_) => Verdict::Good,
        Err(error) => Verdict::Bad(format!("{error}; choose another with --{flag}")),
    };
    finding(format!("listener {flag}"), listener.address.to_string(), verdict)
}

fn access(settings: &Settings) -> Finding {
    if settings.loopback_only() {
        return finding("access", "only from this machine, without tokens too", Verdict::Good);
    }
    let is_bare = |listener: &ListenerConfig| {
        let pg_with_tls = listener.protocol == Protocol::Pg && settings.tls.is_on();
        !listener.address.ip().is_loopback() && !listener.protocol.is_tls() && !pg_with_tls
    };
    let bare: Vec<_> =
        settings.all_listeners().into_iter().filter(is_bare).map(|bare| bare.protocol.name()).collect();
    let verdict = match bare[..] {
        [] => Verdict::Good,
        _ => Verdict::Note(format!("tokens and data cross the network without TLS ({})", bare.join(", "))),
    };
    finding("access", "from other machines, only with a token or a client certificate", verdict)
}

fn data_folder(settings: &Settings) -> Vec<Finding> {
    let path = &settings.data;
    // Looking must not leave a folder behind: what does not exist yet is judged by the folder it will be made in.
    let existing = nearest_existing(path);
    let shown = path.display().to_string();
    let mut findings = Vec::new();
    if path.exists()
        && let Err(error) = folder::DataFolder::open(path)
    {
        return vec![finding("data folder", shown, Verdict::Bad(format!("{error:#}")))];
    }
    match sync_speed(&existing) {
        Ok(took) => {
            let verdict =
                if path.exists() { Verdict::Good } else { Verdict::Note("it will be made".to_owned()) };
            findings.push(finding("data folder", shown, verdict));
            let note = Verdict::Note("every acknowledgement waits that long".to_owned());
            let verdict = if took > SYNC_SLOW { note } else { Verdict::Good };
            findings.push(finding(
                "write and fsync",
                format!("{:.2} ms (median of {SYNCS})", took.as_secs_f64() * 1e3),
                verdict,
            ));
        }
        Err(error) => {
            findings.push(finding(
                "data folder",
                shown,
                Verdict::Bad(format!("it is not writable: {error}")),
            ));
        }
    }
    match free_bytes(&existing) {
        Some(free) if free < FREE_BYTES_MIN => {
            let note = format!("less than {} is soon full", size(FREE_BYTES_MIN));
            findings.push(finding("free disk space", size(free), Verdict::Note(note)));
        }
        Some(free) => findings.push(finding("free disk space", size(free), Verdict::Good)),
        None => findings.push(finding(
            "free disk space",
            "",
            Verdict::Note("it could not be found out".to_owned()),
        )),
    }
    findings
}

fn nearest_existing(path: &Path) -> PathBuf {
    let absolute = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    absolute.ancestors().find(|ancestor| ancestor.exists()).unwrap_or(Path::new("/")).to_owned()
}

/// The median time of writing a block and syncing it, as the log does.
fn sync_speed(folder: &Path) -> std::io::Result<Duration> {
    let path = folder.join(format!(".catchment-check-{}", std::process::id()));
    let measure = || {
        let mut file = fs::File::create_new(&path)?;
        let block = vec![0x5A; SYNC_BYTES];
        let mut times = Vec::new();
        for _ in 0..SYNCS {
            let started = Instant::now();
            file.write_all(&block)?;
            file.sync_data()?;
            times.push(started.elapsed());
        }
        times.sort_unstable();
        Ok(times[times.len() / 2])
    };
    let result = measure();
    let _ = fs::remove_file(&path);
    result
}

/// Free bytes for us where this folder is. The standard library has no call for it; every system has `df`.
fn free_bytes(folder: &Path) -> Option<u64> {
    let output = Command::new("df").arg("-Pk").arg(folder).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    let kibibytes: u64 = text.lines().nth(1)?.split_whitespace().nth(3)?.parse().ok()?;
    kibibytes.checked_mul(1024)
}

fn size(bytes: u64) -> String {
    const GIB: f64 = (1u64 << 30) as f64;
    if bytes >= 1 << 30 { format!("{:.1} GiB", bytes as f64 / GIB) } else { format!("{} MiB", bytes >> 20) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn looking_leaves_nothing_behind() {
        let dir = tempfile::tempdir().unwrap();
        let settings = Settings { data: dir.path().join("new/data"), ..Settings::default() };
        let findings = data_folder(&settings);
        assert_eq!(findings[0].verdict, Verdict::Note("it will be made".to_owned()));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
        assert!(free_bytes(dir.path()).unwrap() > 0);
    }

    #[test]
    fn taken_ports_and_unknown_engines_are_found() {
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let found = listener(&ListenerConfig::new(Protocol::Mqtt, taken.local_addr().unwrap()));
        assert!(matches!(found.verdict, Verdict::Bad(reason) if reason.contains("--mqtt")));
        let mut settings = Settings::default();
        settings.engines.snapshot = "memcached://u:secret@h".to_owned();
        let found = engine(&settings, Seam::Snapshot);
        assert!(
            matches!(found.verdict, Verdict::Bad(reason) if reason.contains("no engine that --snapshot knows"))
        );
        assert_eq!(found.found, "memcached://***@h");
    }
}
