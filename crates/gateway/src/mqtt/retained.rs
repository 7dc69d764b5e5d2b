//! The last retained message of each topic: a tree of topic levels, bounded in messages and bytes.
//!
//! A filter with wildcards may match everything, or nothing after a look at everything. It is answered in pages, each of
//! which looks at a bounded number of levels, so that no subscriber holds the lock for long; the levels are sorted, so
//! that a page knows where the one before ended.
//!
//! Bytes are those of the messages and of the levels that lead to them: many deep topics take far more than their messages do.

use std::collections::BTreeMap;
use std::ops::{Bound, ControlFlow};
use std::sync::Arc;

use parking_lot::Mutex;

use super::message::Message;
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

/// A page under way.
struct Scan<'a> {
    found: Vec<Arc<Message>>,
    messages_max: usize,
    nodes_left: usize,
    bytes_left: usize,
    /// Levels from the root to the node that is looked at.
    path: Vec<&'a str>,
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
        if message.payload().is_empty() {
            if let Some((_, freed)) = state.root.remove(topic) {
                state.messages -= 1;
                state.bytes -= freed;
            }
            record();
            return Ok(());
        }
        let (messages, bytes) = state.with(topic, message.size());
        if !self.limits.allow(messages, bytes) {
            return Err(RetainedFull);
        }
        state.root.insert(topic, Arc::clone(message));
        (state.messages, state.bytes) = (messages, bytes);
        record();
        Ok(())
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

impl State {
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
