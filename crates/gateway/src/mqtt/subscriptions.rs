//! Who subscribed to what: a tree of filter levels.
//!
//! A publisher first asks [`Subscriptions::is_wanted`], which is one atomic load while nobody subscribes, and whose answer
//! holds as long as [`Subscriptions::generation`] stays the same. Only messages that somebody wants are copied.
//!
//! The tree is bounded in bytes, by what its levels and subscribers take, not by their number: a filter of thirty levels that
//! nobody else has costs thirty nodes. A topic of many levels may lead past very many filters with `+`, so a search can be set
//! aside and gone on with ([`Matching`]): who asks can let others have their turn.

mod matching;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use foldhash::fast::RandomState;
use parking_lot::{Mutex, RwLock};

use super::codec::QoS;
use super::peers::{is_client, is_peer};
use super::session::Session;
use super::topics::{Filter, is_reserved};
pub(crate) use matching::Matching;
use matching::{Branch, Place, Walk};

type Map<K, V> = HashMap<K, V, RandomState>;

/// What a node takes, with its place in the map of its parent, which is made for four at least.
const NODE_BYTES: usize = 512;
/// What a subscription takes beside its filter: here, and in its session.
const SUBSCRIBER_BYTES: usize = 128;
/// What a shared subscription takes beside its name.
const GROUP_BYTES: usize = 192;
/// Most messages that one session gets for one: a client may have a thousand filters that match. What matches beyond comes with the
/// last of them.
const COPIES_MAX: usize = 8;

/// There is no room for a further subscription.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct SubscriptionsFull;

/// How a subscriber wants its messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Wish {
    pub(crate) qos: QoS,
    pub(crate) no_local: bool,
    pub(crate) retain_as_published: bool,
    /// Subscription identifier; 0 when there is none.
    pub(crate) subscription_id: u32,
}

/// One session that gets a message, by one of its filters that match or by several.
#[derive(Debug)]
pub(crate) struct Target {
    pub(crate) session: Arc<Session>,
    /// The highest of these subscriptions.
    pub(crate) qos: QoS,
    pub(crate) retain_as_published: bool,
    /// Their identifiers.
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
    /// Those of them that stand for other gateways' clients.
    of_peers: AtomicUsize,
    /// How many clients are members of each shared subscription. Changed under the tree's lock.
    shared: Mutex<BTreeMap<String, usize>>,
    generation: AtomicU64,
    /// What the tree takes; changed under its lock only.
    bytes: AtomicUsize,
    bytes_max: usize,
    /// Clients get a message for each of their filters that match, instead of one, unless one of them is the topic itself.
    copies: bool,
}

impl Subscriptions {
    pub(crate) fn new(copies: bool, bytes_max: usize) -> Self {
        Self { copies, bytes_max, ..Self::default() }
    }

    /// Adds or replaces a subscription. `true` when it is new.
    pub(crate) fn insert(
        &self,
        filter: Filter<'_>,
        session: &Arc<Session>,
        wish: Wish,
    ) -> Result<bool, SubscriptionsFull> {
        let root = &mut *self.root.write();
        let levels: Vec<&str> = filter.filter.split('/').collect();
        let cost = root.cost(&levels, filter, session.id());
        if cost > 0 && self.bytes().saturating_add(cost) > self.bytes_max {
            return Err(SubscriptionsFull);
        }
        let is_new = root.grow(&levels).insert(filter, Subscriber { session: Arc::clone(session), wish });
        self.bytes.fetch_add(cost, Ordering::Relaxed);
        if is_new {
            self.count.fetch_add(1, Ordering::Relaxed);
            self.of_peers.fetch_add(is_peer(session).into(), Ordering::Relaxed);
            if let Some(name) = filter.shared_name().filter(|_| is_client(session)) {
                *self.shared.lock().entry(name).or_default() += 1;
            }
        }
        self.generation.fetch_add(1, Ordering::Release);
        Ok(is_new)
    }

    /// Takes a subscription away. `false` when there was none.
    pub(crate) fn remove(&self, filter: Filter<'_>, session_id: u64) -> bool {
        let levels: Vec<&str> = filter.filter.split('/').collect();
        let root = &mut *self.root.write();
        let Some((subscriber, freed)) = root.remove(&levels, filter, session_id) else { return false };
        self.bytes.fetch_sub(freed, Ordering::Relaxed);
        self.count.fetch_sub(1, Ordering::Relaxed);
        self.of_peers.fetch_sub(is_peer(&subscriber.session).into(), Ordering::Relaxed);
        if let Some(name) = filter.shared_name().filter(|_| is_client(&subscriber.session)) {
            let mut shared = self.shared.lock();
            let left = shared.get(&name).map_or(0, |members| members - 1);
            match left {
                0 => drop(shared.remove(&name)),
                left => drop(shared.insert(name, left)),
            }
        }
        self.generation.fetch_add(1, Ordering::Release);
        true
    }

    /// What the tree takes, in bytes.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes.load(Ordering::Relaxed)
    }

    /// The member of a shared subscription whose turn it is.
    pub(crate) fn choose(&self, filter: Filter<'_>) -> Option<Target> {
        let levels: Vec<&str> = filter.filter.split('/').collect();
        self.root.read().leaf(&levels)?.shared.get(filter.group?)?.choose(|_| true)
    }

    /// Number of subscriptions.
    pub(crate) fn len(&self) -> usize {
        self.count.load(Ordering::Relaxed)
    }

    /// Number of those that are not of other gateways.
    pub(crate) fn of_clients(&self) -> usize {
        self.len().saturating_sub(self.of_peers())
    }

    /// Number of those that stand for other gateways' clients.
    pub(crate) fn of_peers(&self) -> usize {
        self.of_peers.load(Ordering::Relaxed)
    }

    /// What clients subscribe to: at most `max` filters, which stand for more where there are more; and the shared subscriptions.
    pub(crate) fn interest(&self, max: usize) -> (BTreeSet<String>, BTreeSet<String>) {
        let root = self.root.read();
        let shared = self.shared.lock().keys().cloned().collect();
        for levels in [usize::MAX, 8, 5, 4, 3, 2, 1] {
            let mut filters = BTreeSet::new();
            if root.filters(&mut Vec::new(), levels, max, &mut filters).is_continue() {
                return (filters, shared);
            }
        }
        (BTreeSet::from(["#".to_owned()]), shared)
    }

    /// Changes with every change of the subscriptions.
    pub(crate) fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    /// Whether anybody may have subscribed to this topic; it is not known of one that leads past more than `most` nodes. With
    /// the number of those that were looked at.
    pub(crate) fn is_wanted(&self, topic: &str, most: usize) -> (bool, usize) {
        let mut walk = Walk::new(most, Vec::new());
        let mut found = |leaf: &Leaf, _| match leaf.is_empty() {
            true => ControlFlow::Continue(0),
            false => ControlFlow::Break(()),
        };
        let wanted = self.len() > 0 && self.root.read().visit(topic, &mut walk, &mut found).is_break();
        (wanted, walk.looked_at)
    }

    /// Everybody who gets a message of this topic from `publisher`, each once unless copies are asked for.
    pub(crate) fn targets(&self, topic: &str, publisher: u64) -> Vec<Target> {
        let mut matching = Matching::default();
        self.search(&mut matching, topic, publisher, usize::MAX);
        matching.targets
    }

    /// Goes on to search for them, past about `most` nodes and subscribers, and gives the number of those that were looked at. Who
    /// subscribes or leaves between two calls may be among them or not.
    pub(crate) fn search(&self, matching: &mut Matching, topic: &str, publisher: u64, most: usize) -> usize {
        let is_own =
            |subscriber: &Subscriber| subscriber.wish.no_local && subscriber.session.id() == publisher;
        let may = |subscriber: &Subscriber| !is_own(subscriber);
        self.go_on(matching, topic, most, may, |group| group.choose(|_| true))
    }

    /// Everybody who gets a message of another gateway: clients of this one, and of shared subscriptions only those whose turn it
    /// is here.
    pub(crate) fn targets_from_peer(&self, topic: &str, shared: &[&str]) -> Vec<Target> {
        let is_here = |subscriber: &Subscriber| is_client(&subscriber.session);
        let choose = |group: &Group| shared.contains(&&*group.name).then(|| group.choose(is_here)).flatten();
        let mut matching = Matching::default();
        self.go_on(&mut matching, topic, usize::MAX, is_here, choose);
        matching.targets
    }

    fn go_on(
        &self,
        matching: &mut Matching,
        topic: &str,
        most: usize,
        may: impl Fn(&Subscriber) -> bool,
        choose: impl Fn(&Group) -> Option<Target>,
    ) -> usize {
        matching.is_done = self.len() == 0;
        if matching.is_done {
            return 0;
        }
        let Matching { targets, places, aside, is_done } = matching;
        let mut walk = Walk::new(most, std::mem::take(aside));
        let mut each = |leaf: &Leaf, named: bool| {
            for subscriber in leaf.single.values().filter(|subscriber| may(subscriber)) {
                let session = subscriber.session.id();
                let next = targets.len();
                match places.of(session) {
                    Some(place) if place.left == 0 => targets[place.target].merge(&subscriber.wish),
                    Some(place) => {
                        *place = Place { target: next, left: place.left - 1 };
                        targets.push(subscriber.target(None));
                    }
                    None => {
                        // The filter that is the topic itself comes first, and then stands for the session's others.
                        let is_one = named || !self.copies || !is_client(&subscriber.session);
                        let left = if is_one { 0 } else { COPIES_MAX - 1 };
                        places.add(session, Place { target: next, left });
                        targets.push(subscriber.target(None));
                    }
                }
            }
            targets.extend(leaf.shared.values().filter_map(&choose));
            ControlFlow::Continue(leaf.single.len() + leaf.shared.len())
        };
        *is_done = self.root.read().visit(topic, &mut walk, &mut each).is_continue();
        *aside = walk.aside;
        walk.looked_at
    }
}

impl Target {
    /// Another filter of the same session matches too.
    fn merge(&mut self, wish: &Wish) {
        self.qos = self.qos.max(wish.qos);
        self.retain_as_published |= wish.retain_as_published;
        self.subscription_ids.extend(Some(wish.subscription_id).filter(|&id| id != 0));
    }
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

    /// What a subscription would take more than there is; 0 when it is there.
    fn cost(&self, levels: &[&str], filter: Filter<'_>, session_id: u64) -> usize {
        let mut node = self;
        for (at, &level) in levels.iter().enumerate() {
            let next = match level {
                "#" => match &node.rest {
                    Some(leaf) => return leaf.cost(filter, session_id),
                    None => None,
                },
                "+" => node.any.as_deref(),
                level => node.children.get(level),
            };
            let Some(next) = next else {
                let nodes = levels[at..].iter().map(|level| NODE_BYTES + level.len());
                return nodes.sum::<usize>() + Leaf::default().cost(filter, session_id);
            };
            node = next;
        }
        node.here.cost(filter, session_id)
    }

    /// The subscribers of a filter, after the nodes on the way to them are made.
    fn grow(&mut self, levels: &[&str]) -> &mut Leaf {
        match levels.split_first() {
            None => &mut self.here,
            Some((&"#", _)) => self.rest.get_or_insert_default(),
            Some((&"+", below)) => self.any.get_or_insert_default().grow(below),
            Some((&level, below)) => self.children.entry(level.into()).or_default().grow(below),
        }
    }

    /// Calls `each` with the subscribers of every filter that matches, and whether it is the topic itself; it tells how many it
    /// has looked at. Breaks off when it does, or when the walk has looked at as much as it may.
    fn visit(
        &self,
        topic: &str,
        walk: &mut Walk,
        each: &mut impl FnMut(&Leaf, bool) -> ControlFlow<(), usize>,
    ) -> ControlFlow<()> {
        // `#` and `+` at the first level do not reach topics that start with `$`.
        if !is_reserved(topic) {
            return self.descend(Some(topic), true, walk, each);
        }
        let (level, rest) = split(topic);
        self.children
            .get(level)
            .map_or(ControlFlow::Continue(()), |child| child.descend(rest, true, walk, each))
    }

    /// `topic`: the levels below this node; none when the topic ends here. `named`: no wildcard has led here. The filter that
    /// is the topic itself is visited first.
    fn descend(
        &self,
        topic: Option<&str>,
        named: bool,
        walk: &mut Walk,
        each: &mut impl FnMut(&Leaf, bool) -> ControlFlow<(), usize>,
    ) -> ControlFlow<()> {
        let taken = walk.aside.pop();
        if taken.is_none() {
            walk.enter()?;
        }
        match topic.map(split) {
            None => walk.looked_at += each(&self.here, named)?,
            Some((level, rest)) => {
                if taken != Some(Branch::Any)
                    && let Some(child) = self.children.get(level)
                {
                    let below = child.descend(rest, named, walk, each);
                    walk.note(Branch::Named, below)?;
                } else if taken == Some(Branch::Named) {
                    // What it had come to is gone.
                    walk.aside.clear();
                }
                if let Some(child) = &self.any {
                    let below = child.descend(rest, false, walk, each);
                    walk.note(Branch::Any, below)?;
                } else {
                    walk.aside.clear();
                }
            }
        }
        if let Some(leaf) = &self.rest {
            walk.looked_at += each(leaf, false)?;
        }
        ControlFlow::Continue(())
    }

    /// The filters of clients, each with no more levels than `levels`. Breaks off when there are more than `max`.
    fn filters<'a>(
        &'a self,
        path: &mut Vec<&'a str>,
        levels: usize,
        max: usize,
        found: &mut BTreeSet<String>,
    ) -> ControlFlow<()> {
        if self.here.has_client() {
            found.insert(path.join("/"));
        }
        let is_cut = path.len() >= levels && self.below().any(|(_, node)| node.has_client());
        if is_cut || self.rest.as_ref().is_some_and(|leaf| leaf.has_client()) {
            path.push("#");
            found.insert(path.join("/"));
            path.pop();
        }
        if found.len() > max {
            return ControlFlow::Break(());
        }
        if path.len() < levels {
            for (level, node) in self.below() {
                path.push(level);
                let done = node.filters(path, levels, max, found);
                path.pop();
                done?;
            }
        }
        ControlFlow::Continue(())
    }

    fn below(&self) -> impl Iterator<Item = (&str, &Self)> {
        let named = self.children.iter().map(|(level, node)| (&**level, node));
        named.chain(self.any.as_deref().map(|node| ("+", node)))
    }

    /// Whether a client subscribes to anything from here on.
    fn has_client(&self) -> bool {
        self.here.has_client()
            || self.rest.as_ref().is_some_and(|leaf| leaf.has_client())
            || self.below().any(|(_, node)| node.has_client())
    }

    /// Removes, and drops what became empty on the way back. Gives it with the bytes that are free now; none: it was not there.
    fn remove(
        &mut self,
        levels: &[&str],
        filter: Filter<'_>,
        session_id: u64,
    ) -> Option<(Subscriber, usize)> {
        let Some((&level, below)) = levels.split_first() else { return self.here.remove(filter, session_id) };
        let (removed, mut freed);
        let emptied = match level {
            "#" => {
                (removed, freed) = self.rest.as_mut()?.remove(filter, session_id)?;
                self.rest.take_if(|leaf| leaf.is_empty()).is_some()
            }
            "+" => {
                (removed, freed) = self.any.as_mut()?.remove(below, filter, session_id)?;
                self.any.take_if(|child| child.is_empty()).is_some()
            }
            level => {
                let child = self.children.get_mut(level)?;
                (removed, freed) = child.remove(below, filter, session_id)?;
                child.is_empty() && self.children.remove(level).is_some()
            }
        };
        if emptied {
            freed += NODE_BYTES + level.len();
        }
        Some((removed, freed))
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
            name: filter.shared_name().unwrap_or_default().into(),
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

    /// What a subscription would take more than there is; 0 when it is there.
    fn cost(&self, filter: Filter<'_>, session_id: u64) -> usize {
        let own = SUBSCRIBER_BYTES + filter.filter.len();
        let is_there = |group: &Group| group.members.iter().any(|member| member.session.id() == session_id);
        match filter.group {
            None if self.single.contains_key(&session_id) => 0,
            None => own,
            Some(group) => match self.shared.get(group) {
                Some(group) if is_there(group) => 0,
                Some(_) => own,
                None => own + group_bytes(group, filter),
            },
        }
    }

    /// Gives it with the bytes that are free now; none: it was not there.
    fn remove(&mut self, filter: Filter<'_>, session_id: u64) -> Option<(Subscriber, usize)> {
        let own = SUBSCRIBER_BYTES + filter.filter.len();
        let Some(group) = filter.group else { return Some((self.single.remove(&session_id)?, own)) };
        let members = &mut self.shared.get_mut(group)?.members;
        let at = members.iter().position(|member| member.session.id() == session_id)?;
        let removed = members.swap_remove(at);
        if !members.is_empty() {
            return Some((removed, own));
        }
        self.shared.remove(group);
        Some((removed, own + group_bytes(group, filter)))
    }

    /// Whether one of them, by a filter of its own, is a client.
    fn has_client(&self) -> bool {
        self.single.values().any(|subscriber| is_client(&subscriber.session))
    }

    fn is_empty(&self) -> bool {
        self.single.is_empty() && self.shared.is_empty()
    }
}

fn group_bytes(group: &str, filter: Filter<'_>) -> usize {
    GROUP_BYTES + 2 * group.len() + filter.filter.len()
}

impl Group {
    /// The member whose turn it is of those that may: connected ones and other gateways first, any other when there is none.
    fn choose(&self, may: impl Fn(&Subscriber) -> bool) -> Option<Target> {
        let count = self.members.len();
        let turn = self.next.fetch_add(1, Ordering::Relaxed);
        let in_turn = || {
            let members = (0..count).map(|step| &self.members[turn.wrapping_add(step) % count]);
            members.filter(|member| may(member))
        };
        let is_there = |member: &&Subscriber| member.session.is_connected() || is_peer(&member.session);
        let chosen = in_turn().find(is_there).or_else(|| in_turn().next());
        chosen.map(|member| member.target(Some(Arc::clone(&self.name))))
    }
}
