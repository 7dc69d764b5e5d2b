//! `catchment bench …`.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};

use super::ClientArgs;

#[derive(Debug, Subcommand)]
pub(crate) enum BenchCommand {
    /// Publishes as fast as the platform takes it and prints what it costs: events a second, CPU, bytes, latencies.
    #[command(after_help = "Examples:
  catchment bench ingest
  catchment bench ingest --duration 600 --connections 50 --devices 1000 --json > figures.json
  catchment bench ingest --target 127.0.0.1:1883 --url http://127.0.0.1:8082 --pid 71,72,73 --beside kafka=60,clickhouse=61

The server is a process of its own with a new data folder, so that its CPU and memory are counted apart from the
load generator's. See bench/README.md for what each figure means.")]
    Ingest(IngestArgs),
    /// Measures the gateway: fan-in, idle connections, connect storms, latencies, shared subscriptions, kept sessions.
    #[command(after_help = "Examples:
  catchment bench gateway
  catchment bench gateway --scenario fan-in --connections 50,500,5000 --qos 0,1
  catchment bench gateway --scenario idle --connections 1000,5000,15000 --tls
  catchment bench gateway --scenario fan-in --target 127.0.0.1:1883 --pid 4711 --json   # any other broker

The server is a process of its own with a new data folder. Each connection takes an open file of the server and one
of this process: raise both limits for many. bench/beside_mosquitto.py runs mosquitto beside it, in turn.
See bench/README.md for what each figure means.")]
    Gateway(GatewayArgs),
}

/// What `bench ingest` does.
#[derive(Debug, Clone, Args)]
pub(crate) struct IngestArgs {
    /// Seconds of full load; half load is measured as long again.
    #[arg(long, value_name = "SECONDS", default_value_t = 20, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    pub(crate) duration: u64,
    /// MQTT connections.
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub(crate) connections: u32,
    /// Devices, spread over the connections.
    #[arg(long, value_name = "N", default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub(crate) devices: u32,
    /// Messages that each connection may have without an acknowledgement.
    #[arg(long, value_name = "N", default_value_t = 256, value_parser = clap::value_parser!(u16).range(1..=60_000))]
    pub(crate) window: u16,
    /// Events a second at full load; 0 is as fast as the platform takes them.
    #[arg(long, value_name = "R", default_value_t = 0)]
    pub(crate) rate: u64,
    /// Leaves the measurement at half load out.
    #[arg(long)]
    pub(crate) no_half: bool,
    /// Prints the figures as JSON.
    #[arg(long)]
    pub(crate) json: bool,
    /// A running platform, instead of one of its own: its MQTT address. Needs --url and a token; its CPU and memory are
    /// only counted with --pid.
    #[arg(long, value_name = "ADDR:PORT")]
    pub(crate) target: Option<SocketAddr>,
    /// Processes of the running platform; several when its roles are split.
    #[arg(long, value_name = "PID,…", requires = "target", value_delimiter = ',')]
    pub(crate) pid: Vec<u32>,
    /// Processes whose CPU is counted beside, each by itself: engines that the platform runs on.
    #[arg(long, value_name = "NAME=PID,…", requires = "target", value_delimiter = ',', value_parser = beside)]
    pub(crate) beside: Vec<(String, u32)>,
    /// Settings for the server that is started.
    #[arg(long, value_name = "FILE", conflicts_with = "target")]
    pub(crate) config: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) client: ClientArgs,
}

/// A name and a process id with `=` between.
fn beside(text: &str) -> Result<(String, u32), String> {
    let (name, pid) = text.split_once('=').ok_or("a name and a process id are wanted, such as kafka=4711")?;
    let pid = pid.parse().map_err(|error| format!("{pid:?} is no process id: {error}"))?;
    Ok((name.to_owned(), pid))
}

/// A part of `bench gateway`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Scenario {
    /// Connections that publish as fast as they can: messages a second, CPU of a million.
    FanIn,
    /// Connections that are silent, while a few publish: memory of each.
    Idle,
    /// Connections that come and go, while others publish.
    Storm,
    /// Publish to PUBACK at 25, 50 and 80 % of the full load.
    Latency,
    /// Shared subscriptions.
    Shared,
    /// Sessions that wait without a connection: memory of each, and how long a restart takes.
    Sessions,
}

/// Which topics the load publishes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum LoadTopics {
    /// Of a route: each message is an event, and goes to the log.
    Events,
    /// Of no route: for subscribers only, as at a broker.
    Brokered,
}

/// What `bench gateway` does.
#[derive(Debug, Clone, Args)]
pub(crate) struct GatewayArgs {
    /// What to measure, in this order.
    #[arg(long, value_enum, value_delimiter = ',', value_name = "NAME,…", default_value = "fan-in")]
    pub(crate) scenario: Vec<Scenario>,
    /// Connections: fan-in and idle are measured with each of these numbers, the others with the first. By default 50, for
    /// idle 1000,5000.
    #[arg(long, value_delimiter = ',', value_name = "N,…", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub(crate) connections: Vec<u32>,
    /// Of fan-in: at each of these.
    #[arg(long, value_delimiter = ',', value_name = "QOS,…", default_value = "0,1", value_parser = clap::value_parser!(u8).range(0..=1))]
    pub(crate) qos: Vec<u8>,
    /// Seconds of each measurement.
    #[arg(long, value_name = "SECONDS", default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    pub(crate) duration: u64,
    /// Messages that each connection may have without an acknowledgement.
    #[arg(long, value_name = "N", default_value_t = 256, value_parser = clap::value_parser!(u16).range(1..=60_000))]
    pub(crate) window: u16,
    /// Messages that a connection writes at once, at most: 1 is how single devices publish, more is how gateways and clients
    /// with a backlog do.
    #[arg(long, value_name = "N", default_value_t = 56, value_parser = clap::value_parser!(u16).range(1..=1000))]
    pub(crate) burst: u16,
    /// Where the load of fan-in and latency goes.
    #[arg(long, value_enum, default_value = "events")]
    pub(crate) topics: LoadTopics,
    /// A second: messages of the publishers beside idle connections and storms, and into shared subscriptions (0: as fast as
    /// it goes).
    #[arg(long, value_name = "R")]
    pub(crate) rate: Option<u32>,
    /// Of the storm, a second.
    #[arg(long, value_name = "R", default_value_t = 5000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub(crate) connects: u32,
    /// Of the storm: devices with a password each, by which the connections are let in; 0: without credentials.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) passwords: u32,
    /// Of the storm: whole handshakes only, no session of TLS is resumed.
    #[arg(long)]
    pub(crate) no_resumption: bool,
    /// Idle connections and storms come over TLS.
    #[arg(long)]
    pub(crate) tls: bool,
    /// Of shared subscriptions: clients that subscribe.
    #[arg(long, value_name = "N", default_value_t = 500, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub(crate) subscribers: u32,
    /// Of shared subscriptions: groups that the clients form. Each group gets every message once.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub(crate) groups: u32,
    /// Of sessions: how many.
    #[arg(long, value_name = "N", default_value_t = 100_000, value_parser = clap::value_parser!(u32).range(1..=10_000_000))]
    pub(crate) sessions: u32,
    /// Prints the figures as JSON.
    #[arg(long)]
    pub(crate) json: bool,
    /// A running server, of whatever make, instead of one of its own: its MQTT address. Its CPU and memory are only counted
    /// with --pid.
    #[arg(long, value_name = "ADDR:PORT", conflicts_with_all = ["config", "tls", "passwords"])]
    pub(crate) target: Option<SocketAddr>,
    /// Process of the running server.
    #[arg(long, value_name = "PID", requires = "target")]
    pub(crate) pid: Option<u32>,
    /// Settings for the server that is started.
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
}
