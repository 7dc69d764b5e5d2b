//! What an operator can set about bridges: `sources`, which are addresses with a filter, and `[[bridges]]` with everything.

use std::collections::HashSet;
use std::fmt;
use std::path::PathBuf;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use thiserror::Error;

use super::address::Address;
use super::rules::{self, Rules};
use crate::config::MqttConfig;
use crate::mqtt::{QoS, TopicLimits};

/// Longest name of a bridge, in bytes.
const NAME_BYTES_MAX: usize = 200;

/// A secret text: nothing shows it.
#[derive(Clone, PartialEq, Eq, Deserialize)]
pub struct Secret(String);

impl Secret {
    /// Takes a text in.
    #[must_use]
    pub const fn new(text: String) -> Self {
        Self(text)
    }

    /// The text.
    #[must_use]
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

impl Serialize for Secret {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str("***")
    }
}

/// A connection to another broker: one of `[[bridges]]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BridgeConfig {
    /// Its name in logs and metrics. With the data folder's instance it makes the client id, and so finds its session again.
    pub name: String,
    /// The broker. A filter in it is one more rule inwards.
    pub url: Address,
    /// Version of the protocol.
    #[serde(default)]
    pub version: BridgeVersion,
    /// Client id there; without one, it is made of the instance and the name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client_id: Option<String>,
    /// User name, where the address has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// Password, where the address has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub password: Option<Secret>,
    /// File whose first line is the password; read anew with every connection.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub password_file: Option<PathBuf>,
    /// PEM file of the CAs that the broker's certificate is verified by; without one, those that the system trusts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca: Option<PathBuf>,
    /// PEM file with our certificate, and those that lead to its CA.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub certificate: Option<PathBuf>,
    /// PEM file with the certificate's key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<PathBuf>,
    /// Name that the broker's certificate must have, where it is not the host of the address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub server_name: Option<String>,
    /// The realm whose topics these are.
    #[serde(default = "main_realm")]
    pub realm: String,
    /// Seconds of silence after which the broker is asked whether it is there, and given up when it does not answer.
    #[serde(default = "keep_alive_s")]
    pub keep_alive_s: u16,
    /// Seconds that the broker is to keep the session while we are away; 4294967295: for ever. Of 5.0; with 3.1.1 the
    /// broker decides.
    #[serde(default = "session_expiry_s")]
    pub session_expiry_s: u32,
    /// Largest packet that is taken, in bytes.
    #[serde(default = "packet_bytes_max")]
    pub packet_bytes_max: usize,
    /// Whether a message of QoS 1 that the broker sends again is taken once, where it is the same under the same packet
    /// identifier. See `bridge` on what can be told.
    #[serde(default = "yes")]
    pub deduplicate: bool,
    /// With 3.1.1: tells the broker that this is a bridge, as mosquitto understands it.
    #[serde(default)]
    pub says_bridge: bool,
    /// Seconds that connecting may take, all in all.
    #[serde(default = "connect_s_max")]
    pub connect_s_max: u64,
    /// Milliseconds before the first further attempt; doubled with each, and a random part of them waited.
    #[serde(default = "reconnect_ms_min")]
    pub reconnect_ms_min: u64,
    /// Milliseconds between attempts at the most.
    #[serde(default = "reconnect_ms_max")]
    pub reconnect_ms_max: u64,
    /// Messages that may wait for the broker; further ones are dropped and counted.
    #[serde(default = "queue_messages_max")]
    pub queue_messages_max: usize,
    /// Bytes of these messages.
    #[serde(default = "queue_bytes_max")]
    pub queue_bytes_max: usize,
    /// What is subscribed to there.
    #[serde(rename = "in", default, skip_serializing_if = "Vec::is_empty")]
    pub inward: Vec<InRule>,
    /// What is published there.
    #[serde(rename = "out", default, skip_serializing_if = "Vec::is_empty")]
    pub outward: Vec<OutRule>,
}

/// Messages of the other broker that come here.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InRule {
    /// Topics there; may be shared (`$share/GROUP/FILTER`).
    pub filter: String,
    /// Highest quality of service.
    #[serde(default = "qos")]
    pub qos: u8,
    /// What is cut off the front of a topic.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub strip_prefix: String,
    /// What is then put in front.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub add_prefix: String,
    /// Whether messages that were retained before are taken.
    #[serde(default = "yes")]
    pub retained: bool,
}

/// Messages from here that go to the other broker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OutRule {
    /// Topics here.
    pub filter: String,
    /// Highest quality of service. A message of QoS 0 is not kept for a broker that is away.
    #[serde(default = "qos")]
    pub qos: u8,
    /// What is cut off the front of a topic.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub strip_prefix: String,
    /// What is then put in front.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub add_prefix: String,
    /// Whether a message that was published as retained is retained there.
    #[serde(default = "yes")]
    pub retain: bool,
}

/// A version of MQTT.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum BridgeVersion {
    /// 3.1.1
    #[serde(rename = "3.1.1")]
    V3,
    /// 5.0
    #[default]
    #[serde(rename = "5.0")]
    V5,
}

fn main_realm() -> String {
    catchment_types::DEFAULT_REALM.to_owned()
}
const fn keep_alive_s() -> u16 {
    30
}
const fn session_expiry_s() -> u32 {
    7 * 86_400
}
const fn packet_bytes_max() -> usize {
    16 << 20
}
const fn yes() -> bool {
    true
}
const fn connect_s_max() -> u64 {
    10
}
const fn reconnect_ms_min() -> u64 {
    500
}
const fn reconnect_ms_max() -> u64 {
    30_000
}
const fn queue_messages_max() -> usize {
    100_000
}
const fn queue_bytes_max() -> usize {
    64 << 20
}
const fn qos() -> u8 {
    1
}

/// Bridges that cannot work.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("the bridge {name:?}: {what}")]
pub struct BadBridge {
    name: String,
    what: String,
}

impl BridgeConfig {
    /// The bridge of an address that stands alone, as `--source` has it. Its name is the address without user and password.
    #[must_use]
    pub fn of_source(url: Address) -> Self {
        let plain = Address { user: None, password: None, ..url.clone() };
        Self {
            name: String::from(plain),
            url,
            version: BridgeVersion::default(),
            client_id: None,
            user: None,
            password: None,
            password_file: None,
            ca: None,
            certificate: None,
            key: None,
            server_name: None,
            realm: main_realm(),
            keep_alive_s: keep_alive_s(),
            session_expiry_s: session_expiry_s(),
            packet_bytes_max: packet_bytes_max(),
            deduplicate: true,
            says_bridge: false,
            connect_s_max: connect_s_max(),
            reconnect_ms_min: reconnect_ms_min(),
            reconnect_ms_max: reconnect_ms_max(),
            queue_messages_max: queue_messages_max(),
            queue_bytes_max: queue_bytes_max(),
            inward: Vec::new(),
            outward: Vec::new(),
        }
    }

    /// All rules inwards, that of the address first.
    #[must_use]
    pub fn rules_in(&self) -> Vec<InRule> {
        let of_address = self.url.filter.iter().map(|filter| InRule {
            filter: filter.clone(),
            qos: qos(),
            strip_prefix: String::new(),
            add_prefix: String::new(),
            retained: true,
        });
        of_address.chain(self.inward.iter().cloned()).collect()
    }

    /// The user name, from wherever.
    #[must_use]
    pub fn user(&self) -> Option<&str> {
        self.url.user.as_deref().or(self.user.as_deref())
    }

    /// Checks everything that can be checked without touching a file or the network.
    ///
    /// # Errors
    /// Names the bridge and what is wrong with it.
    pub fn check(&self, mqtt: &MqttConfig) -> Result<(), BadBridge> {
        let bad = |what: String| Err(BadBridge { name: self.name.clone(), what });
        if self.name.is_empty() || self.name.len() > NAME_BYTES_MAX || self.name.contains(char::is_control) {
            return bad(format!("a name has 1 to {NAME_BYTES_MAX} bytes and no control characters"));
        }
        let ranges = [
            ("keep_alive_s", u64::from(self.keep_alive_s), 1, 65_535),
            ("connect_s_max", self.connect_s_max, 1, 3600),
            ("reconnect_ms_min", self.reconnect_ms_min, 10, 3_600_000),
            ("reconnect_ms_max", self.reconnect_ms_max, self.reconnect_ms_min, 86_400_000),
            ("queue_messages_max", self.queue_messages_max as u64, 1, 1 << 30),
            ("queue_bytes_max", self.queue_bytes_max as u64, 1, u32::MAX.into()),
            ("packet_bytes_max", self.packet_bytes_max as u64, 256, 268_435_455),
        ];
        if let Some((field, value, min, max)) =
            ranges.into_iter().find(|(_, value, min, max)| !(min..=max).contains(&value))
        {
            return bad(format!("{field} is {value}; it must be from {min} to {max}"));
        }
        if self.password.is_some() as u8
            + self.password_file.is_some() as u8
            + self.url.password.is_some() as u8
            > 1
        {
            return bad("has more than one password: in the address, password, or password_file".to_owned());
        }
        let has_password =
            self.password.is_some() || self.password_file.is_some() || self.url.password.is_some();
        if has_password && self.user().is_none() && self.version == BridgeVersion::V3 {
            return bad("has a password but no user, which MQTT 3.1.1 does not allow".to_owned());
        }
        let tls_fields = [("ca", &self.ca), ("certificate", &self.certificate), ("key", &self.key)];
        if let Some((field, _)) = tls_fields.iter().find(|(_, path)| path.is_some() && !self.url.tls) {
            return bad(format!("{field} is of use only with TLS; write mqtts:// instead of mqtt://"));
        }
        if self.certificate.is_some() != self.key.is_some() {
            return bad("certificate and key go together: name both, or neither".to_owned());
        }
        if self.rules_in().is_empty() && self.outward.is_empty() {
            return bad("neither takes nor gives anything; put a filter behind the address, or add [[bridges.in]] or [[bridges.out]]".to_owned());
        }
        self.check_rules(&mqtt.topic_limits()).or_else(bad)
    }

    fn check_rules(&self, limits: &TopicLimits) -> Result<(), String> {
        let inward = self.rules_in();
        for rule in &inward {
            let filter =
                limits.filter(&rule.filter).ok_or_else(|| format!("{:?} is no topic filter", rule.filter))?;
            check_rule(filter.filter, rule.qos, &rule.strip_prefix, &rule.add_prefix)?;
        }
        for rule in &self.outward {
            let filter = limits.filter(&rule.filter).filter(|filter| filter.group.is_none());
            let filter = filter.ok_or_else(|| {
                format!("{:?} is no topic filter (and here none may be shared)", rule.filter)
            })?;
            check_rule(filter.filter, rule.qos, &rule.strip_prefix, &rule.add_prefix)?;
        }
        // 5.0 servers do not send us what we published ourselves; otherwise it would come back.
        for rule in &inward {
            let filter = limits.filter(&rule.filter).ok_or("no filter")?;
            let is_told = match self.version {
                BridgeVersion::V5 => filter.group.is_none(),
                BridgeVersion::V3 => self.says_bridge && filter.group.is_none(),
            };
            let there = |out: &OutRule| rules::rewritten(&out.filter, &out.strip_prefix, &out.add_prefix);
            if let Some(out) = self.outward.iter().find(|out| rules::overlaps(&there(out), filter.filter))
                && !is_told
            {
                return Err(format!(
                    "what {:?} sends there comes back by {:?}: only MQTT 5.0 can prevent that, and not for shared \
                     subscriptions; use other topics there (add_prefix), or with mosquitto 3.1.1 says_bridge = true",
                    out.filter, rule.filter
                ));
            }
        }
        Ok(())
    }

    pub(super) fn compiled_in(&self) -> Rules {
        let rules = self.rules_in();
        Rules::new(rules.iter().map(|rule| {
            let filter = rule.filter.strip_prefix("$share/").and_then(|shared| shared.split_once('/'));
            let filter = filter.map_or(rule.filter.as_str(), |(_, filter)| filter);
            (filter, rule.strip_prefix.as_str(), rule.add_prefix.as_str(), rule.retained)
        }))
    }

    pub(super) fn compiled_out(&self) -> Rules {
        let rules = self.outward.iter();
        Rules::new(rules.map(|rule| {
            (rule.filter.as_str(), rule.strip_prefix.as_str(), rule.add_prefix.as_str(), rule.retain)
        }))
    }
}

fn check_rule(filter: &str, qos: u8, strip: &str, add: &str) -> Result<(), String> {
    if QoS::from_bits(qos).is_none() {
        return Err(format!("qos of {filter:?} is {qos}; it must be 0, 1 or 2"));
    }
    if strip.contains(['+', '#']) || add.contains(['+', '#', '\0']) {
        return Err(format!("a prefix of {filter:?} has a wildcard or U+0000; prefixes are plain text"));
    }
    let literal = filter.find(['+', '#']).map_or(filter, |at| &filter[..at]);
    if !literal.starts_with(strip) {
        return Err(format!("strip_prefix {strip:?} is not how {filter:?} begins"));
    }
    if literal.len() == strip.len() && literal.len() == filter.len() && add.is_empty() {
        return Err(format!("nothing is left of the topic {filter:?} without {strip:?}"));
    }
    Ok(())
}

/// Checks all bridges together; see [`BridgeConfig::check`].
///
/// # Errors
/// Names the bridge and what is wrong with it.
pub fn check_bridges(bridges: &[BridgeConfig], mqtt: &MqttConfig) -> Result<(), BadBridge> {
    let (mut names, mut sessions) = (HashSet::new(), HashSet::new());
    for bridge in bridges {
        bridge.check(mqtt)?;
        let bad = |what: &str| Err(BadBridge { name: bridge.name.clone(), what: what.to_owned() });
        if !names.insert(&bridge.name) {
            return bad("is there twice; give each a name of its own");
        }
        let session = (&bridge.url.host, bridge.url.port, &bridge.client_id);
        if bridge.client_id.is_some() && !sessions.insert(session) {
            return bad(
                "has the client id of another bridge to the same broker: they would end each other's connections",
            );
        }
    }
    Ok(())
}

/// Bridges: a list, or a text that is one in TOML, as environment variables have it.
///
/// # Errors
/// It is none.
pub fn bridges<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<BridgeConfig>, D::Error> {
    texts_or(deserializer, |text| {
        #[derive(Deserialize)]
        struct Wrapped {
            bridges: Vec<BridgeConfig>,
        }
        let wrapped = toml::from_str::<Wrapped>(&format!("bridges = {text}"));
        // The whole error would show the line, and with it what may be a password.
        wrapped.map(|wrapped| wrapped.bridges).map_err(|error| error.message().to_owned())
    })
}

fn texts_or<'de, D: Deserializer<'de>, T: Deserialize<'de>>(
    deserializer: D,
    of_text: fn(&str) -> Result<Vec<T>, String>,
) -> Result<Vec<T>, D::Error> {
    struct Either<T>(fn(&str) -> Result<Vec<T>, String>);
    impl<'de, T: Deserialize<'de>> serde::de::Visitor<'de> for Either<T> {
        type Value = Vec<T>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a list")
        }

        fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Vec<T>, E> {
            (self.0)(text).map_err(E::custom)
        }

        fn visit_seq<A: serde::de::SeqAccess<'de>>(self, mut items: A) -> Result<Vec<T>, A::Error> {
            let mut all = Vec::new();
            while let Some(item) = items.next_element()? {
                all.push(item);
            }
            Ok(all)
        }
    }
    deserializer.deserialize_any(Either(of_text))
}

#[cfg(test)]
mod tests;
