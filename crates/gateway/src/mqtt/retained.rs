//! The last retained message of each topic: a tree of topic levels, bounded in messages and bytes.
//!
//! A filter with wildcards may match everything, or nothing after a look at everything. It is answered in pages, each of
//! which looks at a bounded number of levels, so that no subscriber holds the lock for long; the levels are sorted, so
//! that a page knows where the one before ended.
//!
//! Each message has a stamp: when it became its topic's, later than all stamps that were given or seen before by at least a
//! microsecond, whatever the clock says (a hybrid logical clock). Among several gateways the latest counts, and where they have been apart they agree again by it. What has
//! changed here is marked, if gateways that come later are to learn it.
//!
//! Bytes are those of the messages and of the levels that lead to them: many deep topics take far more than their messages do.

use std::collections::BTreeMap;
use std::ops::{Bound, ControlFlow};
use std::sync::Arc;

use catchment_types::Timestamp;
use parking_lot::Mutex;

use super::codec::{PublishProperties, QoS};
use super::message::{Message, SERVER};
use super::topics::is_reserved;

/// Limits of the retained messages of a realm.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RetainedLimits {
    pub(crate) messages_max: usize,
    pub(crate) bytes_max: usize,
}

/// Levels that one page looks at.
const PAGE_NODES: usize = 4096;

/// Bytes of messages after which a page ends.
const PAGE_BYTES: usize = 256 << 10;
/// What a message takes beside its bytes.
const MESSAGE_BYTES: usize = 160;
/// What a level takes beside its text.
const LEVEL_BYTES: usize = 72;
/// What the first level below another takes more than that: room for those that may follow.
const FIRST_BELOW_BYTES: usize = 544;

/// A part of the messages that match a filter.
#[derive(Debug)]
pub(crate) struct Page {
    pub(crate) messages: Vec<Arc<Message>>,
    /// Where to go on; none: that was all.
    pub(crate) next: Option<String>,
}

/// Changed topics that are remembered until others can learn of them.
const MARKS_MAX: usize = 1_000_000;

/// A page under way.
struct Scan<'a> {
    found: Vec<Arc<Message>>,
    messages_max: usize,
    nodes_left: usize,
    bytes_left: usize,
    /// Levels from the root to the node that is looked at.
    path: Vec<&'a str>,
}

/// What a retained message of elsewhere changes here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Change {
    Nothing,
    /// Nothing that a subscriber could see.
    Stamp,
    Message,
}

/// There is no room for a further retained message; the one that was there, if any, stays.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct RetainedFull;

#[derive(Debug, Default)]
struct Node {
    children: BTreeMap<Box<str>, Node>,
    message: Option<Arc<Message>>,
}

#[derive(Debug, Default)]
struct State {
    root: Node,
    messages: usize,
    bytes: usize,
    /// The latest stamp that was given or seen.
    latest: u64,
    /// Topics that others are to learn of, with the stamps of their last change; none: there are no others.
    marks: Option<BTreeMap<Box<str>, u64>>,
}

/// All retained messages of a realm.
#[derive(Debug)]
pub(crate) struct Retained {
    limits: RetainedLimits,
    state: Mutex<State>,
}

impl Retained {
    pub(crate) fn new(limits: RetainedLimits) -> Self {
        Self { limits, state: Mutex::default() }
    }

    /// Keeps a message as its topic's; one without a payload removes it.
    pub(crate) fn set(&self, topic: &str, message: &Arc<Message>) -> Result<(), RetainedFull> {
        self.set_and(topic, message, || {})
    }

    /// The same; when it is done, `record` is called before anybody else changes anything.
    pub(crate) fn set_and(
        &self,
        topic: &str,
        message: &Arc<Message>,
        record: impl FnOnce(),
    ) -> Result<(), RetainedFull> {
        let state = &mut *self.state.lock();
        state.stamp(message);
        let is_newest = state.put(topic, message, self.limits)?;
        if let Some(marks) = state.marks.as_mut().filter(|_| is_newest) {
            mark(marks, topic, message.stamp());
        }
        record();
        Ok(())
    }

    /// Gives a message its stamp before it becomes its topic's.
    pub(crate) fn stamp(&self, message: &Message) {
        self.state.lock().stamp(message);
    }

    /// Keeps a message that has become its topic's elsewhere, unless there is a later one; `record` is told whether.
    pub(crate) fn take_and(
        &self,
        topic: &str,
        message: &Arc<Message>,
        record: impl FnOnce(bool),
    ) -> Result<(), RetainedFull> {
        let state = &mut *self.state.lock();
        record(state.put(topic, message, self.limits)?);
        Ok(())
    }

    /// What a message of elsewhere would change.
    pub(crate) fn compare(&self, message: &Message) -> Change {
        let state = &mut *self.state.lock();
        // That a topic has none leaves nothing here but this.
        state.latest = state.latest.max(message.stamp());
        match state.root.get(message.topic()) {
            None if message.payload().is_empty() => Change::Nothing,
            None => Change::Message,
            Some(old) if old.stamp() >= message.stamp() => Change::Nothing,
            Some(old) if old.says_the_same_as(message) => Change::Stamp,
            Some(_) => Change::Message,
        }
    }

    /// Marks what changes from now on.
    pub(crate) fn mark_changes(&self) {
        self.state.lock().marks.get_or_insert_default();
    }

    /// Takes up to `max` marks; each as the message that the topic has now, or one without a payload if it has none.
    pub(crate) fn take_marked(&self, max: usize) -> Vec<Arc<Message>> {
        let state = &mut *self.state.lock();
        let Some(marks) = &mut state.marks else { return Vec::new() };
        let taken = std::iter::from_fn(|| marks.pop_first()).take(max);
        let of_topic = |(topic, stamp): (Box<str>, u64)| match state.root.get(&topic) {
            Some(message) => Arc::clone(message),
            None => {
                let nothing = PublishProperties::default();
                let message = Message::new(&topic, &nothing, b"", QoS::AtMostOnce, true, SERVER);
                message.set_stamp(stamp);
                Arc::new(message)
            }
        };
        taken.map(of_topic).collect()
    }

    /// Marks again what was taken and did not get to the others.
    pub(crate) fn mark_again<'a>(&self, messages: impl Iterator<Item = &'a Message>) {
        if let Some(marks) = &mut self.state.lock().marks {
            messages.for_each(|message| mark(marks, message.topic(), message.stamp()));
        }
    }

    /// Whether a message of this topic and size would be kept now.
    pub(crate) fn has_room(&self, topic: &str, size: usize) -> bool {
        let state = self.state.lock();
        let levels = topic.split('/').count();
        let most = size + MESSAGE_BYTES + topic.len() + levels * (LEVEL_BYTES + FIRST_BELOW_BYTES);
        if self.limits.allow(state.messages + 1, state.bytes + most) {
            return true;
        }
        let (messages, bytes) = state.with(topic, size);
        self.limits.allow(messages, bytes)
    }

    /// A page of the messages whose topics match a filter, expired ones left out. `after` is where the page before ended.
    pub(crate) fn page(&self, filter: &str, after: Option<&str>, messages_max: usize) -> Page {
        let levels: Vec<&str> = filter.split('/').collect();
        let from: Option<Vec<&str>> = after.map(|after| after.split('/').collect());
        let mut scan = Scan {
            found: Vec::new(),
            messages_max,
            nodes_left: PAGE_NODES,
            bytes_left: PAGE_BYTES,
            path: Vec::new(),
        };
        let state = self.state.lock();
        let scanned = state.root.visit(&levels, from.as_deref(), &mut scan);
        Page { next: scanned.is_break().then(|| scan.path.join("/")), messages: scan.found }
    }

    /// Drops the messages that have expired.
    pub(crate) fn sweep(&self) {
        let state = &mut *self.state.lock();
        let (messages, bytes) = state.root.sweep();
        state.messages -= messages;
        state.bytes -= bytes;
    }

    /// Number of messages, and bytes that they take.
    pub(crate) fn size(&self) -> (usize, usize) {
        let state = self.state.lock();
        (state.messages, state.bytes)
    }
}

impl RetainedLimits {
    fn allow(&self, messages: usize, bytes: usize) -> bool {
        messages <= self.messages_max && bytes <= self.bytes_max
    }
}

/// Marks a topic. With as many as there may be, one that was marked is forgotten: others learn of it with its next change.
fn mark(marks: &mut BTreeMap<Box<str>, u64>, topic: &str, stamp: u64) {
    match marks.get_mut(topic) {
        Some(marked) => *marked = stamp.max(*marked),
        None => {
            if marks.len() >= MARKS_MAX {
                marks.pop_last();
            }
            marks.insert(topic.into(), stamp);
        }
    }
}

impl State {
    fn stamp(&mut self, message: &Message) {
        if message.stamp() == 0 {
            let now = u64::try_from(Timestamp::now().as_micros()).unwrap_or_default();
            self.latest = now.max(self.latest.saturating_add(1));
            message.set_stamp(self.latest);
        }
    }

    /// Whether it is the topic's message now, and no later one is there.
    fn put(
        &mut self,
        topic: &str,
        message: &Arc<Message>,
        limits: RetainedLimits,
    ) -> Result<bool, RetainedFull> {
        self.latest = self.latest.max(message.stamp());
        if self.root.get(topic).is_some_and(|old| old.stamp() > message.stamp()) {
            return Ok(false);
        }
        if message.payload().is_empty() {
            if let Some((_, freed)) = self.root.remove(topic) {
                self.messages -= 1;
                self.bytes -= freed;
            }
            return Ok(true);
        }
        let (messages, bytes) = self.with(topic, message.size());
        if !limits.allow(messages, bytes) {
            return Err(RetainedFull);
        }
        self.root.insert(topic, Arc::clone(message));
        (self.messages, self.bytes) = (messages, bytes);
        Ok(true)
    }

    /// Messages and bytes after a message of this topic and size is kept.
    fn with(&self, topic: &str, size: usize) -> (usize, usize) {
        match self.root.get(topic) {
            Some(old) => (self.messages, self.bytes + size - old.size()),
            None => (self.messages + 1, self.bytes + MESSAGE_BYTES + size + self.root.missing(topic)),
        }
    }
}

impl Node {
    /// Bytes that the levels take which lead to a topic and are not there.
    fn missing(&self, topic: &str) -> usize {
        let (mut node, mut bytes) = (Some(self), 0);
        for level in topic.split('/') {
            let below = node.and_then(|node| node.children.get(level));
            if below.is_none() {
                bytes += LEVEL_BYTES + level.len();
                let is_first = node.is_none_or(|node| node.children.is_empty());
                bytes += if is_first { FIRST_BELOW_BYTES } else { 0 };
            }
            node = below;
        }
        bytes
    }

    /// Drops a level that leads to nothing. Gives the bytes that are free now.
    fn prune(&mut self, level: &str) -> usize {
        if self.children.get(level).is_none_or(|child| !child.is_empty()) {
            return 0;
        }
        self.children.remove(level);
        LEVEL_BYTES + level.len() + if self.children.is_empty() { FIRST_BELOW_BYTES } else { 0 }
    }

    fn get(&self, topic: &str) -> Option<&Arc<Message>> {
        topic.split('/').try_fold(self, |node, level| node.children.get(level))?.message.as_ref()
    }

    fn insert(&mut self, topic: &str, message: Arc<Message>) {
        let node = topic.split('/').fold(self, |node, level| node.children.entry(level.into()).or_default());
        node.message = Some(message);
    }

    /// Gives the message, and the bytes that are free now.
    fn remove(&mut self, topic: &str) -> Option<(Arc<Message>, usize)> {
        let (level, rest) = match topic.split_once('/') {
            Some((level, rest)) => (level, Some(rest)),
            None => (topic, None),
        };
        let child = self.children.get_mut(level)?;
        let (message, freed) = match rest {
            Some(rest) => child.remove(rest)?,
            None => {
                child.message.take().map(|message| (Arc::clone(&message), message.size() + MESSAGE_BYTES))?
            }
        };
        Some((message, freed + self.prune(level)))
    }

    /// Looks at what the levels of a filter match from here on. `from`: the rest of the path to the node where the page
    /// before ended; everything up to it was looked at then.
    fn visit<'a>(&'a self, levels: &[&str], from: Option<&[&str]>, scan: &mut Scan<'a>) -> ControlFlow<()> {
        let below = match levels.split_first() {
            None => return self.look(true, from, scan),
            // `#` also stands for no level at all: `a/#` matches `a`.
            Some((&"#", _)) => {
                self.look(true, from, scan)?;
                levels
            }
            Some((_, below)) => {
                self.look(false, from, scan)?;
                below
            }
        };
        let resumed = from.and_then(<[&str]>::split_first);
        let start = resumed.map_or(Bound::Unbounded, |(&first, _)| Bound::Included(first));
        let end = match levels[0] {
            "#" | "+" => Bound::Unbounded,
            level => Bound::Included(level),
        };
        let start = match (levels[0], start) {
            ("#" | "+", start) => start,
            (level, Bound::Included(first)) if first > level => return ControlFlow::Continue(()),
            (level, _) => Bound::Included(level),
        };
        for (level, child) in self.children.range::<str, _>((start, end)) {
            // Wildcards at the first level do not reach topics that start with `$`.
            if scan.path.is_empty() && matches!(levels[0], "#" | "+") && is_reserved(level) {
                continue;
            }
            let from = resumed.filter(|&(&first, _)| *first == **level).map(|(_, rest)| rest);
            scan.path.push(level);
            child.visit(below, from, scan)?;
            scan.path.pop();
        }
        ControlFlow::Continue(())
    }

    /// Counts this node, and takes its message when it is a match; not when the page before did so.
    fn look<'a>(&'a self, is_match: bool, from: Option<&[&str]>, scan: &mut Scan<'a>) -> ControlFlow<()> {
        if from.is_some() || scan.path.is_empty() {
            return ControlFlow::Continue(());
        }
        if let Some(message) =
            self.message.as_ref().filter(|message| is_match && message.expiry_left_s().is_ok())
        {
            scan.found.push(Arc::clone(message));
            scan.bytes_left = scan.bytes_left.saturating_sub(message.size());
        }
        scan.nodes_left = scan.nodes_left.saturating_sub(1);
        if scan.nodes_left == 0 || scan.bytes_left == 0 || scan.found.len() >= scan.messages_max {
            return ControlFlow::Break(());
        }
        ControlFlow::Continue(())
    }

    /// Drops what has expired. Gives the number of messages, and the bytes that are free now.
    fn sweep(&mut self) -> (usize, usize) {
        let expired = self.message.take_if(|message| message.expiry_left_s().is_err());
        let (mut messages, mut bytes) = expired.map_or((0, 0), |message| (1, message.size() + MESSAGE_BYTES));
        let had_children = !self.children.is_empty();
        self.children.retain(|level, child| {
            let swept = child.sweep();
            messages += swept.0;
            bytes += swept.1;
            if child.is_empty() {
                bytes += LEVEL_BYTES + level.len();
            }
            !child.is_empty()
        });
        if had_children && self.children.is_empty() {
            bytes += FIRST_BELOW_BYTES;
        }
        (messages, bytes)
    }

    fn is_empty(&self) -> bool {
        self.message.is_none() && self.children.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mqtt::codec::{PublishProperties, QoS};

    fn message(topic: &str, payload: &[u8], expiry_s: Option<u32>) -> Arc<Message> {
        let properties = PublishProperties { expiry_s, ..Default::default() };
        Arc::new(Message::new(topic, &properties, payload, QoS::AtMostOnce, true, 1))
    }

    /// All that match, by pages of two.
    fn matching(retained: &Retained, filter: &str) -> Vec<Arc<Message>> {
        let (mut found, mut after) = (Vec::new(), None);
        loop {
            let page = retained.page(filter, after.as_deref(), 2);
            found.extend(page.messages);
            let Some(next) = page.next else { return found };
            assert_ne!(Some(&next), after.as_ref(), "no page ends where it began");
            after = Some(next);
        }
    }

    fn topics(retained: &Retained, filter: &str) -> Vec<String> {
        let found = matching(retained, filter);
        let mut topics: Vec<_> = found.iter().map(|m| m.topic().to_owned()).collect();
        topics.sort();
        topics
    }

    #[test]
    fn matching_replacing_and_removing() {
        let retained = Retained::new(RetainedLimits { messages_max: 10, bytes_max: 100_000 });
        for topic in ["a", "a/b", "a/b/c", "x/b", "$SYS/b"] {
            retained.set(topic, &message(topic, b"1", None)).unwrap();
        }
        assert_eq!(topics(&retained, "#"), ["a", "a/b", "a/b/c", "x/b"]);
        assert_eq!(topics(&retained, "+/b"), ["a/b", "x/b"]);
        assert_eq!(topics(&retained, "+"), ["a"]);
        assert_eq!(topics(&retained, "a/#"), ["a", "a/b", "a/b/c"]);
        assert_eq!(topics(&retained, "$SYS/#"), ["$SYS/b"]);
        retained.set("a/b", &message("a/b", b"22", None)).unwrap();
        assert_eq!(matching(&retained, "a/b")[0].payload(), b"22");
        retained.set("a/b", &message("a/b", b"", None)).unwrap();
        assert_eq!(topics(&retained, "a/#"), ["a", "a/b/c"]);
        for topic in ["a", "a/b/c", "x/b", "$SYS/b"] {
            retained.set(topic, &message(topic, b"", None)).unwrap();
        }
        assert_eq!(retained.size(), (0, 0));
        assert!(retained.state.lock().root.is_empty());
    }

    #[test]
    fn pages_meet_without_gap_or_overlap() {
        let retained = Retained::new(RetainedLimits { messages_max: 100_000, bytes_max: 64 << 20 });
        let mut all: Vec<String> =
            (0..3 * PAGE_NODES).map(|number| format!("{}/{}/x", number % 7, number / 7)).collect();
        all.extend(["", "/", "//", "0", "0/", "6/1", "é/1/x"].map(String::from));
        for topic in &all {
            retained.set(topic, &message(topic, b"1", None)).unwrap();
        }
        all.sort();
        assert_eq!(topics(&retained, "#"), all);
        let third = |topic: &&String| topic.starts_with("3/") && topic.ends_with("/x");
        let wanted: Vec<_> = all.iter().filter(third).cloned().collect();
        assert_eq!(topics(&retained, "3/+/x"), wanted);
        assert_eq!(topics(&retained, "+/+/nothing"), [""; 0]);
        assert_eq!(topics(&retained, "+/1"), ["6/1"]);
        // What ended a page may be gone when the next begins.
        let first = retained.page("#", None, 2);
        let next = first.next.unwrap();
        retained.set(&next, &message(&next, b"", None)).unwrap();
        assert!(retained.page("#", Some(&next), 2).messages[0].topic() > &*next);
    }

    #[test]
    fn limits_and_expiry() {
        // As much as two short topics beside each other take, with a message of ten bytes in all.
        let bytes_max = FIRST_BELOW_BYTES + 2 * (LEVEL_BYTES + MESSAGE_BYTES + 1) + 10;
        let retained = Retained::new(RetainedLimits { messages_max: 2, bytes_max });
        retained.set("a", &message("a", b"1", Some(0))).unwrap();
        retained.set("b", &message("b", b"1", None)).unwrap();
        assert_eq!(retained.set("c", &message("c", b"1", None)), Err(RetainedFull));
        assert_eq!(retained.set("b", &message("b", b"123456789", None)), Err(RetainedFull));
        assert!(!retained.has_room("c", 2) && !retained.has_room("b", 10) && retained.has_room("b", 3));
        assert_eq!(matching(&retained, "b")[0].payload(), b"1");
        assert_eq!(topics(&retained, "#"), ["b"]);
        retained.sweep();
        assert_eq!(retained.size(), (1, FIRST_BELOW_BYTES + LEVEL_BYTES + MESSAGE_BYTES + 1 + 2));
        retained.set("c", &message("c", b"1", None)).unwrap();
        retained.set("b", &message("b", b"", None)).unwrap();
        // Deep topics count for what leads to them.
        let deep = format!("c{}", "/x".repeat(30));
        assert_eq!(retained.set(&deep, &message(&deep, b"1", None)), Err(RetainedFull));
        retained.set("c", &message("c", b"", None)).unwrap();
        assert_eq!(retained.size(), (0, 0));
    }

    #[test]
    fn the_latest_counts_wherever_it_comes_from() {
        let retained = Retained::new(RetainedLimits { messages_max: 10, bytes_max: 100_000 });
        let of = |payload: &[u8], stamp| {
            let message = message("a", payload, None);
            message.set_stamp(stamp);
            message
        };
        let take = |message: &Arc<Message>| {
            let mut newest = None;
            retained.take_and("a", message, |is_newest| newest = Some(is_newest)).unwrap();
            newest.unwrap()
        };
        // A clock elsewhere is a year ahead; what is published here afterwards is the latest all the same.
        let ahead = Timestamp::now().as_micros().cast_unsigned() + 31_536_000_000_000;
        assert!(take(&of(b"ahead", ahead)));
        let here = message("a", b"here", None);
        retained.set("a", &here).unwrap();
        assert_eq!(here.stamp(), ahead + 1);
        assert!(!take(&of(b"ahead", ahead)) && matching(&retained, "a")[0].payload() == b"here");
        assert_eq!(retained.compare(&of(b"ahead", ahead)), Change::Nothing);
        assert_eq!(retained.compare(&of(b"here", ahead + 2)), Change::Stamp);
        assert_eq!(retained.compare(&of(b"other", ahead + 2)), Change::Message);
        // That it is gone is as late as any other change.
        assert!(!take(&of(b"", ahead)) && take(&of(b"", ahead + 2)));
        assert_eq!((topics(&retained, "#"), retained.size()), (vec![], (0, 0)));
        assert_eq!(retained.compare(&of(b"", ahead + 30)), Change::Nothing);
        // Nor does one stay behind that follows it.
        let after = message("a", b"after", None);
        retained.set("a", &after).unwrap();
        assert_eq!(after.stamp(), ahead + 31);
    }

    #[test]
    fn changes_are_marked_once_and_as_they_are_in_the_end() {
        let retained = Retained::new(RetainedLimits { messages_max: 10, bytes_max: 100_000 });
        retained.set("before", &message("before", b"1", None)).unwrap();
        assert!(retained.take_marked(10).is_empty());
        retained.mark_changes();
        let changes: [(&str, &[u8]); 4] = [("a", b"1"), ("b", b"1"), ("a", b"2"), ("b", b"")];
        for (topic, payload) in changes {
            retained.set(topic, &message(topic, payload, None)).unwrap();
        }
        // What comes from elsewhere is known there.
        let other = message("c", b"1", None);
        other.set_stamp(5);
        retained.take_and("c", &other, |_| {}).unwrap();
        let payloads = |marked: &[Arc<Message>]| {
            marked.iter().map(|m| (m.topic().to_owned(), m.payload().to_vec())).collect::<Vec<_>>()
        };
        let wanted = [("a".to_owned(), b"2".to_vec()), ("b".to_owned(), Vec::new())];
        let marked = retained.take_marked(10);
        assert_eq!(payloads(&marked), wanted);
        assert!(marked.iter().all(|message| message.stamp() > 5) && retained.take_marked(10).is_empty());
        retained.mark_again(marked.iter().map(|message| &**message));
        assert_eq!(payloads(&retained.take_marked(1)), wanted[..1]);
        assert_eq!(payloads(&retained.take_marked(1)), wanted[1..]);
    }

    #[test]
    fn a_page_ends_after_many_bytes() {
        let retained = Retained::new(RetainedLimits { messages_max: 10, bytes_max: 64 << 20 });
        let payload = vec![1; PAGE_BYTES];
        for topic in ["a", "b", "c"] {
            retained.set(topic, &message(topic, &payload, None)).unwrap();
        }
        assert_eq!(retained.page("#", None, 10).messages.len(), 1);
        assert_eq!(topics(&retained, "#"), ["a", "b", "c"]);
    }
}
