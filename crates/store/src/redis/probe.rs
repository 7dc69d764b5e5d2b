//! What a server is, and whether it can have the latest values.

use std::time::{Duration, Instant};

use catchment_types::DEFAULT_REALM;

use super::client::{RedisClient, RedisFailure};

/// Asked so many times for the time of an answer.
const PINGS: u32 = 20;
/// What this program does, each by a command on a key of its own. `INFO` and scripts come with them.
const RIGHTS: [&str; 6] = ["SET", "HSET", "ZADD", "INCRBY", "EVAL", "PUBLISH"];

/// What was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Probe {
    /// Of the server.
    pub version: String,
    /// Median time of an answer.
    pub latency: Duration,
    /// What it does when its memory is full; nothing when it does not say.
    pub maxmemory_policy: Option<String>,
    /// The most memory it may use, in bytes; 0 is no limit.
    pub maxmemory_bytes: u64,
    /// Whether it is a replica, which takes no writes.
    pub is_replica: bool,
    /// Whether it is a cluster, over which keys are spread.
    pub is_cluster: bool,
    /// Devices that are there already.
    pub devices: u64,
    /// Commands that we may not use, with what the server says.
    pub refused: Vec<(String, String)>,
}

/// Connects and looks. Leaves nothing behind.
///
/// # Errors
/// The server does not answer, or not to us.
pub async fn probe(client: &RedisClient) -> Result<Probe, RedisFailure> {
    let mut times = Vec::new();
    client.ping().await?;
    for _ in 0..PINGS {
        let asked = Instant::now();
        client.ping().await?;
        times.push(asked.elapsed());
    }
    times.sort_unstable();
    let info: String = client.ask(&::redis::cmd("INFO")).await?;
    let found = |name| info_value(&info, name);
    let is_replica = found("role").is_some_and(|role| role != "master");
    let mut count = ::redis::cmd("ZCARD");
    count.arg(client.keys.devices(DEFAULT_REALM));
    let devices = client.ask(&count).await.unwrap_or_default();
    Ok(Probe {
        version: found("redis_version").unwrap_or("of an unknown version").to_owned(),
        latency: times[times.len() / 2],
        maxmemory_policy: found("maxmemory_policy").map(str::to_owned),
        maxmemory_bytes: found("maxmemory").and_then(|bytes| bytes.parse().ok()).unwrap_or_default(),
        is_replica,
        is_cluster: found("cluster_enabled") == Some("1"),
        devices,
        refused: if is_replica { Vec::new() } else { refused(client).await },
    })
}

/// Tries each command on a key that expires.
async fn refused(client: &RedisClient) -> Vec<(String, String)> {
    let key = client.keys.of(&format!("check:{}", client.process));
    let mut refused = Vec::new();
    for name in RIGHTS {
        let mut command = ::redis::cmd(name);
        match name {
            "SET" => command.arg(&key).arg(1).arg("EX").arg(5),
            "HSET" => command.arg(format!("{key}:hash")).arg("field").arg(1),
            "ZADD" => command.arg(format!("{key}:set")).arg(0).arg("member"),
            "INCRBY" => command.arg(&key).arg(1),
            "EVAL" => command.arg("return redis.call('TIME')[1]").arg(1).arg(&key),
            _ => command.arg(&key).arg(""),
        };
        if let Err(error) = client.ask::<::redis::Value>(&command).await {
            refused.push((name.to_owned(), error.to_string()));
        }
    }
    let mut clean = ::redis::cmd("DEL");
    clean.arg(&key).arg(format!("{key}:hash")).arg(format!("{key}:set"));
    if let Err(error) = client.ask::<::redis::Value>(&clean).await {
        refused.push(("DEL".to_owned(), error.to_string()));
    }
    refused
}

/// A value of what `INFO` answers.
pub(super) fn info_value<'a>(info: &'a str, name: &str) -> Option<&'a str> {
    info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).map(str::trim)
}

/// Which run of a server this is.
pub(super) fn run_id(info: &str) -> &str {
    info_value(info, "run_id").unwrap_or_default()
}
