//! Which filter matches which topic: the trees of subscriptions and of retained messages against the rules of the standard,
//! level by level (4.7 in both versions).
#![no_main]

use std::collections::{BTreeMap, BTreeSet};

use arbitrary::Unstructured;
use catchment_gateway::fuzzing::Matching;
use libfuzzer_sys::fuzz_target;

const LEVELS: [&str; 8] = ["a", "b", "", "+", "#", "$SYS", "$x", "é"];

/// The rules of the standard.
fn matches(filter: &str, topic: &str) -> bool {
    if topic.starts_with('$') && filter.starts_with(['+', '#']) {
        return false;
    }
    let (mut filter, mut topic) = (filter.split('/'), topic.split('/'));
    loop {
        match (filter.next(), topic.next()) {
            (Some("#"), _) => return true,
            (Some("+"), Some(_)) => {}
            (Some(wanted), Some(level)) if wanted == level => {}
            (None, None) => return true,
            _ => return false,
        }
    }
}

fn text(input: &mut Unstructured<'_>) -> arbitrary::Result<String> {
    let count = input.int_in_range(1..=6)?;
    let levels = (0..count).map(|_| input.choose(&LEVELS).copied()).collect::<arbitrary::Result<Vec<_>>>()?;
    Ok(levels.join("/"))
}

fn run(input: &mut Unstructured<'_>) -> arbitrary::Result<()> {
    let mut trees = Matching::default();
    let mut subscribed: BTreeSet<(u8, Option<&str>, String)> = BTreeSet::new();
    let mut retained: BTreeSet<String> = BTreeSet::new();
    while !input.is_empty() {
        let (what, session, mut filter) =
            (input.int_in_range(0..=4)?, input.int_in_range(0..=3u8)?, text(input)?);
        let group = *input.choose(&[None, None, Some("g"), Some("h")])?;
        let whole = match group {
            Some(group) => format!("$share/{group}/{filter}"),
            None => filter.clone(),
        };
        match what {
            0 | 1 if Matching::filter(&whole).is_some() => {
                assert_eq!(Matching::filter(&whole), Some((group, &*filter)));
                let key = (session, group, filter);
                if what == 0 {
                    assert_eq!(trees.subscribe(session, &whole), Some(subscribed.insert(key)));
                } else {
                    assert_eq!(trees.unsubscribe(session, &whole), Some(subscribed.remove(&key)));
                }
                assert_eq!(trees.subscriptions(), (subscribed.len(), subscribed.is_empty()));
            }
            2 if Matching::is_topic(&filter) => {
                let is_there = input.arbitrary()?;
                trees.retain(&filter, is_there);
                let known = retained.remove(&filter);
                if is_there {
                    retained.insert(std::mem::take(&mut filter));
                }
                let (messages, bytes) = trees.retained_size();
                assert_eq!((messages, bytes == 0), (retained.len(), retained.is_empty()), "{known}");
            }
            3 if Matching::filter(&filter).is_some_and(|(group, _)| group.is_none()) => {
                let mut found = trees.retained(&filter, input.int_in_range(1..=3)?);
                found.sort_unstable();
                let wanted: Vec<_> =
                    retained.iter().filter(|topic| matches(&filter, topic)).cloned().collect();
                assert_eq!(found, wanted, "retained for {filter}");
            }
            4 if Matching::is_topic(&filter) => {
                let matching = || subscribed.iter().filter(|(_, _, text)| matches(text, &filter));
                let own: BTreeSet<u8> = matching()
                    .filter(|(_, group, _)| group.is_none())
                    .map(|&(session, ..)| session)
                    .collect();
                let mut shared: BTreeMap<String, ()> = BTreeMap::new();
                for (_, group, text) in matching() {
                    if let Some(group) = group {
                        shared.insert(format!("$share/{group}/{text}"), ());
                    }
                }
                let wanted = (own.into_iter().collect(), shared.into_keys().collect());
                assert_eq!(trees.targets(&filter), wanted, "subscribers of {filter}");
            }
            _ => {}
        }
    }
    Ok(())
}

fuzz_target!(|bytes: &[u8]| {
    // An input that ends early has done what it says.
    let _ = run(&mut Unstructured::new(bytes));
});
