//! Fan-in: every connection publishes as fast as it can.

use std::time::Duration;

use catchment_sim::swarm::PublishPlan;
use serde_json::{Map, Value};

use super::figures::{Figures, Result, per_million};
use super::{Target, WARM_UP, topics_of};
use crate::bench::process::usage;
use crate::bench::report::round;
use crate::cli::GatewayArgs;

/// Threads that take messages in and make them durable; what decodes and files them comes behind.
const GATEWAY_THREADS: &[&str] = &["gateway", "log-p", "sessions"];

pub(super) fn measure(args: &GatewayArgs, figures: &mut Figures) -> anyhow::Result<()> {
    let connections = if args.connections.is_empty() { &[50][..] } else { &args.connections };
    let target = Target::start(args, false)?;
    for &connections in connections {
        for &qos in &args.qos {
            figures.add(one(args, &target, connections, qos)?);
        }
    }
    target.stop()
}

fn one(args: &GatewayArgs, target: &Target, connections: u32, qos: u8) -> anyhow::Result<Result> {
    let mut swarm = target.publishers("fan-in", connections, topics_of(args))?;
    // Thousands of connections share the memory of this process that a window takes.
    let window = usize::from(args.window);
    let burst = usize::from(args.burst);
    let mut plan = PublishPlan { duration: WARM_UP, qos, window, burst, rate: None };
    swarm.publish(&plan)?;
    target.wait_caught_up()?;
    plan.duration = Duration::from_secs(args.duration);
    let own_before = usage(std::process::id())?;
    let before = target.spent()?;
    let published = swarm.publish(&plan)?;
    let taken = target.spent()?;
    let own = usage(std::process::id())?.cpu_seconds - own_before.cpu_seconds;
    target.wait_caught_up()?;
    let whole = target.spent()?;
    swarm.leave()?;
    let count = published.published;
    let mut result = Result::new("fan-in")
        .set("connections", connections)
        .set("qos", qos)
        .set("window", if qos > 0 { window } else { 0 })
        .set("burst", burst)
        .published(&published);
    if target.pid.is_some() {
        result = result
            .number("server_cpu_seconds_per_million", per_million(taken.cpu_since(&before), count))
            .set("server_cpu_counts", "the whole process, until the last answer");
    }
    if target.server.is_some() {
        let gateway = whole.cpu_of(GATEWAY_THREADS) - before.cpu_of(GATEWAY_THREADS);
        let threads: Map<String, Value> = whole
            .threads_since(&before)
            .into_iter()
            .map(|(name, seconds)| (name, round(per_million(seconds, count)).into()))
            .collect();
        result = result
            .number("gateway_and_log_cpu_seconds_per_million", per_million(gateway, count))
            .number("until_in_tables_cpu_seconds_per_million", per_million(whole.cpu_since(&before), count))
            .set("threads_cpu_seconds_per_million", threads);
    }
    result = result.number("generator_cpu_seconds_per_million", per_million(own, count));
    if qos > 0 {
        result = result.latencies("puback_ms", &published.latency_us);
    }
    Ok(result)
}
