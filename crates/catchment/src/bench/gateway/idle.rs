//! Idle connections: what each of them holds, while a few others publish. One server holds more and more of them, since the first
//! ones partly find room in memory that its start has left behind: what the last step took tells best what a connection takes.

use std::time::Duration;

use catchment_sim::swarm::{PublishPlan, Swarm, Topics};

use super::figures::{Figures, Result};
use super::{BESIDE_CONNECTIONS, BESIDE_RATE, Target, WARM_CONNECTIONS, beside, open, plan};
use crate::cli::GatewayArgs;

/// A second, for everybody's one message.
const ONCE_RATE: u32 = 2000;

const MILLION: f64 = 1e6;
const GIBIBYTE: f64 = (1u64 << 30) as f64;

pub(super) fn measure(args: &GatewayArgs, figures: &mut Figures) -> anyhow::Result<()> {
    let counts = if args.connections.is_empty() { &[1000, 5000][..] } else { &args.connections };
    let target = Target::start(args, args.tls)?;
    let rate = f64::from(args.rate.unwrap_or(BESIDE_RATE));
    let mut publishers = target.publishers("beside", BESIDE_CONNECTIONS, Topics::Brokered)?;
    let mut idle = target.swarm(args.tls)?;
    open(&mut idle, &plan("warm", WARM_CONNECTIONS, Topics::Brokered))?;
    let (first, alone) = beside(&mut publishers, rate, || target.rested_bytes())?;
    let mut last = (0, first);
    for &connections in counts {
        let more = connections.saturating_sub(last.0);
        let before = target.spent()?;
        let opened = open(&mut idle, &plan(&format!("idle{connections}"), more, Topics::Brokered))?;
        let opening = target.spent()?.cpu_since(&before);
        let (after, among) = beside(&mut publishers, rate, || target.rested_bytes())?;
        let bytes = |since: u64, of: u32| after.saturating_sub(since) as f64 / f64::from(of.max(1));
        let of_last = bytes(last.1, more);
        let mut result = Result::new("idle")
            .set("connections", connections)
            .set("tls", args.tls)
            .set("opened", opened.opened)
            .set("opened_per_second", (opened.opened as f64 / opened.elapsed.as_secs_f64()).round());
        if target.pid.is_some() {
            result = result
                .set("user_bytes_per_connection", bytes(first, connections).round())
                .set("user_bytes_per_connection_since_last_step", of_last.round())
                .number("connect_cpu_ms", opening * 1e3 / f64::from(more.max(1)))
                .number("a_million_would_take_gib_extrapolated", of_last * MILLION / GIBIBYTE);
        }
        figures.add(
            result
                .set("publishing_per_second", rate)
                .latencies("puback_ms_before", &alone.latency_us)
                .latencies("puback_ms_among_idle", &among.latency_us),
        );
        last = (connections, after);
    }
    figures.add(after_a_publish(args, &target, &mut idle, last)?);
    target.stop()
}

/// Everybody publishes one message, and is silent again.
fn after_a_publish(
    args: &GatewayArgs,
    target: &Target,
    idle: &mut Swarm,
    (connections, before): (u32, u64),
) -> anyhow::Result<Result> {
    let all = idle.len() as f64;
    // The last tick is not reached: a few messages more make up for it.
    let plan = PublishPlan {
        duration: Duration::from_secs_f64(all / f64::from(ONCE_RATE) + 0.01),
        qos: 1,
        window: 1,
        burst: 1,
        rate: Some(f64::from(ONCE_RATE)),
    };
    let published = idle.publish(&plan)?;
    let after = target.rested_bytes()?;
    let mut result =
        Result::new("idle").set("connections", connections).set("tls", args.tls).published(&published);
    if target.pid.is_some() {
        let more = (after as f64 - before as f64) / f64::from(connections);
        result = result.set("more_user_bytes_per_connection_after_a_publish", more.round());
    }
    Ok(result)
}
