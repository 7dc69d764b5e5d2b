//! How much a client may send: meters that fill by the second and allow a burst.
//!
//! A [`Meter`] is a generic cell rate algorithm in one atomic: the time at which everything that was taken so far is paid
//! for. What comes in is charged after it was read, so that one charge a read is enough; who is over the burst then is not
//! read until the debt is paid. Connections and requests of one device share its meters, and all of a realm those of
//! the realm: a client gains nothing by connecting twice or anew.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use catchment_types::RateLimits;

const SECOND_NS: u64 = 1_000_000_000;

/// One limited rate.
#[derive(Debug)]
struct Cell {
    /// Units a second; 0: without a limit.
    rate: u64,
    burst_ns: u64,
    /// Nanoseconds after the meter's start at which everything is paid for.
    paid_ns: AtomicU64,
}

impl Cell {
    fn new(rate: u64, burst_s: u32) -> Self {
        let burst_ns = u64::from(burst_s.max(1)) * SECOND_NS;
        Self { rate, burst_ns, paid_ns: AtomicU64::new(0) }
    }

    /// Takes `units`, whatever the state. Gives how long the taker has to wait now.
    fn charge(&self, units: u64, now_ns: u64) -> Duration {
        if self.rate == 0 {
            return Duration::ZERO;
        }
        let cost = u64::try_from(u128::from(units) * u128::from(SECOND_NS) / u128::from(self.rate));
        let cost = cost.unwrap_or(u64::MAX / 4).min(u64::MAX / 4);
        let add = |paid: u64| Some(paid.max(now_ns).saturating_add(cost));
        // The closure always gives a value.
        let before = self.paid_ns.fetch_update(Ordering::Relaxed, Ordering::Relaxed, add).unwrap_or_default();
        self.debt(before.max(now_ns).saturating_add(cost), now_ns)
    }

    /// How long to wait until something may be taken.
    fn wait(&self, now_ns: u64) -> Duration {
        match self.rate {
            0 => Duration::ZERO,
            _ => self.debt(self.paid_ns.load(Ordering::Relaxed), now_ns),
        }
    }

    fn debt(&self, paid_ns: u64, now_ns: u64) -> Duration {
        Duration::from_nanos(paid_ns.saturating_sub(now_ns).saturating_sub(self.burst_ns))
    }

    fn is_idle(&self, now_ns: u64) -> bool {
        self.paid_ns.load(Ordering::Relaxed) <= now_ns
    }
}

/// The meters of one device or of one realm.
#[derive(Debug)]
pub struct Meter {
    limits: RateLimits,
    start: Instant,
    messages: Cell,
    bytes: Cell,
    connects: Cell,
}

impl Meter {
    /// A meter that nothing was taken from.
    #[must_use]
    pub fn new(limits: RateLimits) -> Self {
        let cell = |rate| Cell::new(rate, limits.burst_s);
        Self {
            limits,
            start: Instant::now(),
            messages: cell(limits.messages_per_s.into()),
            bytes: cell(limits.bytes_per_s),
            connects: cell(limits.connects_per_s.into()),
        }
    }

    /// What it was made of.
    #[must_use]
    pub const fn limits(&self) -> RateLimits {
        self.limits
    }

    /// Whether forgetting it would change nothing: everything that was taken is paid for.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        let now = self.now_ns();
        self.messages.is_idle(now) && self.bytes.is_idle(now) && self.connects.is_idle(now)
    }

    fn now_ns(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    /// Takes one connection, if there is room for it.
    fn connect(&self) -> Result<(), Duration> {
        let now = self.now_ns();
        match self.connects.wait(now) {
            Duration::ZERO => {
                self.connects.charge(1, now);
                Ok(())
            }
            wait => Err(wait),
        }
    }

    fn charge(&self, messages: u64, bytes: u64) -> Duration {
        let now = self.now_ns();
        self.messages.charge(messages, now).max(self.bytes.charge(bytes, now))
    }

    fn wait(&self) -> Duration {
        let now = self.now_ns();
        self.messages.wait(now).max(self.bytes.wait(now))
    }
}

/// What one client shares with others of its device and realm.
#[derive(Debug, Default)]
pub struct ClientLimits {
    /// Of its device.
    pub device: Option<Arc<Meter>>,
    /// Of its realm.
    pub realm: Option<Arc<Meter>>,
}

impl ClientLimits {
    fn meters(&self) -> impl Iterator<Item = &Arc<Meter>> {
        self.device.iter().chain(&self.realm)
    }

    /// Takes one connection.
    ///
    /// # Errors
    /// How long to wait.
    pub fn connect(&self) -> Result<(), Duration> {
        // The device first: one that comes too often does not use up what others of the realm may.
        self.meters().try_for_each(|meter| meter.connect())
    }

    /// Takes what has come. Gives how long nothing more is to be read.
    pub fn charge(&self, messages: u64, bytes: u64) -> Duration {
        self.meters().map(|meter| meter.charge(messages, bytes)).max().unwrap_or_default()
    }

    /// Takes one message, unless something is owed. Gives how long to wait.
    pub fn take(&self, bytes: u64) -> Duration {
        let wait = self.wait();
        if wait.is_zero() {
            self.charge(1, bytes);
        }
        wait
    }

    /// How long nothing is to be taken.
    #[must_use]
    pub fn wait(&self) -> Duration {
        self.meters().map(|meter| meter.wait()).max().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_then_the_rate() {
        let cell = Cell::new(10, 2);
        assert_eq!(cell.charge(20, 0), Duration::ZERO, "two seconds' worth at once");
        assert_eq!(cell.wait(0), Duration::ZERO);
        assert_eq!(cell.charge(1, 0), Duration::from_millis(100));
        assert_eq!(cell.wait(50_000_000), Duration::from_millis(50));
        assert_eq!(cell.charge(5, SECOND_NS), Duration::ZERO);
        assert!(!cell.is_idle(SECOND_NS) && cell.is_idle(3 * SECOND_NS));
        // Time that was not used does not add up beyond the burst.
        assert_eq!(cell.charge(21, 1000 * SECOND_NS), Duration::from_millis(100));
    }

    #[test]
    fn no_rate_is_no_limit_and_huge_charges_do_not_overflow() {
        assert_eq!(Cell::new(0, 1).charge(u64::MAX, 0), Duration::ZERO);
        let cell = Cell::new(1, 1);
        assert!(cell.charge(u64::MAX, 0) > Duration::from_secs(1));
        assert!(cell.charge(u64::MAX, 0) > Duration::from_secs(1));
    }

    #[test]
    fn devices_of_a_realm_share_its_meter() {
        let realm = Arc::new(Meter::new(RateLimits { connects_per_s: 2, ..RateLimits::default() }));
        let of = || ClientLimits { device: None, realm: Some(Arc::clone(&realm)) };
        let (one, two) = (of(), of());
        for client in [&one, &two, &one] {
            assert_eq!(client.connect(), Ok(()));
        }
        assert!(two.connect().unwrap_err() <= Duration::from_millis(500));
        assert_eq!(two.charge(1_000_000, 1), Duration::ZERO, "messages are not limited");
    }
}
