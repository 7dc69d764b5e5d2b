//! `catchment bench`: what taking events in costs, measured from outside. `gateway` has its own file.
//!
//! The server is a process of its own; this process is the load generator, the prober and the clerk. Three phases: full
//! load without anybody looking (throughput, CPU), full load with the probe (latencies), half load with the probe. At the
//! end SQL has to count exactly what was acknowledged.

mod gateway;
mod generator;
mod mqtt;
mod probe;
mod process;
mod report;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use catchment_sim::load::EVENT_TYPE;

use self::generator::Fleet;
use self::process::{Server, usage};
use self::report::{Phase, Report};
use crate::cli::{BenchCommand, IngestArgs};
use crate::client::Client;

/// The full phase with the probe is no longer than this.
const PROBED_FULL_MAX: Duration = Duration::from_secs(20);
const WARM_UP: Duration = Duration::from_secs(2);
const VISIBLE_MAX: Duration = Duration::from_secs(300);
/// After full load: so long at most, until in each of some seconds so little is used, in CPU seconds.
const REST_S_MAX: u32 = 120;
const QUIET_S: u32 = 3;
const REST_CPU: f64 = 0.15;

/// Runs a benchmark and prints its figures.
///
/// # Errors
/// The server cannot be reached, breaks a connection, or has lost or doubled an event.
pub(crate) fn bench(command: BenchCommand) -> anyhow::Result<()> {
    match command {
        BenchCommand::Gateway(args) => gateway::run(&args),
        BenchCommand::Ingest(args) => {
            let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
            runtime.block_on(ingest(&args))
        }
    }
}

/// The platform under measurement, its own process or somebody else's.
#[derive(Clone)]
struct Target {
    mqtt: SocketAddr,
    client: Client,
    token: Option<String>,
    /// The platform's processes.
    pids: Vec<u32>,
    /// Other processes whose CPU is told, by their names.
    beside: Vec<(String, u32)>,
}

async fn ingest(args: &IngestArgs) -> anyhow::Result<()> {
    let server = match args.target {
        Some(_) => None,
        None => Some(Server::start(args.config.as_deref(), &[])?),
    };
    let target = match (&server, args.target) {
        (Some(server), _) => Target {
            mqtt: server.mqtt,
            client: server.client.clone(),
            token: Some(server.token.clone()),
            pids: vec![server.pid()],
            beside: Vec::new(),
        },
        (None, Some(mqtt)) => {
            let client = Client::new(&args.client)?;
            let (pids, beside) = (args.pid.clone(), args.beside.clone());
            Target { mqtt, token: client.bearer().map(str::to_owned), client, pids, beside }
        }
        (None, None) => bail!("there is no server to measure"),
    };
    let mut report = measure(args, &target).await?;
    if let Some(server) = server {
        let stopped = tokio::task::spawn_blocking(move || server.stop()).await??;
        report.ended(stopped.0, stopped.1);
    }
    if args.json {
        report.print_json()?
    } else {
        report.print()
    }
    report.verdict()
}

async fn measure(args: &IngestArgs, target: &Target) -> anyhow::Result<Report> {
    // What a user of such devices would set: readings from the metrics, the rest of the document stays in the raw event.
    let rule = serde_json::json!({ "include": ["metrics.*"] });
    let _: serde_json::Value = target
        .client
        .call("PUT", &format!("/api/v1/decoders/{EVENT_TYPE}"), Some(&rule))
        .context("no decoder can be set")?;
    let before = counts(&target.client)?;
    let mut fleet =
        Fleet::new(target.mqtt, target.token.clone(), args.connections, args.devices, args.window);
    let duration = Duration::from_secs(args.duration);
    let full_rate = (args.rate > 0).then_some(args.rate as f64);

    let warm_up = fleet.publish(WARM_UP, full_rate).await?;
    let mut acknowledged = warm_up.acknowledged;
    wait_visible(&target.client, before.events + acknowledged).await?;

    let mut report = Report::new(args);
    let memory = Memory::watch(target.pids.clone());
    let (used_before, beside_before) = (target.cpu_seconds()?, target.beside_seconds()?);
    let sent = fleet.publish(duration, full_rate).await?;
    acknowledged += sent.acknowledged;
    let lag = wait_visible(&target.client, before.events + acknowledged).await?;
    let cpu_seconds = target.cpu_seconds()? - used_before;
    let beside = target.beside_seconds()?.into_iter().zip(beside_before);
    let beside = beside.map(|((name, after), (_, before))| (name, after - before)).collect();
    let resident = memory.stop().await;
    // What the platform takes for as long as one likes: until the last event is visible, not only acknowledged, and merged, since
    // what is put off while everybody is busy has to be done at last.
    let rest = if args.no_half { None } else { wait_for_rest(target).await? };
    let rate = sent.acknowledged as f64 / (sent.elapsed + lag + rest.unwrap_or_default()).as_secs_f64();
    report.full(&sent, cpu_seconds, beside, lag, rest, resident);

    let probed = duration.min(PROBED_FULL_MAX);
    acknowledged += phase(&mut fleet, target, &mut report, "full", probed, full_rate).await?;
    if !args.no_half {
        // Half load is a state of its own, not the end of the full load before it.
        wait_visible(&target.client, before.events + acknowledged).await?;
        wait_for_rest(target).await?;
        acknowledged += phase(&mut fleet, target, &mut report, "half", duration, Some(rate / 2.0)).await?;
    }

    wait_visible(&target.client, before.events + acknowledged).await?;
    let after = counts(&target.client)?;
    report.counted(acknowledged, after.events - before.events, after.readings - before.readings);
    Ok(report)
}

/// A phase with the probe; gives how many events of the load were acknowledged.
async fn phase(
    fleet: &mut Fleet,
    target: &Target,
    report: &mut Report,
    name: &'static str,
    duration: Duration,
    rate: Option<f64>,
) -> anyhow::Result<u64> {
    let run = format!("{name}_{}", std::process::id());
    let prober = probe::probe(
        target.mqtt,
        target.token.clone(),
        target.client.clone(),
        &run,
        // It begins and ends inside the load.
        duration.saturating_sub(Duration::from_secs(1)).max(Duration::from_secs(1)),
    );
    let used_before = target.cpu_seconds()?;
    let (sent, latencies) = tokio::join!(fleet.publish(duration, rate), prober);
    let (sent, latencies) = (sent?, latencies?);
    let cpu_seconds = target.cpu_seconds()? - used_before;
    let acknowledged = sent.acknowledged;
    report.probed(Phase { name, sent, cpu_seconds, latencies });
    Ok(acknowledged)
}

impl Target {
    /// What all processes of the platform have used so far.
    fn cpu_seconds(&self) -> anyhow::Result<f64> {
        self.pids.iter().map(|&pid| Ok(usage(pid)?.cpu_seconds)).sum()
    }

    /// What each of the others has used so far.
    fn beside_seconds(&self) -> anyhow::Result<Vec<(String, f64)>> {
        self.beside.iter().map(|(name, pid)| Ok((name.clone(), usage(*pid)?.cpu_seconds))).collect()
    }
}

/// Rows of the load.
#[derive(Debug, Clone, Copy)]
struct Counts {
    events: u64,
    readings: u64,
}

fn counts(client: &Client) -> anyhow::Result<Counts> {
    let events = format!("SELECT count(*) FROM raw_events WHERE type = '{EVENT_TYPE}'");
    let readings = "SELECT count(*) FROM raw_metrics WHERE device_id LIKE 'load-%'";
    Ok(Counts { events: client.number(&events)? as u64, readings: client.number(readings)? as u64 })
}

/// Waits until SQL counts so many events of the load; gives how long that took. SQL is only asked once the workers have
/// got to the log's end: to count millions of rows again and again would be a load of its own.
async fn wait_visible(client: &Client, events: u64) -> anyhow::Result<Duration> {
    let started = Instant::now();
    loop {
        let status: serde_json::Value = client.get("/api/v1/status")?;
        let elapsed = started.elapsed();
        if !is_behind(&status) && counts(client)?.events >= events {
            return Ok(elapsed);
        }
        if elapsed > VISIBLE_MAX {
            bail!(
                "SQL does not count {events} events {VISIBLE_MAX:?} after they were acknowledged: {status}"
            );
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// Waits until the platform has little to do, so that merges of what full load has left are done. Gives for how long it had more to
/// do; nothing when it did not come to rest in time.
async fn wait_for_rest(target: &Target) -> anyhow::Result<Option<Duration>> {
    let mut quiet = 0;
    let mut used = target.cpu_seconds()?;
    for second in 1..=REST_S_MAX {
        tokio::time::sleep(Duration::from_secs(1)).await;
        let now = target.cpu_seconds()?;
        quiet = if now - used < REST_CPU { quiet + 1 } else { 0 };
        used = now;
        if quiet == QUIET_S {
            return Ok(Some(Duration::from_secs((second - QUIET_S).into())));
        }
    }
    Ok(None)
}

/// Whether events are in the log that are not decoded yet.
fn is_behind(status: &serde_json::Value) -> bool {
    let partitions = status["partitions"].as_array();
    partitions.is_none_or(|partitions| {
        partitions.iter().any(|partition| partition["decoded_offset"] != partition["log_offset"])
    })
}

/// Looks at the memory of the platform's processes once a second.
struct Memory {
    stop: Arc<AtomicBool>,
    samples: tokio::task::JoinHandle<Vec<u64>>,
}

impl Memory {
    fn watch(pids: Vec<u32>) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let samples = tokio::spawn(async move {
            let mut samples = Vec::new();
            let mut second = tokio::time::interval(Duration::from_secs(1));
            while !pids.is_empty() && !stopped.load(Relaxed) {
                second.tick().await;
                let resident: Result<u64, _> =
                    pids.iter().map(|&pid| usage(pid).map(|usage| usage.resident_bytes)).sum();
                samples.extend(resident);
            }
            samples
        });
        Self { stop, samples }
    }

    async fn stop(self) -> Vec<u64> {
        self.stop.store(true, Relaxed);
        self.samples.await.unwrap_or_default()
    }
}
