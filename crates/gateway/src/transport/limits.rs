//! Limits that hold before it is known who a client is: connections of one address, and connections that are opening.

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use foldhash::fast::RandomState;
use parking_lot::Mutex;
use prometheus_client::metrics::gauge::Gauge;
use tokio::sync::Notify;

/// An opening younger than this is not ended for a newcomer: in an honest rush it is about to be done.
const OPENING_GRACE: Duration = Duration::from_secs(1);
/// A burst is over when nothing happened for so long; reports within one are at least so far apart.
const BURST: Duration = Duration::from_secs(10);

/// Connections of each address.
#[derive(Debug)]
pub(super) struct Addresses {
    max: usize,
    counts: Mutex<HashMap<Ipv6Addr, usize, RandomState>>,
}

/// A connection's place among those of its address.
#[derive(Debug)]
pub(super) struct AddressPlace {
    addresses: Arc<Addresses>,
    key: Ipv6Addr,
}

impl Addresses {
    /// At most `max` connections of each; 0: no limit.
    pub(super) fn new(max: usize) -> Self {
        Self { max, counts: Mutex::default() }
    }

    /// Counts a connection in. `Ok(None)` where there is no limit; an error when the address has as many as it may.
    pub(super) fn enter(self: &Arc<Self>, address: IpAddr) -> Result<Option<AddressPlace>, ()> {
        let address = address.to_canonical();
        if self.max == 0 || address.is_loopback() {
            return Ok(None);
        }
        let key = key(address);
        let mut counts = self.counts.lock();
        let count = counts.entry(key).or_default();
        // An entry of zero cannot stay: the limit is at least one.
        if *count >= self.max {
            return Err(());
        }
        *count += 1;
        Ok(Some(AddressPlace { addresses: Arc::clone(self), key }))
    }
}

/// Whoever has an IPv6 address has the /64 that it is in. An IPv4 address is written as one of IPv6, which takes less room.
fn key(address: IpAddr) -> Ipv6Addr {
    match address {
        IpAddr::V4(address) => address.to_ipv6_mapped(),
        IpAddr::V6(address) => (address.to_bits() & !u128::from(u64::MAX)).into(),
    }
}

impl Drop for AddressPlace {
    fn drop(&mut self) {
        let mut counts = self.addresses.counts.lock();
        if let Some(count) = counts.get_mut(&self.key) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.key);
            }
        }
    }
}

/// Connections whose clients have not been let in yet, in the order of their arrival.
#[derive(Debug)]
pub(super) struct Openings {
    max: usize,
    gauge: Gauge,
    waiting: Mutex<Waiting>,
}

#[derive(Debug, Default)]
struct Waiting {
    next_id: u64,
    since: BTreeMap<u64, (Instant, Arc<Notify>)>,
}

/// A connection's place among those that are opening. Dropping it says that the client was let in, or is gone.
#[derive(Debug)]
pub struct Opening {
    openings: Arc<Openings>,
    id: u64,
    ended: Arc<Notify>,
}

impl Openings {
    pub(super) fn new(max: usize, gauge: Gauge) -> Self {
        Self { max, gauge, waiting: Mutex::default() }
    }

    /// A place for a newcomer. With none free, the oldest opening ends, if it has had its time; otherwise there is none.
    pub(super) fn enter(self: &Arc<Self>) -> Option<Opening> {
        let mut waiting = self.waiting.lock();
        if waiting.since.len() >= self.max {
            let oldest = waiting.since.first_entry()?;
            if oldest.get().0.elapsed() < OPENING_GRACE {
                return None;
            }
            oldest.remove().1.notify_one();
        }
        waiting.next_id += 1;
        let (id, ended) = (waiting.next_id, Arc::new(Notify::new()));
        waiting.since.insert(id, (Instant::now(), Arc::clone(&ended)));
        self.gauge.inc();
        Some(Opening { openings: Arc::clone(self), id, ended })
    }
}

impl Opening {
    /// Resolves when the connection has to end for a newcomer.
    pub async fn ended(&self) {
        self.ended.notified().await;
    }
}

impl Drop for Opening {
    fn drop(&mut self) {
        self.openings.waiting.lock().since.remove(&self.id);
        self.openings.gauge.dec();
    }
}

/// Counts what would flood the log, and says when it is time for a line.
#[derive(Debug, Default)]
pub(super) struct Burst(Mutex<Option<(Instant, u64)>>);

impl Burst {
    /// Notes one more. Gives how many there were since the last line when another is due.
    pub(super) fn note(&self) -> Option<u64> {
        let mut state = self.0.lock();
        let now = Instant::now();
        match &mut *state {
            Some((last, count)) if now.duration_since(*last) < BURST => {
                *count += 1;
                None
            }
            state => {
                let held_back = state.take().map_or(0, |(_, count)| count);
                *state = Some((now, 0));
                Some(held_back + 1)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_has_so_many_places() {
        let addresses = Arc::new(Addresses::new(2));
        let enter = |address: &str| addresses.enter(address.parse().unwrap());
        let first = enter("192.0.2.7").unwrap();
        let _second = enter("::ffff:192.0.2.7").unwrap();
        assert!(enter("192.0.2.7").is_err());
        assert!(enter("192.0.2.8").is_ok());
        drop(first);
        assert!(enter("192.0.2.7").is_ok());
        let _held = [enter("2001:db8::1").unwrap(), enter("2001:db8::2").unwrap()];
        assert!(enter("2001:db8::3").is_err() && enter("2001:db8:0:1::3").is_ok());
        for _ in 0..5 {
            assert!(enter("127.0.0.1").unwrap().is_none());
        }
        drop(_second);
        drop(_held);
        assert!(addresses.counts.lock().is_empty());
    }

    #[tokio::test]
    async fn the_slowest_opening_ends_for_a_newcomer() {
        let openings = Arc::new(Openings::new(2, Gauge::default()));
        let (slow, quick) = (openings.enter().unwrap(), openings.enter().unwrap());
        assert!(openings.enter().is_none(), "nobody has had the time yet");
        std::thread::sleep(OPENING_GRACE);
        let newcomer = openings.enter().unwrap();
        slow.ended().await;
        drop(slow);
        assert_eq!(openings.gauge.get(), 2);
        drop((quick, newcomer));
        assert_eq!(openings.gauge.get(), 0);
        assert!(openings.waiting.lock().since.is_empty());
    }

    #[test]
    fn a_burst_is_one_line() {
        let burst = Burst::default();
        assert_eq!(burst.note(), Some(1));
        assert_eq!(burst.note(), None);
        burst.0.lock().as_mut().unwrap().0 -= BURST;
        assert_eq!(burst.note(), Some(2));
    }
}
