//! A connect storm: connections come at a rate and leave once they are let in, while others publish.

use anyhow::Context;
use catchment_sim::swarm::{OpenPlan, Topics};
use serde_json::json;

use super::figures::{Figures, Result};
use super::{BESIDE_CONNECTIONS, BESIDE_RATE, Target, beside, plan};
use crate::bench::report::milliseconds;
use crate::cli::GatewayArgs;

/// Connections that may be under way: less than the system of any server holds until they are accepted.
const UNDER_WAY_MAX: usize = 900;

pub(super) fn measure(args: &GatewayArgs, figures: &mut Figures) -> anyhow::Result<()> {
    let target = Target::start(args, args.tls)?;
    let logins = logins(args, &target)?;
    let rate = f64::from(args.rate.unwrap_or(BESIDE_RATE));
    let mut publishers = target.publishers("beside", BESIDE_CONNECTIONS, Topics::Brokered)?;
    let mut storm = target.swarm_as(args.tls, logins)?;
    let planned = |name: &str, count: u32, rate| OpenPlan {
        rate: Some(rate),
        opening_max: UNDER_WAY_MAX,
        ..plan(name, count, Topics::Brokered)
    };
    // The first login of each device costs a hash: that is not what a storm of those that were there before is about.
    let warm =
        storm.storm(&OpenPlan { opening_max: 4, ..planned("warm", args.passwords.max(100), 500.0) })?;
    anyhow::ensure!(warm.failed == 0, "connections are refused: {}", warm.failure.unwrap_or_default());
    let quiet = std::time::Duration::from_secs(args.duration.clamp(2, 10));
    let ((), alone) = beside(&mut publishers, rate, || {
        std::thread::sleep(quiet);
        Ok(())
    })?;
    let count = args.connects.saturating_mul(u32::try_from(args.duration).unwrap_or(u32::MAX));
    let before = target.spent()?;
    let (stormed, among) = beside(&mut publishers, rate, || {
        storm.storm(&planned("storm", count, f64::from(args.connects))).context("the storm cannot go on")
    })?;
    let cpu = target.spent()?.cpu_since(&before);
    let ratio = |quantile| {
        milliseconds(&among.latency_us, quantile) / milliseconds(&alone.latency_us, quantile).max(0.001)
    };
    let mut result = Result::new("storm")
        .set("tls", args.tls)
        .set("resumption", args.tls && !args.no_resumption)
        .set("passwords", args.passwords)
        .set("connects_per_second_wanted", args.connects)
        .set("connects_per_second", (stormed.opened as f64 / stormed.elapsed.as_secs_f64()).round())
        .set("connected", stormed.opened)
        .set("failed", stormed.failed)
        .latencies("connect_ms", &stormed.latency_us);
    if target.pid.is_some() {
        result = result.number("server_cpu_ms_per_connect", cpu * 1e3 / stormed.opened.max(1) as f64);
    }
    if let Some(failure) = stormed.failure {
        result = result.set("last_failure", failure);
    }
    figures.add(
        result
            .set("publishing_per_second", rate)
            .latencies("puback_ms_before", &alone.latency_us)
            .latencies("puback_ms_in_storm", &among.latency_us)
            .number("puback_p50_ratio", ratio(0.5))
            .number("puback_p99_ratio", ratio(0.99)),
    );
    target.stop()
}

/// Devices with passwords.
fn logins(args: &GatewayArgs, target: &Target) -> anyhow::Result<Vec<(String, String)>> {
    let Some(server) = &target.server else { return Ok(Vec::new()) };
    let login = |number| {
        let device_id = format!("storm-{number:05}");
        let wanted = json!({ "device_id": device_id, "password": true });
        let made: serde_json::Value = server.client.call("POST", "/api/v1/devices", Some(&wanted))?;
        let password = made["password"].as_str().context("the server made no password")?.to_owned();
        Ok((device_id, password))
    };
    (0..args.passwords).map(login).collect()
}
