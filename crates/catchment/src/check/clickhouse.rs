//! Whether ClickHouse answers, and whether history can be in it.

use std::time::Duration;

use catchment_store::clickhouse::{ClickHouseProbe, ClickHouseTarget, probe};

use super::{Finding, Verdict};

const LATENCY_HIGH: Duration = Duration::from_millis(200);
/// Times of rows are ours, retention goes by the server's.
const SKEW_HIGH: Duration = Duration::from_secs(5);

/// Connects, and tells what is there. `archive` is the one that is named beside.
pub(super) fn finding(target: &ClickHouseTarget, archive: Option<&str>) -> Finding {
    let shown = target.to_string();
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return finding_of(shown, Verdict::Bad(error.to_string())),
    };
    match runtime.block_on(probe(target, archive.is_some())) {
        Err(error) => finding_of(shown, Verdict::Bad(error.to_string())),
        Ok(probe) => {
            let tables = match probe.schema {
                Some(version) => format!("tables of version {version}"),
                None => "no tables yet".to_owned(),
            };
            let latency_ms = probe.latency.as_secs_f64() * 1e3;
            let found =
                format!("{shown} → ClickHouse {}, {tables}, answers in {latency_ms:.1} ms", probe.version);
            finding_of(found, verdict(&probe, &target.database, archive))
        }
    }
}

fn finding_of(found: String, verdict: Verdict) -> Finding {
    super::finding("engine history", found, verdict)
}

fn verdict(probe: &ClickHouseProbe, database: &str, archive: Option<&str>) -> Verdict {
    if !probe.rights_missing.is_empty() {
        let rights = probe.rights_missing.join(", ");
        return Verdict::Bad(format!(
            "the user has not got these rights: GRANT {rights} ON {database}.* TO it"
        ));
    }
    if let Some(known) = probe.archive.as_deref().filter(|known| Some(*known) != archive) {
        return Verdict::Bad(format!("its archive is {known}: name that as --archive"));
    }
    if probe.clock_skew > SKEW_HIGH {
        return Verdict::Bad(format!(
            "its clock and ours are {:.0} s apart: set both by NTP, or rows are kept too long or not long enough",
            probe.clock_skew.as_secs_f64()
        ));
    }
    if !probe.has_database {
        return Verdict::Note(format!("the database {database} will be made"));
    }
    if probe.schema.is_none() {
        return Verdict::Note("the tables will be made".to_owned());
    }
    if probe.latency > LATENCY_HIGH {
        return Verdict::Note("every query waits at least that long".to_owned());
    }
    Verdict::Good
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_told() {
        let good = ClickHouseProbe {
            version: "26.9".to_owned(),
            latency: Duration::from_millis(1),
            clock_skew: Duration::from_millis(3),
            schema: Some(1),
            archive: None,
            has_database: true,
            rights_missing: Vec::new(),
        };
        assert_eq!(verdict(&good, "city", None), Verdict::Good);
        let archived = ClickHouseProbe { archive: Some("s3://b/cold".to_owned()), ..good.clone() };
        assert_eq!(verdict(&archived, "city", Some("s3://b/cold")), Verdict::Good);
        assert!(matches!(verdict(&archived, "city", Some("s3://b/else")), Verdict::Bad(_)));
        let told = |probe: ClickHouseProbe| match verdict(&probe, "city", None) {
            Verdict::Good => String::new(),
            Verdict::Note(text) | Verdict::Bad(text) => text,
        };
        assert!(told(ClickHouseProbe { schema: None, ..good.clone() }).contains("tables will be made"));
        let none = ClickHouseProbe { schema: None, has_database: false, ..good.clone() };
        assert!(told(none).contains("database city will be made"));
        let rights = ClickHouseProbe { rights_missing: vec!["INSERT", "ALTER MODIFY TTL"], ..good.clone() };
        assert!(told(rights).contains("GRANT INSERT, ALTER MODIFY TTL ON city.* TO it"));
        assert_eq!(told(archived), "its archive is s3://b/cold: name that as --archive");
        assert!(told(ClickHouseProbe { clock_skew: Duration::from_secs(90), ..good }).contains("90 s apart"));
    }
}
