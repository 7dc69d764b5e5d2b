//! Who subscribed to what: a tree of filter levels.
//!
//! A publisher first asks [`Subscriptions::is_wanted`], which is one atomic load while nobody subscribes, and whose answer
//! holds as long as [`Subscriptions::generation`] stays the same. Only messages that somebody wants are copied.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use foldhash::fast::RandomState;
use parking_lot::RwLock;

use super::codec::QoS;
use super::session::Session;
use super::topics::{Filter, is_reserved};

type Map<K, V> = HashMap<K, V, RandomState>;

/// How a subscriber wants its messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Wish {
    pub(crate) qos: QoS,
    pub(crate) no_local: bool,
    pub(crate) retain_as_published: bool,
    /// Subscription identifier; 0 when there is none.
    pub(crate) subscription_id: u32,
}

/// One session that gets a message, once, however many of its filters match.
#[derive(Debug)]
pub(crate) struct Target {
    pub(crate) session: Arc<Session>,
    /// The highest of the matching subscriptions.
    pub(crate) qos: QoS,
    pub(crate) retain_as_published: bool,
    /// Identifiers of all matching subscriptions.
    pub(crate) subscription_ids: Vec<u32>,
    /// The shared subscription that chose this session. It is a message of its own, beside that of other filters.
    pub(crate) shared: Option<Arc<str>>,
}

#[derive(Debug)]
struct Subscriber {
    session: Arc<Session>,
    wish: Wish,
}

#[derive(Debug)]
struct Group {
    /// The whole filter: `$share/{group}/{filter}`.
    name: Arc<str>,
    members: Vec<Subscriber>,
    next: AtomicUsize,
}

/// The subscribers of one filter.
#[derive(Debug, Default)]
struct Leaf {
    single: Map<u64, Subscriber>,
    shared: Map<Box<str>, Group>,
}

#[derive(Debug, Default)]
struct Node {
    children: Map<Box<str>, Node>,
    /// The level `+`.
    any: Option<Box<Node>>,
    /// The last level `#`.
    rest: Option<Box<Leaf>>,
    /// Filters that end here.
    here: Leaf,
}

/// All subscriptions of a realm.
#[derive(Debug, Default)]
pub(crate) struct Subscriptions {
    root: RwLock<Node>,
    count: AtomicUsize,
    generation: AtomicU64,
    /// One message for each filter that matches, instead of one for each session.
    copies: bool,
}

impl Subscriptions {
    pub(crate) fn new(copies: bool) -> Self {
        Self { copies, ..Self::default() }
    }

    /// Adds or replaces a subscription. `true` when it is new.
    pub(crate) fn insert(&self, filter: Filter<'_>, session: &Arc<Session>, wish: Wish) -> bool {
        let subscriber = Subscriber { session: Arc::clone(session), wish };
        let mut root = self.root.write();
        let mut node = &mut *root;
        let mut leaf = None;
        for level in filter.filter.split('/') {
            match level {
                "#" => {
                    leaf = Some(&mut **node.rest.get_or_insert_default());
                    break;
                }
                "+" => node = node.any.get_or_insert_default(),
                level => node = node.children.entry(level.into()).or_default(),
            }
        }
        let leaf = match leaf {
            Some(leaf) => leaf,
            None => &mut node.here,
        };
        let is_new = leaf.insert(filter, subscriber);
        if is_new {
            self.count.fetch_add(1, Ordering::Relaxed);
        }
        self.generation.fetch_add(1, Ordering::Release);
        is_new
    }

    /// Takes a subscription away. `false` when there was none.
    pub(crate) fn remove(&self, filter: Filter<'_>, session_id: u64) -> bool {
        let levels: Vec<&str> = filter.filter.split('/').collect();
        let removed = self.root.write().remove(&levels, filter.group, session_id);
        if removed {
            self.count.fetch_sub(1, Ordering::Relaxed);
            self.generation.fetch_add(1, Ordering::Release);
        }
        removed
    }

    /// The member of a shared subscription whose turn it is.
    pub(crate) fn choose(&self, filter: Filter<'_>) -> Option<Target> {
        let levels: Vec<&str> = filter.filter.split('/').collect();
        self.root.read().leaf(&levels)?.shared.get(filter.group?)?.choose()
    }

    /// Number of subscriptions.
    pub(crate) fn len(&self) -> usize {
        self.count.load(Ordering::Relaxed)
    }

    /// Changes with every change of the subscriptions.
    pub(crate) fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    /// Whether anybody subscribed to this topic.
    pub(crate) fn is_wanted(&self, topic: &str) -> bool {
        let mut wanted = false;
        if self.len() > 0 {
            self.root.read().visit(topic, &mut |leaf| wanted |= !leaf.is_empty());
        }
        wanted
    }

    /// Everybody who gets a message of this topic from `publisher`, each once unless copies are asked for.
    pub(crate) fn targets(&self, topic: &str, publisher: u64) -> Vec<Target> {
        let mut targets = Vec::new();
        if self.len() == 0 {
            return targets;
        }
        let is_own =
            |subscriber: &Subscriber| subscriber.wish.no_local && subscriber.session.id() == publisher;
        self.root.read().visit(topic, &mut |leaf| {
            let single = leaf.single.values().filter(|subscriber| !is_own(subscriber));
            targets.extend(single.map(|subscriber| subscriber.target(None)));
            targets.extend(leaf.shared.values().filter_map(Group::choose));
        });
        if targets.len() > 1 && !self.copies {
            merge(&mut targets);
        }
        targets
    }
}

/// Makes one target of all those of a session, but for the ones by shared subscriptions.
fn merge(targets: &mut Vec<Target>) {
    targets.sort_by_key(|target| (target.session.id(), target.shared.is_some()));
    targets.dedup_by(|next, kept| {
        let same = next.session.id() == kept.session.id() && next.shared.is_none() && kept.shared.is_none();
        if same {
            kept.qos = kept.qos.max(next.qos);
            kept.retain_as_published |= next.retain_as_published;
            kept.subscription_ids.append(&mut next.subscription_ids);
        }
        same
    });
}

impl Subscriber {
    fn target(&self, shared: Option<Arc<str>>) -> Target {
        Target {
            session: Arc::clone(&self.session),
            qos: self.wish.qos,
            retain_as_published: self.wish.retain_as_published,
            subscription_ids: Vec::from_iter(Some(self.wish.subscription_id).filter(|&id| id != 0)),
            shared,
        }
    }
}

impl Node {
    /// The subscribers of exactly this filter.
    fn leaf(&self, levels: &[&str]) -> Option<&Leaf> {
        match levels.split_first() {
            None => Some(&self.here),
            Some((&"#", _)) => self.rest.as_deref(),
            Some((&"+", below)) => self.any.as_ref()?.leaf(below),
            Some((&level, below)) => self.children.get(level)?.leaf(below),
        }
    }

    fn visit(&self, topic: &str, each: &mut impl FnMut(&Leaf)) {
        // `#` and `+` at the first level do not reach topics that start with `$`.
        if is_reserved(topic) {
            let (level, rest) = split(topic);
            if let Some(child) = self.children.get(level) {
                child.descend(rest, each);
            }
        } else {
            self.descend(Some(topic), each);
        }
    }

    /// `topic`: the levels below this node; none when the topic ends here.
    fn descend(&self, topic: Option<&str>, each: &mut impl FnMut(&Leaf)) {
        if let Some(leaf) = &self.rest {
            each(leaf);
        }
        let Some(topic) = topic else { return each(&self.here) };
        let (level, rest) = split(topic);
        if let Some(child) = self.children.get(level) {
            child.descend(rest, each);
        }
        if let Some(child) = &self.any {
            child.descend(rest, each);
        }
    }

    /// Removes, and drops what became empty on the way back.
    fn remove(&mut self, levels: &[&str], group: Option<&str>, session_id: u64) -> bool {
        let Some((&level, below)) = levels.split_first() else { return self.here.remove(group, session_id) };
        match level {
            "#" => {
                let Some(leaf) = &mut self.rest else { return false };
                let removed = leaf.remove(group, session_id);
                self.rest.take_if(|leaf| leaf.is_empty());
                removed
            }
            "+" => {
                let Some(child) = &mut self.any else { return false };
                let removed = child.remove(below, group, session_id);
                self.any.take_if(|child| child.is_empty());
                removed
            }
            level => {
                let Some(child) = self.children.get_mut(level) else { return false };
                let removed = child.remove(below, group, session_id);
                if child.is_empty() {
                    self.children.remove(level);
                }
                removed
            }
        }
    }

    fn is_empty(&self) -> bool {
        self.children.is_empty() && self.any.is_none() && self.rest.is_none() && self.here.is_empty()
    }
}

fn split(topic: &str) -> (&str, Option<&str>) {
    topic.split_once('/').map_or((topic, None), |(level, rest)| (level, Some(rest)))
}

impl Leaf {
    fn insert(&mut self, filter: Filter<'_>, subscriber: Subscriber) -> bool {
        let id = subscriber.session.id();
        let Some(group) = filter.group else { return self.single.insert(id, subscriber).is_none() };
        let new = || Group {
            name: format!("$share/{group}/{}", filter.filter).into(),
            members: Vec::new(),
            next: AtomicUsize::new(0),
        };
        let members = &mut self.shared.entry(group.into()).or_insert_with(new).members;
        match members.iter_mut().find(|member| member.session.id() == id) {
            Some(member) => {
                *member = subscriber;
                false
            }
            None => {
                members.push(subscriber);
                true
            }
        }
    }

    fn remove(&mut self, group: Option<&str>, session_id: u64) -> bool {
        let Some(group) = group else { return self.single.remove(&session_id).is_some() };
        let Entry::Occupied(mut entry) = self.shared.entry(group.into()) else { return false };
        let members = &mut entry.get_mut().members;
        let Some(at) = members.iter().position(|member| member.session.id() == session_id) else {
            return false;
        };
        members.swap_remove(at);
        if members.is_empty() {
            entry.remove();
        }
        true
    }

    fn is_empty(&self) -> bool {
        self.single.is_empty() && self.shared.is_empty()
    }
}

impl Group {
    /// The member whose turn it is: connected ones first, any other when none is.
    fn choose(&self) -> Option<Target> {
        let count = self.members.len();
        let turn = self.next.fetch_add(1, Ordering::Relaxed);
        let in_turn = || (0..count).map(|step| &self.members[turn.wrapping_add(step) % count]);
        let chosen = in_turn().find(|member| member.session.is_connected()).or_else(|| in_turn().next());
        chosen.map(|member| member.target(Some(Arc::clone(&self.name))))
    }
}

#[cfg(test)]
mod tests;
