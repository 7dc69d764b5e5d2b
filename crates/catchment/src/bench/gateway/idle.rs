//! Idle connections: what each of them holds, while a few others publish.

use catchment_sim::swarm::Topics;

use super::figures::{Figures, Result};
use super::{BESIDE_CONNECTIONS, BESIDE_RATE, Target, WARM_CONNECTIONS, beside, open, plan};
use crate::cli::GatewayArgs;

const MILLION: f64 = 1e6;
const GIBIBYTE: f64 = (1u64 << 30) as f64;

pub(super) fn measure(args: &GatewayArgs, figures: &mut Figures) -> anyhow::Result<()> {
    let counts = if args.connections.is_empty() { &[1000, 5000][..] } else { &args.connections };
    for &connections in counts {
        // Each number meets a new server: memory that others gave back would be taken for none.
        let target = Target::start(args, args.tls)?;
        figures.add(one(args, &target, connections)?);
        target.stop()?;
    }
    Ok(())
}

fn one(args: &GatewayArgs, target: &Target, connections: u32) -> anyhow::Result<Result> {
    let rate = f64::from(args.rate.unwrap_or(BESIDE_RATE));
    let mut publishers = target.publishers("beside", BESIDE_CONNECTIONS, Topics::Brokered)?;
    let mut idle = target.swarm(args.tls)?;
    open(&mut idle, &plan("warm", WARM_CONNECTIONS, Topics::Brokered))?;
    let (before, alone) = beside(&mut publishers, rate, || target.rested_bytes())?;
    let spent = target.spent()?;
    let opened = open(&mut idle, &plan("idle", connections, Topics::Brokered))?;
    let opening = target.spent()?.cpu_since(&spent);
    let (after, among) = beside(&mut publishers, rate, || target.rested_bytes())?;
    let bytes = after.saturating_sub(before) as f64 / f64::from(connections);
    let mut result = Result::new("idle")
        .set("connections", connections)
        .set("tls", args.tls)
        .set("opened", opened.opened)
        .set("opened_per_second", (opened.opened as f64 / opened.elapsed.as_secs_f64()).round());
    if target.pid.is_some() {
        result = result
            .set("user_bytes_per_connection", bytes.round())
            .number("connect_cpu_ms", opening * 1e3 / f64::from(connections))
            .number("a_million_would_take_gib_extrapolated", bytes * MILLION / GIBIBYTE);
    }
    Ok(result
        .set("publishing_per_second", rate)
        .latencies("puback_ms_before", &alone.latency_us)
        .latencies("puback_ms_among_idle", &among.latency_us))
}
