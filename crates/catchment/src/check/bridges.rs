//! What each source and bridge resolves to, whether its files are good, and whether anybody is there. Nothing is sent.

use std::net::{TcpStream, ToSocketAddrs};
use std::time::Duration;

use catchment_gateway::bridge::{self, BridgeConfig};

use super::{Finding, Verdict, finding};
use crate::folder::read_instance;
use crate::settings::Settings;

/// How long a broker may take to accept a connection.
const PROBE_MAX: Duration = Duration::from_secs(2);

/// What is to be said of sources and bridges; nothing when there are none.
pub(super) fn findings(settings: &Settings) -> Vec<Finding> {
    let bridges = settings.all_bridges();
    if bridges.is_empty() {
        return Vec::new();
    }
    let instance = read_instance(&settings.data).ok().flatten();
    let mut findings = Vec::new();
    if let Err(error) = bridge::check_bridges(&bridges, &settings.gateway.mqtt) {
        findings.push(finding("settings of bridges", "", Verdict::Bad(error.to_string())));
    }
    findings.extend(bridges.iter().map(|bridge| one(bridge, instance.as_deref())));
    findings
}

fn one(bridge: &BridgeConfig, instance: Option<&str>) -> Finding {
    let verdict = match bridge::check_files(bridge) {
        Err(what) => Verdict::Bad(what),
        Ok(()) => match reach(&bridge.url.host, bridge.url.port) {
            Err(what) => Verdict::Note(what),
            Ok(()) => Verdict::Good,
        },
    };
    finding(format!("bridge {}", bridge.name), resolved(bridge, instance), verdict)
}

/// Address, without a password, client id, and what goes in and out.
fn resolved(bridge: &BridgeConfig, instance: Option<&str>) -> String {
    let client_id = match (&bridge.client_id, instance) {
        (Some(client_id), _) => client_id.clone(),
        (None, Some(instance)) => bridge::default_client_id(instance, &bridge.name),
        (None, None) => "made at the first start".to_owned(),
    };
    let version = match bridge.version {
        bridge::BridgeVersion::V3 => "3.1.1",
        bridge::BridgeVersion::V5 => "5.0",
    };
    let there = match bridge.user().filter(|_| bridge.url.user.is_none()) {
        Some(user) => format!("{} as {user}", bridge.url),
        None => bridge.url.to_string(),
    };
    let mut parts = vec![format!("{there}, MQTT {version}, client id {client_id}")];
    let rewritten = |strip: &str, add: &str| match (strip, add) {
        ("", "") => String::new(),
        (strip, add) => format!(" ({strip:?} becomes {add:?})"),
    };
    parts.extend(bridge.rules_in().iter().map(|rule| {
        format!("in {} at QoS {}{}", rule.filter, rule.qos, rewritten(&rule.strip_prefix, &rule.add_prefix))
    }));
    parts.extend(bridge.outward.iter().map(|rule| {
        format!("out {} at QoS {}{}", rule.filter, rule.qos, rewritten(&rule.strip_prefix, &rule.add_prefix))
    }));
    parts.join("; ")
}

/// Whether somebody accepts a connection. That nobody does now is no mistake: it is tried again for ever.
fn reach(host: &str, port: u16) -> Result<(), String> {
    let addresses = (host, port).to_socket_addrs();
    let addresses = addresses.map_err(|error| format!("{host} cannot be resolved now: {error}"))?;
    let mut last = format!("{host} has no address now");
    for address in addresses {
        match TcpStream::connect_timeout(&address, PROBE_MAX) {
            Ok(_) => return Ok(()),
            Err(error) => last = format!("nobody is there now: {address}: {error}"),
        }
    }
    Err(last)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_shown_has_no_password() {
        let bridge = BridgeConfig::of_source("mqtt://u:tiger@localhost:1/city/#".parse().unwrap());
        let text = resolved(&bridge, Some("i"));
        assert!(text.starts_with("mqtt://u@localhost:1, MQTT 5.0, client id catchment"), "{text}");
        assert!(text.ends_with("in city/# at QoS 1") && !text.contains("tiger"), "{text}");
    }
}
