//! Whether Redis answers, and whether it is fit to have the latest values.

use std::time::Duration;

use catchment_store::redis::{Probe, RedisClient, RedisTarget, probe};

use super::{Finding, Verdict};

const LATENCY_HIGH: Duration = Duration::from_millis(10);
/// Scripts may ask for the time and write from this version on, and users have rights.
const VERSION_MIN: u32 = 6;

/// Connects, and tells what is there.
pub(super) fn finding(target: &RedisTarget) -> Finding {
    let shown = target.to_string();
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return finding_of(shown, Verdict::Bad(error.to_string())),
    };
    let probed = runtime.block_on(async {
        let client = RedisClient::new(target).map_err(|error| error.to_string())?;
        probe(&client).await.map_err(|error| error.to_string())
    });
    match probed {
        Err(error) => finding_of(shown, Verdict::Bad(error)),
        Ok(probe) => {
            let latency_ms = probe.latency.as_secs_f64() * 1e3;
            let found = format!(
                "{shown} → Redis {}, {} devices, answers in {latency_ms:.2} ms",
                probe.version, probe.devices
            );
            finding_of(found, verdict(&probe))
        }
    }
}

fn finding_of(found: String, verdict: Verdict) -> Finding {
    super::finding("engine snapshot", found, verdict)
}

fn verdict(probe: &Probe) -> Verdict {
    if probe.is_cluster {
        return Verdict::Bad(
            "it is a Redis Cluster, over which keys are spread; name a server of its own".to_owned(),
        );
    }
    if probe.is_replica {
        return Verdict::Bad("it is a replica, which takes no writes; name the primary".to_owned());
    }
    if let Some((command, message)) = probe.refused.first() {
        return Verdict::Bad(format!(
            "{command} is refused: {message}; the user needs +@read +@write +@scripting +@pubsub +info +ping on ~PREFIX* and &PREFIX*"
        ));
    }
    if major(&probe.version).is_some_and(|major| major < VERSION_MIN) {
        return Verdict::Bad(format!("it is older than Redis {VERSION_MIN}"));
    }
    match probe.maxmemory_policy.as_deref() {
        Some("noeviction") => {}
        Some(policy) => {
            return Verdict::Note(format!(
                "when its memory is full it loses latest values in silence (maxmemory-policy {policy}): set noeviction"
            ));
        }
        None => {
            return Verdict::Note(
                "it does not tell its maxmemory-policy, which has to be noeviction".to_owned(),
            );
        }
    }
    if probe.latency > LATENCY_HIGH {
        return Verdict::Note("every look at a latest value waits at least that long".to_owned());
    }
    Verdict::Good
}

fn major(version: &str) -> Option<u32> {
    version.split('.').next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_told() {
        let good = Probe {
            version: "7.0.15".to_owned(),
            latency: Duration::from_micros(100),
            maxmemory_policy: Some("noeviction".to_owned()),
            maxmemory_bytes: 0,
            is_replica: false,
            is_cluster: false,
            devices: 0,
            refused: Vec::new(),
        };
        assert_eq!(verdict(&good), Verdict::Good);
        let told = |probe: Probe| match verdict(&probe) {
            Verdict::Good => String::new(),
            Verdict::Note(text) | Verdict::Bad(text) => text,
        };
        let policy = |policy: &str| Probe { maxmemory_policy: Some(policy.to_owned()), ..good.clone() };
        assert!(
            told(policy("allkeys-lru"))
                .contains("loses latest values in silence (maxmemory-policy allkeys-lru)")
        );
        assert!(told(Probe { version: "5.0.1".to_owned(), ..good.clone() }).contains("older than Redis 6"));
        assert!(told(Probe { is_replica: true, ..good.clone() }).contains("primary"));
        assert!(told(Probe { is_cluster: true, ..good.clone() }).contains("Cluster"));
        let refused = vec![("EVAL".to_owned(), "NOPERM".to_owned())];
        assert!(told(Probe { refused, ..good.clone() }).starts_with("EVAL is refused: NOPERM"));
        assert!(told(Probe { latency: Duration::from_millis(50), ..good }).contains("waits"));
    }
}
