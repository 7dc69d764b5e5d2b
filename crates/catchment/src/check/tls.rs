//! Whether certificates, keys, CAs and revocation lists can be served with, and for how long.

use catchment_gateway::transport::{Tls, TlsConfig};
use jiff::Timestamp;

use super::{Finding, Verdict, finding};

/// Certificates that end sooner are told of.
const SOON_DAYS: i64 = 14;

/// What is to be said of `[tls]`; nothing when it is not used.
pub(super) fn findings(config: &TlsConfig) -> Vec<Finding> {
    if !config.is_on() {
        return Vec::new();
    }
    let shown = config.certificate.display().to_string();
    let report = match Tls::check(config) {
        Ok(report) => report,
        Err(error) => return vec![finding("TLS", shown, Verdict::Bad(error.to_string()))],
    };
    let now = Timestamp::now().as_second();
    let mut findings = vec![until("TLS certificate", report.server_end_s, now, Verdict::Bad)];
    // One that has ended refuses its own clients only.
    let others = [("TLS client CA", report.client_ca_end_s), ("TLS revocation list", report.crl_end_s)];
    findings.extend(others.into_iter().filter_map(|(what, end)| Some(until(what, end?, now, Verdict::Note))));
    findings
}

fn until(what: &str, end_s: i64, now_s: i64, ended: fn(String) -> Verdict) -> Finding {
    let day = |seconds| {
        let date = Timestamp::from_second(seconds).map(|at| at.strftime("%Y-%m-%d").to_string());
        date.unwrap_or_else(|_| "the end of time".to_owned())
    };
    let days = (end_s - now_s).div_euclid(86_400);
    let verdict = match days {
        ..0 => {
            ended(format!("it ended on {}; replace the file, it is read anew without a restart", day(end_s)))
        }
        0..SOON_DAYS => Verdict::Note(format!("it ends in {days} days")),
        _ => Verdict::Good,
    };
    finding(what, format!("good until {}", day(end_s)), verdict)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_certificate_is_judged() {
        let day = 86_400;
        let of = |end| until("c", end, 100 * day, Verdict::Bad).verdict;
        assert_eq!(of(200 * day), Verdict::Good);
        assert_eq!(of(105 * day), Verdict::Note("it ends in 5 days".to_owned()));
        assert!(matches!(of(99 * day), Verdict::Bad(text) if text.contains("1970-04-10")));
    }
}
