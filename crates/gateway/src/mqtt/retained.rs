//! The last retained message of each topic: a tree of topic levels, bounded in messages and bytes.
//!
//! A filter with wildcards may match everything, or nothing after a look at everything. It is answered in pages, each of
//! which looks at a bounded number of levels, so that no subscriber holds the lock for long; the levels are sorted, so
//! that a page knows where the one before ended.

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
            if let Some(old) = state.root.remove(topic) {
                state.messages -= 1;
                state.bytes -= old.size();
            }
            record();
            return Ok(());
        }
        let old = state.root.get(topic).map(|old| old.size());
        let messages = state.messages + usize::from(old.is_none());
        let bytes = state.bytes + message.size() - old.unwrap_or(0);
        if messages > self.limits.messages_max || bytes > self.limits.bytes_max {
            return Err(RetainedFull);
        }
        state.root.insert(topic, Arc::clone(message));
        (state.messages, state.bytes) = (messages, bytes);
        record();
        Ok(())
    }

    /// A page of the messages whose topics match a filter, expired ones left out. `after` is where the page before ended.
    pub(crate) fn page(&self, filter: &str, after: Option<&str>, messages_max: usize) -> Page {
        let levels: Vec<&str> = filter.split('/').collect();
        let from: Option<Vec<&str>> = after.map(|after| after.split('/').collect());
        let mut scan = Scan { found: Vec::new(), messages_max, nodes_left: PAGE_NODES, path: Vec::new() };
        let state = self.state.lock();
        let scanned = state.root.visit(&levels, from.as_deref(), &mut scan);
        Page { next: scanned.is_break().then(|| scan.path.join("/")), messages: scan.found }
    }

    /// Drops the messages that have expired.
    pub(crate) fn sweep(&self) {
        let state = &mut *self.state.lock();
        let (mut messages, mut bytes) = (0, 0);
        state.root.sweep(&mut |message| {
            messages += 1;
            bytes += message.size();
        });
        state.messages -= messages;
        state.bytes -= bytes;
    }

    /// Number of messages, and their bytes.
    pub(crate) fn size(&self) -> (usize, usize) {
        let state = self.state.lock();
        (state.messages, state.bytes)
    }
}

impl Node {
    fn get(&self, topic: &str) -> Option<&Arc<Message>> {
        topic.split('/').try_fold(self, |node, level| node.children.get(level))?.message.as_ref()
    }

    fn insert(&mut self, topic: &str, message: Arc<Message>) {
        let node = topic.split('/').fold(self, |node, level| node.children.entry(level.into()).or_default());
        node.message = Some(message);
    }

    fn remove(&mut self, topic: &str) -> Option<Arc<Message>> {
        let (level, rest) = match topic.split_once('/') {
            Some((level, rest)) => (level, Some(rest)),
            None => (topic, None),
        };
        let child = self.children.get_mut(level)?;
        let removed = match rest {
            Some(rest) => child.remove(rest),
            None => child.message.take(),
        };
        if child.is_empty() {
            self.children.remove(level);
        }
        removed
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
        }
        scan.nodes_left = scan.nodes_left.saturating_sub(1);
        if scan.nodes_left == 0 || scan.found.len() >= scan.messages_max {
            return ControlFlow::Break(());
        }
        ControlFlow::Continue(())
    }

    fn sweep(&mut self, each: &mut impl FnMut(&Message)) {
        if let Some(expired) = self.message.take_if(|message| message.expiry_left_s().is_err()) {
            each(&expired);
        }
        self.children.retain(|_, child| {
            child.sweep(each);
            !child.is_empty()
        });
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
        let retained = Retained::new(RetainedLimits { messages_max: 10, bytes_max: 1000 });
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
        let retained = Retained::new(RetainedLimits { messages_max: 100_000, bytes_max: 1 << 20 });
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
        let retained = Retained::new(RetainedLimits { messages_max: 2, bytes_max: 10 });
        retained.set("a", &message("a", b"1", Some(0))).unwrap();
        retained.set("b", &message("b", b"1", None)).unwrap();
        assert_eq!(retained.set("c", &message("c", b"1", None)), Err(RetainedFull));
        assert_eq!(retained.set("b", &message("b", b"123456789", None)), Err(RetainedFull));
        assert_eq!(matching(&retained, "b")[0].payload(), b"1");
        assert_eq!(topics(&retained, "#"), ["b"]);
        retained.sweep();
        assert_eq!(retained.size(), (1, 2));
        retained.set("c", &message("c", b"1", None)).unwrap();
    }
}
