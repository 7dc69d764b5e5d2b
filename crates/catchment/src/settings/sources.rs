//! Where messages are taken from: other brokers (`mqtt://`, `mqtts://`), and topics of Kafka (`kafka://`).

use std::fmt;
use std::str::FromStr;

use catchment_eventlog::kafka::source::SourceTarget;
use catchment_gateway::bridge::Address;
use serde::de::Error;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// One source. Displayed without its secrets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Source {
    /// Another broker, with what is subscribed to there.
    Broker(Address),
    /// A topic of Kafka.
    Kafka(Box<SourceTarget>),
}

impl FromStr for Source {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text.starts_with("kafka://") {
            let target = SourceTarget::parse(text).map_err(|error| error.to_string())?;
            return Ok(Self::Kafka(Box::new(target)));
        }
        text.parse()
            .map(Self::Broker)
            .map_err(|error: catchment_gateway::bridge::BadAddress| error.to_string())
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Broker(address) => f.write_str(&String::from(address.clone())),
            Self::Kafka(target) => write!(f, "{target}"),
        }
    }
}

impl Serialize for Source {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// A list, or one text with white space between, as flags and environment variables have it. A text that is wrong is not shown:
/// there may be a password in it.
pub(super) fn sources<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Source>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Form {
        Text(String),
        List(Vec<String>),
    }
    let texts = match Form::deserialize(deserializer)? {
        Form::Text(text) => text.split_whitespace().map(str::to_owned).collect(),
        Form::List(list) => list,
    };
    texts.iter().map(|text| text.parse().map_err(D::Error::custom)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources_are_brokers_or_topics() {
        let source: Source = "kafka://u:secret@h/demo?type=quote&device=name".parse().unwrap();
        assert_eq!(source.to_string(), "kafka://h:9092/demo (group catchment-demo)");
        let source: Source = "mqtt://u:secret@h/city/#".parse().unwrap();
        assert_eq!(source.to_string(), "mqtt://u@h:1883/city/#");
        for bad in ["http://secret@h", "kafka://secret@h", "mqtt://u:secret@"] {
            let error = bad.parse::<Source>().unwrap_err();
            assert!(!error.contains("secret"), "{error}");
        }
    }
}
