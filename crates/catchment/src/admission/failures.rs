//! Addresses that fail to log in too often are kept out for a while. In memory only: a restart forgets them.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use catchment_store::registry::{BanRecord, Banned};
use catchment_types::{DEFAULT_REALM, Timestamp};
use parking_lot::Mutex;

use super::config::{BanConfig, client_part};

/// Addresses that are counted, and those that are banned, at most.
const ADDRESSES_MAX: usize = 100_000;

#[derive(Debug)]
pub(super) struct FailedLogins {
    config: BanConfig,
    exempt: Vec<Banned>,
    state: Mutex<State>,
    /// Mostly none, and then nobody takes the lock.
    banned: AtomicUsize,
}

#[derive(Debug, Default)]
struct State {
    counts: HashMap<IpAddr, Count>,
    bans: HashMap<IpAddr, Ban>,
}

#[derive(Debug)]
struct Count {
    failures: u32,
    since: Instant,
}

#[derive(Debug)]
struct Ban {
    ends: Instant,
    record: BanRecord,
}

impl FailedLogins {
    pub(super) fn new(config: BanConfig) -> anyhow::Result<Self> {
        let exempt = config.exempt()?;
        Ok(Self { config, exempt, state: Mutex::default(), banned: AtomicUsize::new(0) })
    }

    /// A login from this address failed.
    pub(super) fn note(&self, address: IpAddr) {
        if self.config.failures_max == 0 || self.exempt.iter().any(|network| network.has_address(address)) {
            return;
        }
        let (client, bits) = client_part(address);
        let (now, window) = (Instant::now(), Duration::from_secs(self.config.window_s));
        let state = &mut *self.state.lock();
        if state.counts.len() >= ADDRESSES_MAX {
            state.counts.retain(|_, count| now.duration_since(count.since) < window);
            if state.counts.len() >= ADDRESSES_MAX {
                // Counting anew is better than counting no more.
                state.counts.clear();
            }
        }
        let count = state.counts.entry(client).or_insert(Count { failures: 0, since: now });
        if now.duration_since(count.since) >= window {
            *count = Count { failures: 0, since: now };
        }
        count.failures += 1;
        if count.failures < self.config.failures_max {
            return;
        }
        state.counts.remove(&client);
        state.bans.retain(|_, ban| ban.ends > now);
        if state.bans.len() < ADDRESSES_MAX {
            let ban = self.ban(client, bits, now);
            tracing::warn!(
                banned = ban.record.banned.value(),
                seconds = self.config.ban_s,
                "too many failed logins"
            );
            state.bans.insert(client, ban);
        }
        self.banned.store(state.bans.len(), Ordering::Release);
    }

    fn ban(&self, client: IpAddr, bits: u8, now: Instant) -> Ban {
        let (created_at, lasts) = (Timestamp::now(), Duration::from_secs(self.config.ban_s));
        let micros = i64::try_from(lasts.as_micros()).unwrap_or(i64::MAX);
        let record = BanRecord {
            id: format!("auto-{client}"),
            realm: DEFAULT_REALM.to_owned(),
            banned: Banned::Network(client, bits),
            reason: format!("{} failed logins", self.config.failures_max),
            until: Some(Timestamp(created_at.as_micros().saturating_add(micros))),
            created_at,
        };
        Ban { ends: now + lasts, record }
    }

    /// How long an address is still kept out.
    pub(super) fn left(&self, address: IpAddr) -> Option<Duration> {
        if self.banned.load(Ordering::Acquire) == 0 {
            return None;
        }
        let ends = self.state.lock().bans.get(&client_part(address).0)?.ends;
        Some(ends.saturating_duration_since(Instant::now())).filter(|left| !left.is_zero())
    }

    pub(super) fn list(&self) -> Vec<BanRecord> {
        let now = Instant::now();
        let state = self.state.lock();
        state.bans.values().filter(|ban| ban.ends > now).map(|ban| ban.record.clone()).collect()
    }

    pub(super) fn lift(&self, id: &str) -> bool {
        let state = &mut *self.state.lock();
        let before = state.bans.len();
        state.bans.retain(|_, ban| ban.record.id != id);
        self.banned.store(state.bans.len(), Ordering::Release);
        state.bans.len() < before
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nth_failure_bans_and_a_word_lifts_it() {
        let config = BanConfig { failures_max: 3, ..BanConfig::default() };
        let failed = FailedLogins::new(config).unwrap();
        let (one, other) = ("203.0.113.9".parse().unwrap(), "203.0.113.10".parse().unwrap());
        for _ in 0..2 {
            failed.note(one);
        }
        assert_eq!(failed.left(one), None);
        failed.note("::ffff:203.0.113.9".parse().unwrap());
        assert!(failed.left(one).unwrap() > Duration::from_secs(290) && failed.left(other).is_none());
        let id = failed.list()[0].id.clone();
        assert!(failed.lift(&id) && !failed.lift(&id) && failed.left(one).is_none());
        let home = "127.0.0.1".parse().unwrap();
        (0..10).for_each(|_| failed.note(home));
        assert_eq!(failed.left(home), None, "exempt");
    }

    #[test]
    fn a_network_of_64_bits_is_one_client() {
        let config = BanConfig { failures_max: 2, ..BanConfig::default() };
        let failed = FailedLogins::new(config).unwrap();
        failed.note("2001:db8::1".parse().unwrap());
        failed.note("2001:db8::2".parse().unwrap());
        assert!(failed.left("2001:db8::ffff".parse().unwrap()).is_some());
        assert!(failed.left("2001:db8:0:1::1".parse().unwrap()).is_none());
        assert_eq!(failed.list()[0].banned.value(), "2001:db8::/64");
    }
}
