//! Whether S3 answers, and whether its bucket is fit for tables.

use std::time::Duration;

use catchment_store::storage::s3::{Probe, S3Place, probe};

use super::{Finding, Verdict};
use crate::engines::Seam;

const LATENCY_HIGH: Duration = Duration::from_millis(500);

/// Writes a small object twice and deletes it, and tells what that says.
pub(super) fn finding(seam: Seam, place: &S3Place) -> Finding {
    let name = format!("engine {}", seam.name());
    match probe(place) {
        Err(error) => super::finding(name, place.to_string(), Verdict::Bad(error.to_string())),
        Ok(probe) => {
            let latency_ms = probe.latency.as_secs_f64() * 1e3;
            let found = format!("{place} → S3 that takes objects, answers in {latency_ms:.1} ms");
            super::finding(name, found, verdict(&probe))
        }
    }
}

fn verdict(probe: &Probe) -> Verdict {
    if !probe.is_conditional {
        return Verdict::Bad(
            "it lets an object be made twice that was to be made only if it is not there (`If-None-Match: *`): two writers \
             would not find each other out; use a store that knows conditional puts"
                .to_owned(),
        );
    }
    if probe.latency > LATENCY_HIGH {
        return Verdict::Note("it is slow: flushes and queries wait for several such answers".to_owned());
    }
    Verdict::Good
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_store_that_ignores_conditions_is_refused() {
        let good = Probe { latency: Duration::from_millis(5), is_conditional: true };
        assert_eq!(verdict(&good), Verdict::Good);
        let Verdict::Bad(text) = verdict(&Probe { is_conditional: false, ..good }) else { panic!("refused") };
        assert!(text.contains("conditional puts"), "{text}");
        let slow = Probe { latency: Duration::from_secs(2), ..good };
        assert!(matches!(verdict(&slow), Verdict::Note(_)));
    }
}
