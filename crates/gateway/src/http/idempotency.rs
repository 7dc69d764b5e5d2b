//! `Idempotency-Key`: a request that is sent again counts once.
//!
//! All events of a request go to one partition, one after the other, and carry the key's [mark](crate::marks). How many of
//! them the log has is therefore known, also after a crash in the middle: a further request with the key and the same
//! body appends only what is missing. The same key with another body is refused, and so is one while the first is under way.
//!
//! A request that is taken in line by line is appended before its end is known. What is known of it is its events so far,
//! a hash of the body up to the last of them, and whether that was the end. A further request is the same if its body
//! begins with the same lines; what follows them is appended, unless the end was reached before: then nothing may follow.
//!
//! Known are keys of the last `idempotency_s_max` seconds, the newest `idempotency_keys_max` of them; after a restart those
//! among the newest 250,000 events of their partition.

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

use foldhash::fast::RandomState;
use parking_lot::Mutex;

use crate::marks::{Mark, Upto};

/// What is known of a key.
#[derive(Debug, Clone, Copy)]
struct Known {
    kept: Kept,
    under_way: bool,
    since: Instant,
}

/// What the log has of a request.
#[derive(Debug, Clone, Copy)]
enum Kept {
    /// So many events of a request with this body.
    Whole { body: u64, events: u64 },
    /// A request that is taken in line by line, up to there.
    Lines(Upto),
}

impl Kept {
    fn is_nothing(&self) -> bool {
        matches!(self, Self::Whole { events: 0, .. } | Self::Lines(Upto { events: 0, .. }))
    }
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
pub(super) enum Begin<T> {
    /// Append, but for so much that the log has already.
    Append(T),
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

    /// Takes in an event that the log had on the start. Those of a partition come in their order.
    pub(crate) fn recall(&self, mark: Mark) {
        let mut state = self.known.lock();
        let (key, kept) = match mark {
            Mark::Whole { key, body } => (key, Kept::Whole { body, events: 1 }),
            Mark::Line { key, upto } => (key, Kept::Lines(upto)),
            // Of no request.
            Mark::Bridged { .. } | Mark::Record { .. } => return,
        };
        match (state.keys.get_mut(&key), kept) {
            (Some(Known { kept: Kept::Whole { body, events }, .. }), Kept::Whole { body: new, .. })
                if *body == new =>
            {
                *events += 1;
            }
            (Some(known), Kept::Lines(upto)) if upto.events > 1 => known.kept = Kept::Lines(upto),
            // A key that was forgotten and used again: the newer counts.
            _ => {
                state.make_room(self.keys_max, self.window);
                state.insert(key, Known { kept, under_way: false, since: Instant::now() });
            }
        }
    }

    /// A request begins whose body is there as a whole. If it may append, it must [`Keys::end`].
    pub(super) fn begin(&self, key: u64, body: u64) -> Begin<u64> {
        self.begin_with(key, Kept::Whole { body, events: 0 }, |kept| match kept {
            Kept::Whole { body: known, events } if known == body => Some(events),
            _ => None,
        })
    }

    /// A request begins that is taken in line by line. If it may append, it must [`Keys::end_lines`].
    pub(super) fn begin_lines(&self, key: u64) -> Begin<Upto> {
        self.begin_with(key, Kept::Lines(Upto::default()), |kept| match kept {
            Kept::Lines(upto) => Some(upto),
            Kept::Whole { .. } => None,
        })
    }

    fn begin_with<T>(&self, key: u64, new: Kept, goes_on: impl Fn(Kept) -> Option<T>) -> Begin<T> {
        let mut state = self.known.lock();
        state.make_room(self.keys_max, self.window);
        let is_full = state.keys.len() >= self.keys_max;
        let kept = match state.keys.get_mut(&key) {
            Some(known) if known.under_way => return Begin::UnderWay,
            Some(known) => {
                let Some(from) = goes_on(known.kept) else { return Begin::Reused };
                known.under_way = true;
                return Begin::Append(from);
            }
            None if is_full => return Begin::Full,
            None => {
                state.insert(key, Known { kept: new, under_way: true, since: Instant::now() });
                new
            }
        };
        // What is new goes on from nothing.
        goes_on(kept).map_or(Begin::Reused, Begin::Append)
    }

    /// A request ends that has added so many events to the log.
    pub(super) fn end(&self, key: u64, added: u64) {
        self.end_with(key, |kept| {
            if let Kept::Whole { events, .. } = kept {
                *events += added;
            }
        });
    }

    /// A request ends of which the log has so much.
    pub(super) fn end_lines(&self, key: u64, upto: Upto) {
        self.end_with(key, |kept| *kept = Kept::Lines(upto));
    }

    fn end_with(&self, key: u64, add: impl FnOnce(&mut Kept)) {
        let mut state = self.known.lock();
        let Some(known) = state.keys.get_mut(&key) else { return };
        known.under_way = false;
        add(&mut known.kept);
        if known.kept.is_nothing() {
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
        assert_eq!(keys.begin_lines(1), Begin::Reused);
        // One that kept nothing is free again.
        assert_eq!(keys.begin(2, 1), Begin::Append(0));
        keys.end(2, 0);
        assert_eq!(keys.begin(2, 2), Begin::Append(0));
    }

    #[test]
    fn lines_go_on_where_they_ended() {
        let keys = Keys::new(Duration::from_secs(60), 2);
        let upto = |events, is_last| Upto { events, prefix: events * 10, is_last };
        assert_eq!(keys.begin_lines(1), Begin::Append(Upto::default()));
        assert_eq!(keys.begin_lines(1), Begin::UnderWay);
        keys.end_lines(1, upto(3, false));
        assert_eq!(keys.begin_lines(1), Begin::Append(upto(3, false)));
        keys.end_lines(1, upto(5, true));
        assert_eq!(keys.begin_lines(1), Begin::Append(upto(5, true)));
        keys.end_lines(1, upto(5, true));
        assert_eq!(keys.begin(1, 7), Begin::Reused);
        assert_eq!(keys.begin_lines(2), Begin::Append(Upto::default()));
        keys.end_lines(2, Upto::default());
        assert_eq!(keys.begin(2, 7), Begin::Append(0));
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
        (0..4).for_each(|_| keys.recall(Mark::Whole { key: 5, body: 9 }));
        assert_eq!(keys.begin(5, 9), Begin::Append(4));
        let line = |events, is_last| Mark::Line { key: 6, upto: Upto { events, prefix: 1, is_last } };
        // The first of them may be older than what is read.
        (700..=900).for_each(|events| keys.recall(line(events, events == 900)));
        assert_eq!(keys.begin_lines(6), Begin::Append(Upto { events: 900, prefix: 1, is_last: true }));
        keys.recall(line(1, false));
        assert_eq!(keys.begin_lines(6), Begin::Append(Upto { events: 1, prefix: 1, is_last: false }));
        let short = Keys::new(Duration::ZERO, 10);
        short.recall(Mark::Whole { key: 5, body: 9 });
        assert_eq!(short.begin(5, 9), Begin::Append(0));
    }
}
