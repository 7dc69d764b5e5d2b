//! Shared subscriptions: many publishers, and subscribers in groups. Each group is to get every message once.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::Context;
use catchment_sim::swarm::{PublishPlan, Topics};

use super::figures::{Figures, Result, per_million};
use super::{Target, open, plan};
use crate::cli::GatewayArgs;

const RATE: u32 = 50_000;

pub(super) fn measure(args: &GatewayArgs, figures: &mut Figures) -> anyhow::Result<()> {
    let target = Target::start(args, false)?;
    let connections = args.connections.first().copied().unwrap_or(50);
    let mut publishers = target.publishers("shared", connections, Topics::Brokered)?;
    let mut subscribers = target.swarm(false)?;
    open(&mut subscribers, &plan("member", args.subscribers, Topics::Brokered))?;
    let groups = args.groups.min(args.subscribers);
    subscribers
        .subscribe(1, |number| format!("$share/g{}/bench/#", number % groups))
        .context("the server takes no shared subscriptions")?;
    let rate = args.rate.unwrap_or(RATE);
    let sending = PublishPlan {
        duration: Duration::from_secs(args.duration),
        qos: 1,
        window: usize::from(args.window),
        burst: usize::from(args.burst),
        rate: (rate > 0).then_some(f64::from(rate)),
    };
    let (before, stop) = (target.spent()?, AtomicBool::new(false));
    let (sent, received) = std::thread::scope(|scope| {
        let receiving = scope.spawn(|| subscribers.receive(&stop));
        let sent = publishers.publish(&sending);
        stop.store(true, Ordering::Relaxed);
        let received = receiving.join().map_err(|_| anyhow::anyhow!("the subscribers' thread panicked"))?;
        anyhow::Ok((sent?, received?))
    })?;
    let cpu = target.spent()?.cpu_since(&before);
    let expected = sent.published * u64::from(groups);
    let mut result = Result::new("shared")
        .set("publishers", connections)
        .set("subscribers", args.subscribers)
        .set("groups", groups)
        .set("wanted_per_second", rate)
        .published(&sent)
        .set("deliveries_expected", expected)
        .set("deliveries", received.messages)
        .set("deliveries_per_second", (received.messages as f64 / received.elapsed.as_secs_f64()).round())
        .latencies("puback_ms", &sent.latency_us);
    if target.pid.is_some() {
        result = result
            .number("server_cpu_seconds_per_million_published", per_million(cpu, sent.published))
            .number("server_cpu_seconds_per_million_delivered", per_million(cpu, received.messages));
    }
    figures.add(result);
    target.stop()
}
