use std::sync::Arc;
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::*;
use crate::mqtt::keep::Keeper;
use crate::mqtt::session::QueueLimits;
use crate::mqtt::signal::Signal;
use crate::mqtt::topics::TopicLimits;

const LIMITS: TopicLimits = TopicLimits { bytes_max: 100, levels_max: 10 };
const WISH: Wish =
    Wish { qos: QoS::AtMostOnce, no_local: false, retain_as_published: false, subscription_id: 0 };

fn session(id: u64) -> Arc<Session> {
    let limits = QueueLimits { messages_max: 10, bytes_max: 1000 };
    Arc::new(Session::new(id, "client", limits, Arc::new(Keeper::volatile(&Default::default()))))
}

fn filter(text: &str) -> Filter<'_> {
    LIMITS.filter(text).unwrap()
}

fn ids(subscriptions: &Subscriptions, topic: &str) -> Vec<u64> {
    let mut ids: Vec<_> = subscriptions.targets(topic, 0).iter().map(|target| target.session.id()).collect();
    ids.sort_unstable();
    ids
}

#[test]
fn the_standards_examples() {
    let subscriptions = Subscriptions::new(false, usize::MAX);
    let filters = [
        "sport/tennis/player1/#",
        "sport/#",
        "+/tennis/#",
        "sport/+",
        "+",
        "/+",
        "+/+",
        "#",
        "$SYS/#",
        "$SYS/+/x",
    ];
    for (id, text) in filters.iter().enumerate() {
        assert_eq!(subscriptions.insert(filter(text), &session(id as u64), WISH), Ok(true));
    }
    assert_eq!(ids(&subscriptions, "sport/tennis/player1"), [0, 1, 2, 7]);
    assert_eq!(ids(&subscriptions, "sport/tennis/player1/score"), [0, 1, 2, 7]);
    assert_eq!(ids(&subscriptions, "sport"), [1, 4, 7]);
    assert_eq!(ids(&subscriptions, "sport/"), [1, 3, 6, 7]);
    assert_eq!(ids(&subscriptions, "/finance"), [5, 6, 7]);
    assert_eq!(ids(&subscriptions, "$SYS/a/x"), [8, 9]);
    assert_eq!(ids(&subscriptions, "$SYS"), [8]);
}

#[test]
fn bridges_and_other_gateways_get_one_copy() {
    let subscriptions = Subscriptions::new(true, usize::MAX);
    let limits = QueueLimits { messages_max: 10, bytes_max: 1000 };
    let of = |id, client_id: &str| {
        Arc::new(Session::new(id, client_id, limits, Arc::new(Keeper::volatile(&Default::default()))))
    };
    let peer = 1 << 63;
    for session in [of(1, "client"), of(2, "\0bridge/x"), of(peer, "gateway-2")] {
        for text in ["a/#", "+/b", "a/+", "a/c"] {
            assert_eq!(subscriptions.insert(filter(text), &session, WISH), Ok(true));
        }
    }
    assert_eq!(ids(&subscriptions, "a/b"), [1, 1, 1, 2, peer]);
    // A filter that is the topic itself stands for the others.
    assert_eq!(ids(&subscriptions, "a/c"), [1, 2, peer]);
}

#[test]
fn copies_of_one_message_have_a_bound() {
    let subscriptions = Subscriptions::new(true, usize::MAX);
    let greedy = session(1);
    // Every way to write a topic of six levels with `+`, but for the topic itself.
    for number in 1..64u32 {
        let levels: Vec<_> = (0..6).map(|at| if number >> at & 1 == 1 { "+" } else { "a" }).collect();
        let wish = Wish { subscription_id: number, ..WISH };
        assert_eq!(subscriptions.insert(filter(&levels.join("/")), &greedy, wish), Ok(true));
    }
    let targets = subscriptions.targets("a/a/a/a/a/a", 0);
    assert_eq!(targets.len(), COPIES_MAX);
    let mut told: Vec<_> = targets.iter().flat_map(|target| target.subscription_ids.clone()).collect();
    told.sort_unstable();
    assert_eq!(told, (1..64).collect::<Vec<_>>(), "each filter is answered once");
}

/// The rules of the standard, level by level.
fn matches(filter: &str, topic: &str) -> bool {
    fn levels<'a>(
        mut filter: impl Iterator<Item = &'a str>,
        mut topic: impl Iterator<Item = &'a str>,
    ) -> bool {
        loop {
            match (filter.next(), topic.next()) {
                (Some("#"), _) | (None, None) => return true,
                (Some("+"), Some(_)) => {}
                (Some(wanted), Some(level)) if wanted == level => {}
                _ => return false,
            }
        }
    }
    let reserved = topic.starts_with('$') && filter.starts_with(['+', '#']);
    !reserved && levels(filter.split('/'), topic.split('/'))
}

#[test]
fn the_tree_agrees_with_the_rules_and_ends_empty() {
    let mut random = StdRng::seed_from_u64(11);
    let mut text = |levels: &[&str], rest: bool| {
        let depth = random.random_range(1..5);
        let mut parts: Vec<&str> = (0..depth).map(|_| levels[random.random_range(0..levels.len())]).collect();
        if rest && random.random_bool(0.3) {
            parts.push("#");
        }
        parts.join("/")
    };
    let subscriptions = Subscriptions::new(false, usize::MAX);
    let filters: Vec<String> = (0..300)
        .map(|_| text(&["a", "b", "", "+", "$x"], true))
        .filter(|filter| !filter.is_empty())
        .collect();
    for (id, text) in filters.iter().enumerate() {
        assert_eq!(subscriptions.insert(filter(text), &session(id as u64), WISH), Ok(true));
    }
    for _ in 0..1000 {
        let topic = text(&["a", "b", "", "c", "$x"], false);
        if topic.is_empty() {
            continue;
        }
        let fits = |(id, filter): (usize, &String)| matches(filter, &topic).then_some(id as u64);
        let wanted: Vec<u64> = filters.iter().enumerate().filter_map(fits).collect();
        assert_eq!(ids(&subscriptions, &topic), wanted, "{topic}");
        assert_eq!(subscriptions.is_wanted(&topic, usize::MAX).0, !wanted.is_empty(), "{topic}");
    }
    for (id, text) in filters.iter().enumerate() {
        let generation = subscriptions.generation();
        assert!(subscriptions.remove(filter(text), id as u64));
        assert!(!subscriptions.remove(filter(text), id as u64));
        assert_ne!(subscriptions.generation(), generation);
    }
    assert_eq!(subscriptions.len(), 0);
    assert!(subscriptions.root.read().is_empty());
    assert_eq!(subscriptions.bytes(), 0);
}

#[test]
fn one_target_a_session() {
    let subscriptions = Subscriptions::new(false, usize::MAX);
    let (one, two) = (session(1), session(2));
    let wish = |qos, subscription_id| Wish { qos, subscription_id, ..WISH };
    subscriptions.insert(filter("a/#"), &one, wish(QoS::AtMostOnce, 7)).unwrap();
    let as_published = Wish { retain_as_published: true, ..wish(QoS::ExactlyOnce, 8) };
    subscriptions.insert(filter("a/+"), &one, as_published).unwrap();
    let unlocal = Wish { no_local: true, ..WISH };
    assert_eq!(subscriptions.insert(filter("a/b"), &two, unlocal), Ok(true));
    assert_eq!(subscriptions.insert(filter("a/b"), &two, unlocal), Ok(false), "replaced");
    let targets = subscriptions.targets("a/b", two.id());
    assert_eq!(targets.len(), 1);
    assert_eq!((targets[0].qos, targets[0].retain_as_published), (QoS::ExactlyOnce, true));
    let mut found = targets[0].subscription_ids.clone();
    found.sort_unstable();
    assert_eq!(found, [7, 8]);
    assert_eq!(ids(&subscriptions, "a/b"), [1, 2]);
    assert_eq!(subscriptions.len(), 3);
}

#[test]
fn groups_prefer_members_that_are_there() {
    let subscriptions = Subscriptions::new(false, usize::MAX);
    let (here, away) = (session(1), session(2));
    here.attach(Arc::new(Signal::default()), Duration::from_secs(1), None);
    for member in [&here, &away] {
        subscriptions.insert(filter("$share/g/a"), member, WISH).unwrap();
    }
    subscriptions.insert(filter("$share/h/a"), &away, WISH).unwrap();
    for _ in 0..3 {
        assert_eq!(ids(&subscriptions, "a"), [1, 2], "one of each group");
    }
    let signal = here.link().unwrap();
    here.detach(&signal, false, None, &[], Instant::now()).unwrap();
    let mut seen: Vec<u64> = (0..4).flat_map(|_| ids(&subscriptions, "a")).collect();
    seen.sort_unstable();
    seen.dedup();
    assert_eq!(seen, [1, 2]);
    assert!(subscriptions.remove(filter("$share/g/a"), 1) && subscriptions.remove(filter("$share/g/a"), 2));
    assert!(subscriptions.remove(filter("$share/h/a"), 2) && subscriptions.root.read().is_empty());
    assert_eq!(subscriptions.bytes(), 0);
}

#[test]
fn bytes_are_bounded_and_given_back() {
    let one_deep = 10 * (NODE_BYTES + 1) + SUBSCRIBER_BYTES + 19;
    let subscriptions = Subscriptions::new(false, one_deep + 2 * SUBSCRIBER_BYTES);
    let (one, two) = (session(1), session(2));
    let deep = filter("1/2/3/4/5/6/7/8/9/+");
    assert_eq!(subscriptions.insert(deep, &one, WISH), Ok(true));
    assert_eq!(subscriptions.bytes(), one_deep);
    assert_eq!(subscriptions.insert(filter("1/2/3/x"), &one, WISH), Err(SubscriptionsFull));
    assert_eq!(subscriptions.insert(deep, &one, WISH), Ok(false), "what is there is replaced");
    assert_eq!(subscriptions.insert(deep, &two, WISH), Ok(true), "the way is there already");
    assert!(subscriptions.remove(deep, 1) && subscriptions.remove(deep, 2));
    assert_eq!(subscriptions.bytes(), 0);
}

#[test]
fn what_was_looked_at_is_told_and_has_a_bound() {
    // Every level may be two ways.
    let (subscriptions, one) = (Subscriptions::new(false, usize::MAX), session(1));
    for bits in 0..256 {
        let levels: Vec<&str> = (0..8).map(|at| if bits >> at & 1 == 1 { "a" } else { "+" }).collect();
        subscriptions.insert(filter(&levels.join("/")), &one, WISH).unwrap();
    }
    let topic = "a/a/a/a/a/a/a/a";
    let mut matching = Matching::default();
    assert_eq!(subscriptions.search(&mut matching, topic, 0, usize::MAX), 511 + 256);
    assert_eq!((matching.targets.len(), matching.is_done), (1, true));
    let mut matching = Matching::default();
    assert_eq!(subscriptions.search(&mut matching, topic, 0, 100), 100);
    assert!(!matching.is_done);
    assert_eq!(subscriptions.is_wanted(topic, 100), (true, 9), "the first is enough");
    assert_eq!(subscriptions.is_wanted("a/a/a/a/a/a/a/a/a", 600), (false, 511));
    assert_eq!(subscriptions.is_wanted("a/a/a/a/a/a/a/a/a", 100), (true, 100), "not known");
}

#[test]
fn a_search_in_pieces_finds_the_same_whatever_changes_meanwhile() {
    let mut random = StdRng::seed_from_u64(5);
    let some = |random: &mut StdRng| {
        let (mut parts, depth) = (Vec::new(), random.random_range(1..7));
        parts.resize_with(depth, || ["a", "+", "b"][random.random_range(0..3)]);
        if random.random_bool(0.2) {
            parts.push("#");
        }
        parts.join("/")
    };
    for round in 0..300 {
        let subscriptions = Subscriptions::new(round % 2 == 0, usize::MAX);
        // The even ones stay, the odd ones come and go.
        let filters: Vec<String> = (0..200).map(|_| some(&mut random)).collect();
        let sessions: Vec<_> = (0..200).map(session).collect();
        let insert = |id: usize| subscriptions.insert(filter(&filters[id]), &sessions[id], WISH).unwrap();
        for id in (0..200).step_by(2) {
            insert(id);
        }
        let topic = ["a/b/a/b", "a/a/a/a/a/a", "b"][round % 3];
        let wanted = ids(&subscriptions, topic);

        let mut matching = Matching::default();
        let (most, mut calls) = (random.random_range(1..20), 0);
        while !matching.is_done {
            subscriptions.search(&mut matching, topic, 0, most);
            calls += 1;
            assert!(calls < 10_000, "it comes to its end");
            for _ in 0..random.random_range(0..40) {
                let id = random.random_range(0..100) * 2 + 1;
                if !subscriptions.remove(filter(&filters[id]), id as u64) {
                    insert(id);
                }
            }
        }
        let mut found: Vec<_> = matching.targets.iter().map(|target| target.session.id()).collect();
        found.sort_unstable();
        assert!(found.is_sorted_by(|a, b| a < b), "each once");
        found.retain(|id| id % 2 == 0);
        assert_eq!(found, wanted, "{topic}, {most} at a time");
    }
}

#[test]
fn what_others_are_told_is_no_less_than_what_is_subscribed_to() {
    let subscriptions = Subscriptions::new(false, usize::MAX);
    let (one, peer) = (session(1), session(1 << 63));
    for text in ["a/b/c", "a/b/+", "x/#", "+", "/", "$share/g/a/b", "$share/g/jobs/#"] {
        subscriptions.insert(filter(text), &one, WISH).unwrap();
    }
    for text in ["p/q", "$share/g/p", "$share/g/jobs/#", "deep/+/#"] {
        subscriptions.insert(filter(text), &peer, WISH).unwrap();
    }
    let told = |max| {
        let (filters, shared) = subscriptions.interest(max);
        assert_eq!(shared.into_iter().collect::<Vec<_>>(), ["$share/g/a/b", "$share/g/jobs/#"]);
        filters.into_iter().collect::<Vec<_>>()
    };
    assert_eq!(told(5), ["+", "/", "a/b/+", "a/b/c", "x/#"]);
    assert_eq!(told(4), ["+", "/", "a/b/#", "x/#"]);
    assert_eq!(told(3), ["#"]);
    assert_eq!((subscriptions.of_clients(), subscriptions.of_peers()), (7, 4));
    assert!(subscriptions.remove(filter("p/q"), 1 << 63));
    assert_eq!((subscriptions.of_clients(), subscriptions.of_peers()), (7, 3));
}

#[test]
fn other_gateways_take_their_turn_and_no_more() {
    let subscriptions = Subscriptions::new(false, usize::MAX);
    let (one, peer) = (session(1), session(1 << 63));
    for session in [&one, &peer] {
        subscriptions.insert(filter("$share/g/a"), session, WISH).unwrap();
        subscriptions.insert(filter("a"), session, WISH).unwrap();
    }
    let signal = Signal::default();
    one.attach(Arc::new(signal), Duration::ZERO, None);
    let mut chosen: Vec<u64> = Vec::new();
    for _ in 0..10 {
        let targets = subscriptions.targets("a", 0);
        assert_eq!(targets.len(), 3, "each by itself, and one of the two as a member");
        chosen.extend(targets.iter().filter(|t| t.shared.is_some()).map(|t| t.session.id()));
    }
    assert_eq!(chosen.iter().filter(|&&id| id == 1).count(), 5);
    // What comes from there is for clients of here, and for the group only if it is said so.
    let from_peer = |shared: &[&str]| {
        let targets = subscriptions.targets_from_peer("a", shared);
        targets.iter().map(|t| (t.session.id(), t.shared.is_some())).collect::<Vec<_>>()
    };
    assert_eq!(from_peer(&[]), [(1, false)]);
    assert_eq!(from_peer(&["$share/other/a"]), [(1, false)]);
    assert_eq!(from_peer(&["$share/g/a"]), [(1, false), (1, true)]);
}
