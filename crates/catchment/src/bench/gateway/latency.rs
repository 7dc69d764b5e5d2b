//! From publish to PUBACK, at parts of the full load. The full load is what the server takes for as long as one likes: until the
//! tables have the last message, where there are tables.

use std::time::{Duration, Instant};

use catchment_sim::swarm::PublishPlan;

use super::figures::{Figures, Result, per_million};
use super::{Target, WARM_UP, topics_of};
use crate::cli::GatewayArgs;

const PARTS: [u32; 3] = [25, 50, 80];

pub(super) fn measure(args: &GatewayArgs, figures: &mut Figures) -> anyhow::Result<()> {
    let target = Target::start(args, false)?;
    let connections = args.connections.first().copied().unwrap_or(50);
    let mut swarm = target.publishers("latency", connections, topics_of(args))?;
    let window = usize::from(args.window);
    let burst = usize::from(args.burst);
    let mut plan = PublishPlan { duration: WARM_UP, qos: 1, window, burst, rate: None };
    swarm.publish(&plan)?;
    target.wait_caught_up()?;
    plan.duration = Duration::from_secs(args.duration);
    let full = swarm.publish(&plan)?;
    let caught_up = Instant::now();
    target.wait_caught_up()?;
    let full_rate = full.published as f64 / (full.elapsed + caught_up.elapsed()).as_secs_f64();
    figures.add(
        Result::new("latency")
            .set("connections", connections)
            .set("load_percent", 100)
            .published(&full)
            .set("messages_per_second_whole_way", full_rate.round())
            .latencies("puback_ms", &full.latency_us),
    );
    for percent in PARTS {
        target.wait_caught_up()?;
        plan.rate = Some(full_rate * f64::from(percent) / 100.0);
        let before = target.spent()?;
        let sent = swarm.publish(&plan)?;
        let cpu = target.spent()?.cpu_since(&before);
        let mut result = Result::new("latency")
            .set("connections", connections)
            .set("load_percent", percent)
            .published(&sent)
            .latencies("puback_ms", &sent.latency_us)
            .latencies("generator_late_ms", &sent.late_us);
        if target.pid.is_some() {
            result = result.number("server_cpu_seconds_per_million", per_million(cpu, sent.published));
        }
        figures.add(result);
    }
    swarm.leave()?;
    target.stop()
}
