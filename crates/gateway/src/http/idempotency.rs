//! `Idempotency-Key`: a request that is sent again counts once.
//!
//! All events of a request go to one partition, in one append, and carry the key's [mark](crate::marks). How many of them
//! the log has is therefore known, also after a crash in the middle: a further request with the key and the same body
//! appends only what is missing. The same key with another body is refused, and so is one while the first is under way.
//!
//! Known are keys of the last `idempotency_s_max` seconds, the newest `idempotency_keys_max` of them; after a restart those
//! among the newest 250,000 events of their partition.

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

use foldhash::fast::RandomState;
use parking_lot::Mutex;

/// What is known of a key.
#[derive(Debug, Clone, Copy)]
struct Known {
    body: u64,
    /// Events of the request that are in the log.
    kept: u64,
    under_way: bool,
    since: Instant,
}

/// All keys that are known.
#[derive(Debug)]
pub(crate) struct Keys {
    known: Mutex<State>,
    window: Duration,
    keys_max: usize,
}

#[derive(Debug, Default)]
struct State {
    keys: HashMap<u64, Known, RandomState>,
    /// Oldest first.
    order: VecDeque<(u64, Instant)>,
}

/// What a request is to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Begin {
    /// Append, but for so many events that the log has already.
    Append(u64),
    /// The key was used for something else.
    Reused,
    /// Another request with this key has not ended.
    UnderWay,
    /// There is no room for another key now.
    Full,
}

impl Keys {
    pub(crate) fn new(window: Duration, keys_max: usize) -> Self {
        Self { known: Mutex::default(), window, keys_max }
    }

    /// How long a key is known.
    pub(crate) fn window(&self) -> Duration {
        self.window
    }

    /// Takes in an event that the log had on the start.
    pub(crate) fn recall(&self, key: u64, body: u64) {
        let mut state = self.known.lock();
        match state.keys.get_mut(&key) {
            Some(known) if known.body == body => known.kept += 1,
            // A key that was forgotten and used again: the newer counts.
            _ => {
                state.make_room(self.keys_max, self.window);
                state.insert(key, Known { body, kept: 1, under_way: false, since: Instant::now() });
            }
        }
    }

    /// A request begins. If it may append, [`Keys::end`] must follow.
    pub(super) fn begin(&self, key: u64, body: u64) -> Begin {
        let mut state = self.known.lock();
        state.make_room(self.keys_max, self.window);
        let is_full = state.keys.len() >= self.keys_max;
        match state.keys.get_mut(&key) {
            Some(known) if known.under_way => Begin::UnderWay,
            Some(known) if known.body != body => Begin::Reused,
            Some(known) => {
                known.under_way = true;
                Begin::Append(known.kept)
            }
            None if is_full => Begin::Full,
            None => {
                state.insert(key, Known { body, kept: 0, under_way: true, since: Instant::now() });
                Begin::Append(0)
            }
        }
    }

    /// A request ends that has added so many events to the log.
    pub(super) fn end(&self, key: u64, added: u64) {
        let mut state = self.known.lock();
        let Some(known) = state.keys.get_mut(&key) else { return };
        known.under_way = false;
        known.kept += added;
        if known.kept == 0 {
            // Nothing was kept: the key is free for whatever comes.
            state.keys.remove(&key);
        }
    }
}

impl State {
    fn insert(&mut self, key: u64, known: Known) {
        self.order.push_back((key, known.since));
        self.keys.insert(key, known);
    }

    /// Forgets what is too old, and what is too much; never a request that is under way.
    fn make_room(&mut self, keys_max: usize, window: Duration) {
        for _ in 0..self.order.len() {
            let Some(&(key, since)) = self.order.front() else { return };
            let known = self.keys.get(&key).filter(|known| known.since == since);
            match known {
                // Forgotten before.
                None => {}
                Some(_) if since.elapsed() < window && self.keys.len() < keys_max => return,
                Some(known) if known.under_way => {
                    self.order.rotate_left(1);
                    continue;
                }
                Some(_) => drop(self.keys.remove(&key)),
            }
            self.order.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_counts_once() {
        let keys = Keys::new(Duration::from_secs(60), 2);
        assert_eq!(keys.begin(1, 7), Begin::Append(0));
        assert_eq!(keys.begin(1, 7), Begin::UnderWay);
        keys.end(1, 3);
        assert_eq!(keys.begin(1, 8), Begin::Reused);
        assert_eq!(keys.begin(1, 7), Begin::Append(3));
        keys.end(1, 0);
        assert_eq!(keys.begin(1, 7), Begin::Append(3));
        keys.end(1, 0);
        // One that kept nothing is free again.
        assert_eq!(keys.begin(2, 1), Begin::Append(0));
        keys.end(2, 0);
        assert_eq!(keys.begin(2, 2), Begin::Append(0));
    }

    #[test]
    fn keys_are_bounded_and_what_is_under_way_stays() {
        let keys = Keys::new(Duration::from_secs(60), 2);
        assert_eq!(keys.begin(1, 7), Begin::Append(0));
        assert_eq!(keys.begin(2, 7), Begin::Append(0));
        assert_eq!(keys.begin(3, 7), Begin::Full);
        keys.end(2, 1);
        assert_eq!(keys.begin(3, 7), Begin::Append(0));
        assert_eq!(keys.begin(1, 7), Begin::UnderWay);
        assert!(keys.known.lock().order.len() <= 3);
    }

    #[test]
    fn what_the_log_had_is_counted() {
        let keys = Keys::new(Duration::from_secs(60), 10);
        (0..4).for_each(|_| keys.recall(5, 9));
        assert_eq!(keys.begin(5, 9), Begin::Append(4));
        let short = Keys::new(Duration::ZERO, 10);
        short.recall(5, 9);
        assert_eq!(short.begin(5, 9), Begin::Append(0));
    }
}
