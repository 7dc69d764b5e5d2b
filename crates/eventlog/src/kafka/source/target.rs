//! How a source is named: the URL of Kafka, with what only a source has.

use catchment_types::url_decoded;
use std::fmt;

use thiserror::Error;

use super::super::{BadTarget, KafkaConfig, KafkaTarget, Security};

/// Who we are to Event Hubs when we come with a connection string.
const CONNECTION_STRING_USER: &str = "$ConnectionString";

/// A topic whose records become events. Displayed without secrets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SourceTarget {
    /// Brokers, topic, group, and how to get there.
    pub kafka: KafkaTarget,
    /// The type of all events: it chooses their decoder.
    pub event_type: String,
    /// Whose events they are.
    pub device: DeviceFrom,
    /// Whether a group that is new begins at the end; else with the oldest record there is.
    pub from_the_end: bool,
}

/// Where the device id of a record stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DeviceFrom {
    /// The device of IoT Hub, if there is one; else the key, if there is one; else the topic's name.
    Record,
    /// A field of the JSON object, by its name; of objects in it, by names with dots between. The record where it has none.
    Field(String),
}

/// A URL that names no source. Does not repeat it.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum BadSource {
    /// What any URL of Kafka has is wrong.
    #[error(transparent)]
    Target(#[from] BadTarget),
    /// It names no topic.
    #[error("the Kafka source names no topic: write kafka://HOST:PORT/TOPIC")]
    NoTopic,
    /// A setting that cannot be so.
    #[error("the Kafka source's {name} must be {expected}")]
    Value {
        /// Its name.
        name: &'static str,
        /// What it can be.
        expected: String,
    },
}

impl SourceTarget {
    /// Understands a URL.
    ///
    /// # Errors
    /// Says which part of it is wrong.
    pub fn parse(url: &str) -> Result<Self, BadSource> {
        let (address, query) = url.split_once('?').unwrap_or((url, ""));
        let mut section = KafkaConfig::default();
        let (mut event_type, mut device, mut from_the_end) = (None, DeviceFrom::Record, false);
        let mut of_kafka = Vec::new();
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let bad = |name, expected: &str| BadSource::Value { name, expected: expected.to_owned() };
            let text = |name| url_decoded(value).ok_or_else(|| bad(name, "UTF-8"));
            match name {
                "type" => event_type = Some(text("type")?),
                "device" => device = DeviceFrom::Field(text("device")?),
                "from" => {
                    from_the_end = match value {
                        "earliest" => false,
                        "latest" => true,
                        _ => return Err(bad("from", "earliest or latest")),
                    };
                }
                "connection_string_file" => {
                    CONNECTION_STRING_USER.clone_into(&mut section.user);
                    section.password_file = Some(text("connection_string_file")?.into());
                    section.security.get_or_insert(Security::SaslSsl);
                }
                // Of the log only.
                "replication" | "trim" | "publish_readings" => {
                    return Err(BadTarget::Setting { name: name.to_owned() }.into());
                }
                _ => of_kafka.push(pair),
            }
        }
        let kafka = KafkaTarget::parse(&format!("{address}?{}", of_kafka.join("&")), &section)?;
        let has_topic = address
            .trim_start_matches("kafka://")
            .split_once('/')
            .is_some_and(|(_, topic)| !topic.is_empty());
        if !has_topic {
            return Err(BadSource::NoTopic);
        }
        let event_type = event_type.unwrap_or_else(|| kafka.topic.clone());
        catchment_types::check_event_type(&event_type)
            .map_err(|error| BadSource::Value { name: "type", expected: error.to_string() })?;
        if device == DeviceFrom::Field(String::new()) {
            return Err(BadSource::Value { name: "device", expected: "the name of a JSON field".to_owned() });
        }
        Ok(Self { kafka, event_type, device, from_the_end })
    }
}

impl fmt::Display for SourceTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (group {})", self.kafka, self.kafka.group())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_say_what_becomes_of_records() {
        let plain = SourceTarget::parse("kafka://h:9092/demo").unwrap();
        assert_eq!((plain.event_type.as_str(), &plain.device), ("demo", &DeviceFrom::Record));
        assert_eq!(plain.to_string(), "kafka://h:9092/demo (group catchment-demo)");
        let full =
            "kafka://u:secret@h/demo?group=g&type=quote&device=tags.name&from=latest&security=sasl_plaintext";
        let full = SourceTarget::parse(full).unwrap();
        assert_eq!((full.event_type.as_str(), full.from_the_end), ("quote", true));
        assert_eq!(full.device, DeviceFrom::Field("tags.name".to_owned()));
        assert_eq!((full.kafka.group().as_str(), full.kafka.config.user.as_str()), ("g", "u"));
        assert!(!format!("{full} {full:?}").contains("secret"));
        // As Event Hubs want it.
        let azure = "kafka://ns.servicebus.windows.net:9093/hub?connection_string_file=/run/hub";
        let azure = SourceTarget::parse(azure).unwrap();
        assert_eq!(azure.kafka.security(), Security::SaslSsl);
        assert_eq!(
            (azure.kafka.config.user.as_str(), azure.kafka.config.mechanism.as_str()),
            ("$ConnectionString", "PLAIN")
        );
        assert_eq!(azure.kafka.config.password_file.as_deref(), Some("/run/hub".as_ref()));
    }

    #[test]
    fn mistakes_are_told() {
        let message = |url: &str| SourceTarget::parse(url).unwrap_err().to_string();
        assert!(message("kafka://h").contains("names no topic"));
        assert!(message("kafka://h/t?trim=true").contains("not \"trim\""));
        assert!(message("kafka://h/t?from=now").contains("earliest or latest"));
        assert!(message("kafka://h/t?device=").contains("JSON field"));
        assert!(message("kafka://h/t?type=a/b").contains("type must be"));
    }
}
