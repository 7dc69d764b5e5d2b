//! Sessions that wait for their clients: what each holds in memory and on disk, and how long it takes to have them back.

use catchment_sim::swarm::{OpenPlan, Topics};

use super::figures::{Figures, Result};
use super::{Target, WARM_CONNECTIONS, plan};
use crate::bench::report::MEBIBYTE;
use crate::cli::GatewayArgs;

/// Clients that come, subscribe and leave together.
const AT_ONCE: usize = 900;

pub(super) fn measure(args: &GatewayArgs, figures: &mut Figures) -> anyhow::Result<()> {
    let mut target = Target::start(args, false)?;
    let mut swarm = target.swarm(false)?;
    let planned =
        |name, count| OpenPlan { clean: false, opening_max: AT_ONCE, ..plan(name, count, Topics::Brokered) };
    let filter = |number| format!("devices/load-{number:06}/commands/#");
    swarm.leave_sessions(&planned("warm", WARM_CONNECTIONS), |number| format!("warm/{number}"))?;
    let before = target.rested_bytes()?;
    let spent = target.spent()?;
    let left = swarm.leave_sessions(&planned("kept", args.sessions), filter)?;
    let cpu = target.spent()?.cpu_since(&spent);
    let after = target.rested_bytes()?;
    let per_session = |bytes: u64| bytes as f64 / f64::from(args.sessions);
    let mut result = Result::new("sessions")
        .set("sessions", left.opened)
        .set("failed", left.failed)
        .set("made_per_second", (left.opened as f64 / left.elapsed.as_secs_f64()).round());
    if target.pid.is_some() {
        result = result
            .set("user_bytes_per_session", per_session(after.saturating_sub(before)).round())
            .number("server_cpu_ms_per_session", cpu * 1e3 / f64::from(args.sessions));
    }
    if let Some(server) = &mut target.server {
        let journal = server.folder_bytes("gateway");
        let ready = server.kill_and_restart()?;
        target.pid = Some(server.pid());
        let restored = server.metric("catchment_gateway_sessions")?;
        let restarted = target.rested_bytes()?;
        result = result
            .set("journal_bytes_per_session", per_session(journal).round())
            .set("ready_after_kill_ms", ready.as_millis() as u64)
            .set("sessions_after_restart", restored)
            .set("user_mib_after_restart", (restarted as f64 / MEBIBYTE).round());
    }
    figures.add(result);
    target.stop()
}
