//! The search for those who get a message, which can be set aside and gone on with.

use std::ops::ControlFlow;

use super::{Map, Target};

/// A search for those who get a message, and how far it has come.
#[derive(Debug, Default)]
pub(crate) struct Matching {
    /// Those who were found.
    pub(crate) targets: Vec<Target>,
    pub(super) places: Places,
    /// Where it goes on: see [`Walk::aside`].
    pub(super) aside: Vec<Branch>,
    /// Whether they are all of them.
    pub(crate) is_done: bool,
}

/// The way of a topic through the tree.
#[derive(Debug)]
pub(super) struct Walk {
    /// Nodes and subscribers that were looked at, and how many may be.
    pub(super) looked_at: usize,
    most: usize,
    /// Where a walk that had looked at as many was set aside: the branch that it had taken at each node, the root's last. While it
    /// finds its way back, those that it has not come to.
    pub(super) aside: Vec<Branch>,
}

/// One of the two ways on from a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Branch {
    /// By the level's name, which comes first.
    Named,
    /// By `+`.
    Any,
}

impl Walk {
    pub(super) fn new(most: usize, aside: Vec<Branch>) -> Self {
        Self { looked_at: 0, most, aside }
    }

    /// Looks at a node, if one more may be.
    pub(super) fn enter(&mut self) -> ControlFlow<()> {
        if self.looked_at >= self.most {
            return ControlFlow::Break(());
        }
        self.looked_at += 1;
        ControlFlow::Continue(())
    }

    /// Notes the branch by which a walk goes on that is set aside below it.
    pub(super) fn note(&mut self, branch: Branch, below: ControlFlow<()>) -> ControlFlow<()> {
        if below.is_break() {
            self.aside.push(branch);
        }
        below
    }
}

/// Where among the targets of a message a session is that gets it by filters of its own.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place {
    /// The last one.
    pub(super) target: usize,
    /// How many more it may get.
    pub(super) left: usize,
}

/// The places of all sessions: one session may have a thousand filters that match.
#[derive(Debug, Default)]
pub(super) struct Places {
    /// The first ones are looked through one by one.
    few: Vec<(u64, Place)>,
    more: Map<u64, Place>,
}

impl Places {
    const FEW: usize = 8;

    pub(super) fn of(&mut self, session: u64) -> Option<&mut Place> {
        match self.few.iter_mut().find(|(id, _)| *id == session) {
            Some((_, place)) => Some(place),
            None if self.more.is_empty() => None,
            None => self.more.get_mut(&session),
        }
    }

    pub(super) fn add(&mut self, session: u64, place: Place) {
        if self.few.len() < Self::FEW {
            self.few.push((session, place));
        } else {
            self.more.insert(session, place);
        }
    }
}
