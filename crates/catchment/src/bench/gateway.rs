//! `catchment bench gateway`: what connections and messages cost the gateway, measured from outside.
//!
//! The server is a process of its own, or somebody else's ([`GatewayArgs::target`]: any MQTT broker). The load comes from
//! [`catchment_sim::swarm`], on threads of this process. What is counted: the server's CPU, from /proc, all of it and by the
//! names of its threads; what it allocated; latencies as the load sees them. Nothing here fails for being slow.

mod fan_in;
mod figures;
mod idle;
mod latency;
mod sessions;
mod shared;
mod storm;
mod tls;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context;
use catchment_sim::swarm::{BURST, OpenPlan, Opened, PublishPlan, Published, Swarm, SwarmTarget, Topics};
use rustls::ClientConfig;
use rustls::pki_types::ServerName;

use self::figures::Figures;
use super::is_behind;
use super::process::{Server, Usage, free_addresses, thread_seconds, usage};
use crate::cli::{GatewayArgs, LoadTopics, Scenario};

const WARM_UP: Duration = Duration::from_secs(1);
/// Connections that warm the allocator up, before memory is counted.
const WARM_CONNECTIONS: u32 = 200;
const SETTLE: Duration = Duration::from_secs(1);
/// Memory that changes by less within a second is at rest; and how long to wait for that.
const REST_BYTES: u64 = 64 << 10;
const REST_MAX: Duration = Duration::from_secs(10);
const CAUGHT_UP_MAX: Duration = Duration::from_secs(300);
/// Publishers beside what is measured.
const BESIDE_CONNECTIONS: u32 = 50;
const BESIDE_RATE: u32 = 1000;
/// Connections that are opened at one time.
const OPENING_MAX: usize = 256;
/// Loopback addresses that connections come from: each has some 28,000 ports, which rest for a minute after use.
const SOURCES: u8 = 40;

/// Measures, and prints the figures.
///
/// # Errors
/// The server cannot be reached, or breaks what it promised; never that it is slow.
pub(super) fn run(args: &GatewayArgs) -> anyhow::Result<()> {
    let mut figures = Figures::new();
    for &scenario in &args.scenario {
        match scenario {
            Scenario::FanIn => fan_in::measure(args, &mut figures)?,
            Scenario::Idle => idle::measure(args, &mut figures)?,
            Scenario::Storm => storm::measure(args, &mut figures)?,
            Scenario::Latency => latency::measure(args, &mut figures)?,
            Scenario::Shared => shared::measure(args, &mut figures)?,
            Scenario::Sessions => sessions::measure(args, &mut figures)?,
        }
    }
    figures.print(args.json)
}

/// Credentials of a TLS client: whom it trusts, and the name that the server is to have.
type ClientTls = (Arc<ClientConfig>, ServerName<'static>);

/// The server that is measured.
struct Target {
    /// None: it is somebody else's.
    server: Option<Server>,
    address: SocketAddr,
    tls: Option<(SocketAddr, ClientTls)>,
    pid: Option<u32>,
}

impl Target {
    /// A new server of our own, or the one that runs already.
    fn start(args: &GatewayArgs, with_tls: bool) -> anyhow::Result<Self> {
        if let Some(address) = args.target {
            return Ok(Self { server: None, address, tls: None, pid: args.pid });
        }
        // As many as the system lets it have, and sessions for all that come.
        let mut settings = vec![
            ("GATEWAY__MQTT__CONNECTIONS_MAX", "1000000".to_owned()),
            ("GATEWAY__MQTT__SESSIONS_MAX", "10000000".to_owned()),
        ];
        let mut tls = None;
        if with_tls {
            let made = tls::make(!args.no_resumption)?;
            let [address, ..] = free_addresses()?;
            settings.extend([
                ("MQTTS", address.to_string()),
                ("TLS__CERTIFICATE", made.certificate.display().to_string()),
                ("TLS__KEY", made.key.display().to_string()),
            ]);
            tls = Some((address, made.client));
        }
        let server = Server::start(args.config.as_deref(), &settings)?;
        Ok(Self { address: server.mqtt, pid: Some(server.pid()), server: Some(server), tls })
    }

    /// A swarm that reaches it; over TLS if it has that.
    fn swarm(&self, over_tls: bool) -> anyhow::Result<Swarm> {
        self.swarm_as(over_tls, Vec::new())
    }

    fn swarm_as(&self, over_tls: bool, logins: Vec<(String, String)>) -> anyhow::Result<Swarm> {
        let (address, tls) = match &self.tls {
            Some((address, tls)) if over_tls => (*address, Some(tls.clone())),
            _ => (self.address, None),
        };
        let is_loopback = address.ip() == IpAddr::V4(Ipv4Addr::LOCALHOST);
        let sources = match is_loopback {
            true => (1..=SOURCES).map(|last| Ipv4Addr::new(127, 0, 1, last).into()).collect(),
            false => Vec::new(),
        };
        Ok(Swarm::new(SwarmTarget { address, tls, sources, logins })?)
    }

    /// A few publishers, connected.
    fn publishers(&self, name: &str, count: u32, topics: Topics) -> anyhow::Result<Swarm> {
        let mut swarm = self.swarm(false)?;
        open(&mut swarm, &plan(name, count, topics))?;
        Ok(swarm)
    }

    fn spent(&self) -> anyhow::Result<Spent> {
        let Some(pid) = self.pid else { return Ok(Spent::default()) };
        let threads = thread_seconds(pid)?.into_iter().collect();
        Ok(Spent { usage: usage(pid)?, threads })
    }

    /// Waits until the tables have what the log has; for other servers there is nothing to wait for.
    fn wait_caught_up(&self) -> anyhow::Result<()> {
        let Some(server) = &self.server else { return Ok(()) };
        let started = Instant::now();
        loop {
            let status: serde_json::Value = server.client.get("/api/v1/status")?;
            if !is_behind(&status) {
                return Ok(());
            }
            anyhow::ensure!(started.elapsed() < CAUGHT_UP_MAX, "the tables are behind the log: {status}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// What it has allocated once that does not change any more.
    fn rested_bytes(&self) -> anyhow::Result<u64> {
        let started = Instant::now();
        let mut last = u64::MAX;
        loop {
            std::thread::sleep(SETTLE);
            let now = self.spent()?.usage.allocated_bytes;
            if now.abs_diff(last) <= REST_BYTES || started.elapsed() > REST_MAX {
                return Ok(now);
            }
            last = now;
        }
    }

    /// Stops it in order, if it is ours.
    fn stop(self) -> anyhow::Result<()> {
        match self.server {
            Some(server) => server.stop().map(drop),
            None => Ok(()),
        }
    }
}

/// What a server has used up to a moment.
#[derive(Debug, Clone, Default)]
struct Spent {
    usage: Usage,
    threads: Vec<(String, f64)>,
}

impl Spent {
    fn cpu_since(&self, before: &Self) -> f64 {
        self.usage.cpu_seconds - before.usage.cpu_seconds
    }

    /// Of threads whose names begin with one of these.
    fn cpu_of(&self, names: &[&str]) -> f64 {
        let counts = |name: &str| names.iter().any(|start| name.starts_with(start));
        self.threads.iter().filter(|(name, _)| counts(name)).map(|(_, seconds)| seconds).sum()
    }

    /// By names, without those that did nothing to speak of.
    fn threads_since(&self, before: &Self) -> Vec<(String, f64)> {
        let earlier =
            |name: &str| before.threads.iter().find(|(other, _)| other == name).map_or(0.0, |(_, s)| *s);
        let used = self.threads.iter().map(|(name, seconds)| (name.clone(), seconds - earlier(name)));
        used.filter(|(_, seconds)| *seconds >= 0.005).collect()
    }
}

fn plan(name: &str, count: u32, topics: Topics) -> OpenPlan {
    OpenPlan {
        prefix: format!("{name}-{}-", std::process::id()),
        count,
        rate: None,
        opening_max: OPENING_MAX,
        clean: true,
        topics,
    }
}

/// Opens connections that must all come about.
fn open(swarm: &mut Swarm, plan: &OpenPlan) -> anyhow::Result<Opened> {
    let opened = swarm.open(plan).context("connections cannot be opened")?;
    let failure = opened.failure.as_deref().unwrap_or_default();
    anyhow::ensure!(opened.failed == 0, "{} of {} connections failed: {failure}", opened.failed, plan.count);
    Ok(opened)
}

fn topics_of(args: &GatewayArgs) -> Topics {
    match args.topics {
        LoadTopics::Events => Topics::Events,
        LoadTopics::Brokered => Topics::Brokered,
    }
}

/// Runs `work` while `beside` publishes at its rate, and gives what both did. The publishing begins before and ends after.
fn beside<T>(
    publishers: &mut Swarm,
    rate: f64,
    work: impl FnOnce() -> anyhow::Result<T>,
) -> anyhow::Result<(T, Published)> {
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let publishing = scope.spawn(|| -> anyhow::Result<Published> {
            let mut total: Option<Published> = None;
            let slice = PublishPlan {
                duration: Duration::from_millis(500),
                qos: 1,
                window: 1000,
                burst: BURST,
                rate: Some(rate),
            };
            while total.is_none() || !done.load(Ordering::Relaxed) {
                let slice = publishers.publish(&slice)?;
                total = Some(match total {
                    None => slice,
                    Some(mut total) => {
                        total.published += slice.published;
                        total.acknowledged += slice.acknowledged;
                        total.elapsed += slice.elapsed;
                        total.latency_us.add(&slice.latency_us)?;
                        total.late_us.add(&slice.late_us)?;
                        total
                    }
                });
            }
            total.context("nothing was published")
        });
        let worked = work();
        done.store(true, Ordering::Relaxed);
        let published = publishing.join().map_err(|_| anyhow::anyhow!("the publishing thread panicked"))?;
        Ok((worked?, published?))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_is_told_by_thread() {
        let spent = |seconds: f64| Spent {
            usage: Usage { cpu_seconds: 10.0 * seconds, ..Usage::default() },
            threads: vec![("gateway".into(), seconds), ("log-p".into(), 2.0 * seconds), ("idle".into(), 0.0)],
        };
        let (before, after) = (spent(1.0), spent(2.5));
        assert_eq!(after.cpu_since(&before), 15.0);
        assert_eq!(after.cpu_of(&["log", "gate"]) - before.cpu_of(&["log", "gate"]), 4.5);
        assert_eq!(after.threads_since(&before), [("gateway".to_owned(), 1.5), ("log-p".to_owned(), 3.0)]);
    }
}
