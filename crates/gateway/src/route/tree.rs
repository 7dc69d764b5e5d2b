//! All routes as one tree of levels, so that finding one takes as long as the topic is deep, not as there are routes.

use std::collections::HashMap;

use foldhash::fast::RandomState;

use super::template::Level;

/// A level and what may follow it. The numbers are those of routes.
#[derive(Debug, Clone, Default)]
pub(super) struct Tree {
    words: HashMap<Box<str>, Tree, RandomState>,
    any: Option<Box<Tree>>,
    /// The route that takes all that follows.
    rest: Option<usize>,
    /// The route that ends here.
    end: Option<usize>,
}

impl Tree {
    /// Adds a route; the number of the one that is there already, if there is one.
    pub(super) fn insert(&mut self, levels: &[Level], route: usize) -> Result<(), usize> {
        let mut node = self;
        for level in levels {
            node = match level {
                Level::Word(word) => node.words.entry(word.clone()).or_default(),
                Level::Rest | Level::RestTag(_) => return take(&mut node.rest, route),
                Level::DeviceId | Level::Type | Level::Tag(_) | Level::Any => {
                    node.any.get_or_insert_default()
                }
            };
        }
        take(&mut node.end, route)
    }

    /// The most specific route that fits. Visits no node twice, so that no topic costs more than the tree is large; the
    /// depth is that of the deepest route.
    pub(super) fn find(&self, topic: &str) -> Option<usize> {
        let (level, below) = match topic.split_once('/') {
            Some((level, below)) => (level, Some(below)),
            None => (topic, None),
        };
        let follow = |node: &Self| match below {
            Some(below) => node.find(below),
            None => node.end,
        };
        let by_word = self.words.get(level).and_then(follow);
        by_word.or_else(|| self.any.as_deref().and_then(follow)).or(self.rest)
    }
}

fn take(place: &mut Option<usize>, route: usize) -> Result<(), usize> {
    match *place {
        Some(other) => Err(other),
        None => {
            *place = Some(route);
            Ok(())
        }
    }
}
