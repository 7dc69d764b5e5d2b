//! Whether Kafka answers, and whether its topic is fit to be the log.

use std::time::Duration;

use catchment_eventlog::embedded::LogConfig;
use catchment_eventlog::kafka::source::SourceTarget;
use catchment_eventlog::kafka::{KafkaTarget, Probe, probe};

use super::{Finding, Verdict};

const LATENCY_HIGH: Duration = Duration::from_millis(50);
/// What MQTT and HTTP take by default; a topic that takes less refuses events that devices were allowed to send.
const RECORD_BYTES_MIN: u64 = 2 << 20;

/// Connects, and tells what is there.
pub(super) fn finding(target: KafkaTarget, config: &LogConfig) -> Finding {
    let shown = target.to_string();
    match ask(target) {
        Err(error) => finding_of(shown, Verdict::Bad(error)),
        Ok(probe) => finding_of(format!("{shown} → {}", told(&probe)), verdict(&probe, config)),
    }
}

/// The same of a topic whose records are taken in.
pub(super) fn source(target: &SourceTarget) -> Finding {
    let shown = target.to_string();
    let what = "source of records";
    match ask(target.kafka.clone()) {
        // That it does not answer now is no mistake: it is tried again for ever.
        Err(error) => super::finding(what, shown, Verdict::Note(error)),
        Ok(probe) => {
            let verdict = match probe.partitions {
                Some(_) => Verdict::Good,
                None => Verdict::Note(
                    "there is no such topic yet; its records are taken once it is there".to_owned(),
                ),
            };
            super::finding(what, format!("{shown} → {}, type {}", told(&probe), target.event_type), verdict)
        }
    }
}

fn ask(target: KafkaTarget) -> Result<Probe, String> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
    let runtime = runtime.map_err(|error| error.to_string())?;
    runtime.block_on(probe(target)).map_err(|error| error.to_string())
}

/// What there is to be told of a cluster and a topic.
fn told(probe: &Probe) -> String {
    let cluster = probe.cluster.as_deref().unwrap_or("without an identifier");
    let version = probe.version.as_ref().map_or(String::new(), |version| format!(", version {version}"));
    let brokers = match probe.brokers {
        1 => "1 broker".to_owned(),
        brokers => format!("{brokers} brokers"),
    };
    let topic = match probe.partitions {
        Some(partitions) => format!("topic of {partitions} partitions"),
        None => "no topic yet".to_owned(),
    };
    let latency_ms = probe.latency.as_secs_f64() * 1e3;
    format!("Kafka cluster {cluster}{version}, {brokers}, {topic}, answers in {latency_ms:.1} ms")
}

fn finding_of(found: String, verdict: Verdict) -> Finding {
    super::finding("engine log", found, verdict)
}

fn verdict(probe: &Probe, config: &LogConfig) -> Verdict {
    let Some(partitions) = probe.partitions else {
        return Verdict::Note(format!(
            "the topic will be made, with {} partitions",
            config.partitions_of_new()
        ));
    };
    if config.partitions != 0 && config.partitions != partitions {
        return Verdict::Bad(format!(
            "log.partitions is {}, but the topic has {partitions}: set it to {partitions} or 0, or name another topic",
            config.partitions
        ));
    }
    if !probe.leaderless.is_empty() {
        return Verdict::Bad(format!(
            "nobody leads the partitions {:?}: start the brokers that have them",
            probe.leaderless
        ));
    }
    if let Some(record_bytes_max) = probe.record_bytes_max.filter(|&bytes| bytes < RECORD_BYTES_MIN) {
        return Verdict::Note(format!(
            "it refuses events of more than {record_bytes_max} bytes: raise the topic's max.message.bytes"
        ));
    }
    if probe.latency > LATENCY_HIGH {
        return Verdict::Note("every acknowledgement waits at least that long".to_owned());
    }
    Verdict::Good
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_told() {
        let good = Probe {
            cluster: None,
            version: None,
            brokers: 1,
            partitions: Some(4),
            leaderless: Vec::new(),
            record_bytes_max: Some(16 << 20),
            latency: Duration::from_millis(1),
        };
        let config = LogConfig { partitions: 4, ..LogConfig::default() };
        assert_eq!(verdict(&good, &config), Verdict::Good);
        let told = |probe: Probe, config: &LogConfig| match verdict(&probe, config) {
            Verdict::Good => String::new(),
            Verdict::Note(text) | Verdict::Bad(text) => text,
        };
        assert!(
            told(Probe { partitions: None, ..good.clone() }, &config).contains("made, with 4 partitions")
        );
        assert!(told(Probe { partitions: Some(3), ..good.clone() }, &config).contains("the topic has 3"));
        assert!(told(Probe { leaderless: vec![2], ..good.clone() }, &config).contains("[2]"));
        assert!(
            told(Probe { record_bytes_max: Some(1_048_588), ..good }, &config).contains("max.message.bytes")
        );
    }
}
