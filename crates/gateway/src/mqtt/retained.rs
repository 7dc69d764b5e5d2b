//! The last retained message of each topic: a tree of topic levels, bounded in messages and bytes.

use std::collections::HashMap;
use std::sync::Arc;

use foldhash::fast::RandomState;
use parking_lot::Mutex;

use super::message::Message;
use super::topics::is_reserved;

/// Limits of the retained messages of a realm.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RetainedLimits {
    pub(crate) messages_max: usize,
    pub(crate) bytes_max: usize,
}

/// There is no room for a further retained message; the one that was there, if any, stays.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct RetainedFull;

#[derive(Debug, Default)]
struct Node {
    children: HashMap<Box<str>, Node, RandomState>,
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

    /// The messages whose topics match a filter, expired ones left out.
    pub(crate) fn matching(&self, filter: &str) -> Vec<Arc<Message>> {
        let mut found = Vec::new();
        let mut each = |message: &Arc<Message>| {
            if message.expiry_left_s().is_ok() {
                found.push(Arc::clone(message));
            }
        };
        let state = self.state.lock();
        // Wildcards at the first level do not reach topics that start with `$`.
        let levels: Vec<&str> = filter.split('/').collect();
        if matches!(levels.first(), Some(&("#" | "+"))) {
            let below = if levels[0] == "#" { &levels[..] } else { &levels[1..] };
            for (_, child) in state.root.children.iter().filter(|(level, _)| !is_reserved(level)) {
                child.visit(below, &mut each);
            }
        } else {
            state.root.visit(&levels, &mut each);
        }
        found
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

    fn visit(&self, levels: &[&str], each: &mut impl FnMut(&Arc<Message>)) {
        let Some((&level, below)) = levels.split_first() else { return self.message.iter().for_each(each) };
        match level {
            // `#` also stands for no level at all: `a/#` matches `a`.
            "#" => self.visit_all(each),
            "+" => self.children.values().for_each(|child| child.visit(below, each)),
            level => {
                if let Some(child) = self.children.get(level) {
                    child.visit(below, each);
                }
            }
        }
    }

    fn visit_all(&self, each: &mut impl FnMut(&Arc<Message>)) {
        self.message.iter().for_each(&mut *each);
        self.children.values().for_each(|child| child.visit_all(each));
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

    fn topics(retained: &Retained, filter: &str) -> Vec<String> {
        let found = retained.matching(filter);
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
        assert_eq!(retained.matching("a/b")[0].payload(), b"22");
        retained.set("a/b", &message("a/b", b"", None)).unwrap();
        assert_eq!(topics(&retained, "a/#"), ["a", "a/b/c"]);
        for topic in ["a", "a/b/c", "x/b", "$SYS/b"] {
            retained.set(topic, &message(topic, b"", None)).unwrap();
        }
        assert_eq!(retained.size(), (0, 0));
        assert!(retained.state.lock().root.is_empty());
    }

    #[test]
    fn limits_and_expiry() {
        let retained = Retained::new(RetainedLimits { messages_max: 2, bytes_max: 10 });
        retained.set("a", &message("a", b"1", Some(0))).unwrap();
        retained.set("b", &message("b", b"1", None)).unwrap();
        assert_eq!(retained.set("c", &message("c", b"1", None)), Err(RetainedFull));
        assert_eq!(retained.set("b", &message("b", b"123456789", None)), Err(RetainedFull));
        assert_eq!(retained.matching("b")[0].payload(), b"1");
        assert_eq!(topics(&retained, "#"), ["b"]);
        retained.sweep();
        assert_eq!(retained.size(), (1, 2));
        retained.set("c", &message("c", b"1", None)).unwrap();
    }
}
