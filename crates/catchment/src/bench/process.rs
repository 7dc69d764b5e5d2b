//! The server under measurement: started as a process of its own, its CPU and memory read from /proc.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};

use crate::client::Client;
use crate::folder;

/// Clock ticks a second in /proc; 100 on every Linux that Rust's std runs on.
const TICKS_PER_SECOND: f64 = 100.0;
const START_MAX: Duration = Duration::from_secs(30);
const STOP_MAX: Duration = Duration::from_secs(60);

/// A server that ends with this value.
pub(super) struct Server {
    child: Child,
    command: Command,
    /// Its data folder, removed at the end.
    data: PathBuf,
    pub(super) mqtt: SocketAddr,
    pub(super) client: Client,
    pub(super) token: String,
}

/// What a process used.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Usage {
    /// Seconds, user and system.
    pub(super) cpu_seconds: f64,
    /// Resident now, bytes.
    pub(super) resident_bytes: u64,
    /// Of these, what is not of a file: what the process allocated.
    pub(super) allocated_bytes: u64,
    /// Resident at most, bytes.
    pub(super) resident_bytes_max: u64,
}

impl Server {
    /// Starts `serve` of this executable on free ports with a new data folder, and waits until it is ready. `settings`:
    /// variables that it gets, as `CATCHMENT_…`.
    pub(super) fn start(config: Option<&Path>, settings: &[(&str, String)]) -> anyhow::Result<Self> {
        let data = std::env::temp_dir().join(format!("catchment-bench-{}", std::process::id()));
        fs::create_dir_all(&data).with_context(|| format!("{} cannot be made", data.display()))?;
        let [http, mqtt, pg] = free_addresses()?;
        let mut command = Command::new(std::env::current_exe()?);
        command.arg("serve").arg("--data").arg(&data);
        command.args(["--http", &http.to_string(), "--mqtt", &mqtt.to_string(), "--pg", &pg.to_string()]);
        match config {
            Some(config) => command.arg("--config").arg(config),
            // A catchment.toml that happens to lie about does not decide what is measured.
            None => command.args(["--config", "/dev/null"]),
        };
        // Nor do variables that are meant for another server.
        for (name, _) in
            std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("CATCHMENT_"))
        {
            command.env_remove(name);
        }
        for (name, value) in settings {
            command.env(format!("CATCHMENT_{name}"), value);
        }
        let child = launch(&mut command, &data)?;
        let client = Client::with_token(format!("http://{http}"), None);
        let mut server = Self { child, command, data, mqtt, client, token: String::new() };
        server.wait_ready()?;
        server.token = folder::read_admin_token(&server.data)?;
        server.client = Client::with_token(format!("http://{http}"), Some(server.token.clone()));
        Ok(server)
    }

    /// Kills it and starts it again on the same data. Gives how long it took to be ready.
    pub(super) fn kill_and_restart(&mut self) -> anyhow::Result<Duration> {
        self.child.kill()?;
        self.child.wait()?;
        let started = Instant::now();
        self.child = launch(&mut self.command, &self.data)?;
        self.wait_ready()?;
        Ok(started.elapsed())
    }

    fn wait_ready(&mut self) -> anyhow::Result<()> {
        let deadline = Instant::now() + START_MAX;
        while !self.client.is_ready() {
            if let Some(status) = self.child.try_wait()? {
                bail!("the server ended with {status}:\n{}", self.log());
            }
            if Instant::now() > deadline {
                bail!("the server is not ready after {START_MAX:?}:\n{}", self.log());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    /// One of its metrics, which has no labels.
    pub(super) fn metric(&self, name: &str) -> anyhow::Result<u64> {
        let text = self.client.text("/metrics")?;
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.and_then(|value| value.parse().ok()).with_context(|| format!("the server does not count {name}"))
    }

    /// Bytes on disk of a part of its data.
    pub(super) fn folder_bytes(&self, name: &str) -> u64 {
        folder_bytes(&self.data.join(name))
    }

    fn log(&self) -> String {
        fs::read_to_string(self.data.join("server.log")).unwrap_or_default()
    }

    pub(super) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Stops it as an operator would, and tells what it used in its whole life and what each folder of its data takes.
    pub(super) fn stop(mut self) -> anyhow::Result<(Usage, Vec<(&'static str, u64)>)> {
        let before = usage(self.pid())?;
        terminate(self.pid())?;
        let deadline = Instant::now() + STOP_MAX;
        // Until somebody waits for it, an ended process keeps its entry in /proc, with its CPU time.
        while !has_ended(self.pid()) {
            if Instant::now() > deadline {
                bail!("the server has not stopped after {STOP_MAX:?}:\n{}", self.log());
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        let cpu_seconds = cpu_seconds(self.pid())?;
        let status = self.child.wait()?;
        if !status.success() {
            bail!("the server stopped with {status}:\n{}", self.log());
        }
        let sizes = ["history", "log"].map(|name| (name, folder_bytes(&self.data.join(name)))).to_vec();
        Ok((Usage { cpu_seconds, ..before }, sizes))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Both fail only for a process that has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = fs::remove_dir_all(&self.data);
    }
}

/// Starts the server; what it says goes into a file of its data folder.
fn launch(command: &mut Command, data: &Path) -> anyhow::Result<Child> {
    let log = fs::OpenOptions::new().create(true).append(true).open(data.join("server.log"))?;
    Ok(command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).spawn()?)
}

/// CPU seconds that a process's threads have used so far, by their names without numbers. Threads that have ended are in the
/// process's sum alone.
pub(super) fn thread_seconds(pid: u32) -> anyhow::Result<BTreeMap<String, f64>> {
    let mut seconds = BTreeMap::new();
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).context("the server's process is gone")?;
    for task in tasks.flatten() {
        // One that ends meanwhile is left out.
        let Ok(stat) = fs::read_to_string(task.path().join("stat")) else { continue };
        if let Some((name, used)) = thread_of(&stat) {
            *seconds.entry(name).or_default() += used;
        }
    }
    Ok(seconds)
}

/// Name and CPU seconds of a thread, of its line in /proc.
fn thread_of(stat: &str) -> Option<(String, f64)> {
    let (head, rest) = stat.rsplit_once(')')?;
    let name = head.split_once('(')?.1.trim_end_matches(|c: char| c.is_ascii_digit() || c == '-');
    let fields: Vec<&str> = rest.split_whitespace().collect();
    // Fields 14 and 15 of proc(5), of which what is kept here begins with field 3.
    let ticks = |field: usize| fields.get(field - 3).and_then(|text| text.parse::<f64>().ok());
    Some((name.to_owned(), (ticks(14)? + ticks(15)?) / TICKS_PER_SECOND))
}

/// What a process used so far.
pub(super) fn usage(pid: u32) -> anyhow::Result<Usage> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).context("the server's process is gone")?;
    let field = |name: &str| -> u64 {
        let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default();
        line.split_whitespace().next().and_then(|number| number.parse::<u64>().ok()).unwrap_or_default()
            * 1024
    };
    Ok(Usage {
        cpu_seconds: cpu_seconds(pid)?,
        resident_bytes: field("VmRSS:"),
        allocated_bytes: field("RssAnon:"),
        resident_bytes_max: field("VmHWM:"),
    })
}

/// What stands in /proc/PID/stat after the name, which may itself have blanks and brackets.
fn stat_fields(pid: u32) -> io::Result<Vec<String>> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let rest = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
    Ok(rest.split_whitespace().map(str::to_owned).collect())
}

fn cpu_seconds(pid: u32) -> anyhow::Result<f64> {
    let fields = stat_fields(pid).context("the server's process is gone")?;
    // Fields 14 and 15 of proc(5); the first two stand before what is kept here, which begins with field 3.
    let ticks =
        |field: usize| fields.get(field - 3).and_then(|text| text.parse::<f64>().ok()).unwrap_or_default();
    Ok((ticks(14) + ticks(15)) / TICKS_PER_SECOND)
}

fn has_ended(pid: u32) -> bool {
    stat_fields(pid).map_or(true, |fields| fields.first().is_some_and(|state| state == "Z"))
}

/// SIGTERM, by the tool that every system has: the standard library has no call for it.
fn terminate(pid: u32) -> anyhow::Result<()> {
    let status =
        Command::new("kill").args(["-TERM", &pid.to_string()]).status().context("kill cannot be run")?;
    if !status.success() {
        bail!("the server's process {pid} cannot be told to stop");
    }
    Ok(())
}

/// Bytes on disk of everything in a folder, as `du` counts.
fn folder_bytes(path: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    let Ok(entries) = fs::read_dir(path) else { return 0 };
    let size = |entry: fs::DirEntry| match entry.metadata() {
        Ok(metadata) if metadata.is_dir() => folder_bytes(&entry.path()),
        Ok(metadata) => metadata.blocks() * 512,
        Err(_) => 0,
    };
    entries.flatten().map(size).sum()
}

/// Addresses that were free a moment ago.
pub(super) fn free_addresses() -> io::Result<[SocketAddr; 3]> {
    // All are bound at once, so that they differ.
    let listeners = [
        TcpListener::bind("127.0.0.1:0")?,
        TcpListener::bind("127.0.0.1:0")?,
        TcpListener::bind("127.0.0.1:0")?,
    ];
    let [a, b, c] = &listeners;
    Ok([a.local_addr()?, b.local_addr()?, c.local_addr()?])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_can_read_its_own_usage() {
        let usage = usage(std::process::id()).unwrap();
        assert!(usage.resident_bytes > 0 && usage.resident_bytes_max >= usage.resident_bytes);
        assert!(!has_ended(std::process::id()));
    }

    #[test]
    fn threads_are_told_by_their_names() {
        let line = "77 (log-p0001) S 1 2 3 4 5 6 7 8 9 10 150 50 0 0 20 0 9 0 1 2 3";
        assert_eq!(thread_of(line), Some(("log-p".to_owned(), 2.0)));
        assert_eq!(thread_of("77 log"), None);
        assert!(!thread_seconds(std::process::id()).unwrap().is_empty());
    }

    #[test]
    fn free_addresses_differ() {
        let [a, b, c] = free_addresses().unwrap();
        assert!(a != b && b != c && a != c);
    }
}
