//! What a connection owes its client: acknowledgements, in the order of the publishes, each once its event is durable.
//!
//! Everything taken in by one read is a *group*: the appends that it was submitted as (one a partition), and its
//! acknowledgements. Groups are released from the front, so that order holds across partitions. Three flat queues hold
//! it all; nothing is allocated per message or per read.

use std::collections::{HashSet, VecDeque};
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use catchment_eventlog::{LogError, Pending};
use foldhash::fast::RandomState;
use tokio::time::Instant;

use super::codec::{AckKind, QoS, Reason};

/// An acknowledgement to be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Owed {
    pub(crate) packet_id: u16,
    pub(crate) kind: AckKind,
    /// What to say when nothing goes wrong.
    pub(crate) reason: Reason,
    /// Which append of its group it waits for; none: a message that does not go to the log.
    pub(crate) append: Option<u16>,
}

impl Owed {
    /// The first acknowledgement of a publish; none for QoS 0.
    pub(crate) fn to(qos: QoS, packet_id: u16, reason: Reason, append: Option<usize>) -> Option<Self> {
        let kind = match qos {
            QoS::AtMostOnce => return None,
            QoS::AtLeastOnce => AckKind::Ack,
            QoS::ExactlyOnce => AckKind::Rec,
        };
        // A read touches far fewer partitions than 65,535: it has 64 KiB.
        Some(Self { packet_id, kind, reason, append: append.and_then(|place| u16::try_from(place).ok()) })
    }
}

#[derive(Debug)]
enum Append {
    Waiting(Pending),
    Done(Result<(), LogError>),
}

#[derive(Debug, Clone, Copy, Default)]
struct Group {
    appends: usize,
    acks: usize,
    events: usize,
    bytes: usize,
    /// The last of the appends counts for all acknowledgements.
    for_all: bool,
    /// When its appends were handed to the log.
    submitted: Option<Instant>,
}

/// Limits of what may be on its way.
#[derive(Debug, Clone, Copy)]
pub(crate) struct InflightLimits {
    pub(crate) events_max: usize,
    pub(crate) bytes_max: usize,
}

/// Acknowledgements in order, and what they wait for.
#[derive(Debug, Default)]
pub(crate) struct Acks {
    groups: VecDeque<Group>,
    appends: VecDeque<Append>,
    acks: VecDeque<Owed>,
    /// The group of the read that is being taken in.
    open: Group,
    events: usize,
    bytes: usize,
    publishes_qos1: usize,
    /// Identifiers for which a PUBREC is owed: a client may send them again and again.
    recs: HashSet<u16, RandomState>,
}

impl Acks {
    /// Whether more may be read.
    pub(crate) fn has_room(&self, limits: InflightLimits) -> bool {
        self.events < limits.events_max && self.bytes < limits.bytes_max
    }

    /// Whether nothing is owed, and no read being taken in.
    pub(crate) fn is_empty(&self) -> bool {
        self.groups.is_empty() && self.acks.is_empty() && self.appends.is_empty()
    }

    /// Publishes of QoS 1 that are not acknowledged yet.
    pub(crate) fn publishes_qos1(&self) -> usize {
        self.publishes_qos1
    }

    /// Whether a PUBREC is owed already.
    pub(crate) fn owes_rec(&self, packet_id: u16) -> bool {
        self.recs.contains(&packet_id)
    }

    /// Counts an event of the current read.
    pub(crate) fn count_event(&mut self) {
        self.open.events += 1;
    }

    /// Owes an acknowledgement for a publish of the current read.
    pub(crate) fn owe(&mut self, owed: Option<Owed>) {
        let Some(owed) = owed else { return };
        self.publishes_qos1 += usize::from(owed.kind == AckKind::Ack);
        if owed.kind == AckKind::Rec {
            self.recs.insert(owed.packet_id);
        }
        self.open.acks += 1;
        self.acks.push_back(owed);
    }

    /// Remembers the outcome of submitting a batch of the current read.
    pub(crate) fn append(&mut self, submitted: Result<Pending, LogError>) {
        self.open.appends += 1;
        self.appends.push_back(match submitted {
            Ok(pending) => Append::Waiting(pending),
            Err(error) => Append::Done(Err(error)),
        });
    }

    /// Has all acknowledgements of the current read wait for something else as well. After its batches.
    pub(crate) fn append_for_all(&mut self, pending: Pending) {
        self.open.for_all = true;
        self.append(Ok(pending));
    }

    /// Whether the log refused an append of the current read at once.
    pub(crate) fn was_refused(&self, append: Option<u16>) -> bool {
        let first = self.appends.len() - self.open.appends;
        append
            .is_some_and(|at| matches!(self.appends.get(first + usize::from(at)), Some(Append::Done(Err(_)))))
    }

    /// Ends the current read, which submitted `bytes`, from `submitted` on.
    pub(crate) fn close_group(&mut self, bytes: usize, submitted: Option<Instant>) {
        let group = Group { bytes, submitted, ..std::mem::take(&mut self.open) };
        if group.appends + group.acks > 0 {
            self.events += group.events.max(group.acks);
            self.bytes += bytes;
            self.groups.push_back(Group { events: group.events.max(group.acks), ..group });
        }
    }

    /// Gives every acknowledgement whose time has come, in order, with what became of its event; and at the end of each
    /// group the errors of its appends. A group is given out whole; the first error of `release` is returned after it.
    /// Ready once nothing is owed.
    pub(crate) fn poll<E>(
        &mut self,
        cx: &mut Context<'_>,
        mut release: impl FnMut(Released<'_>) -> Result<(), E>,
    ) -> Poll<Result<(), E>> {
        while let Some(&group) = self.groups.front() {
            for append in self.appends.iter_mut().take(group.appends) {
                if let Append::Waiting(pending) = append {
                    match Pin::new(pending).poll(cx) {
                        Poll::Ready(result) => *append = Append::Done(result.map(|_| ())),
                        Poll::Pending => return Poll::Pending,
                    }
                }
            }
            self.groups.pop_front();
            self.events -= group.events;
            self.bytes -= group.bytes;
            let mut outcome = Ok(());
            let for_all = group.appends.checked_sub(1).filter(|_| group.for_all);
            for owed in self.acks.drain(..group.acks) {
                self.publishes_qos1 -= usize::from(owed.kind == AckKind::Ack);
                if owed.kind == AckKind::Rec {
                    self.recs.remove(&owed.packet_id);
                }
                let own = owed.append.map(usize::from);
                let error = own.into_iter().chain(for_all).find_map(|at| match self.appends.get(at) {
                    Some(Append::Done(Err(error))) => Some(error),
                    _ => None,
                });
                outcome = outcome.and(release(Released::Ack(owed, error)));
            }
            for append in self.appends.drain(..group.appends) {
                if let Append::Done(Err(error)) = &append {
                    outcome = outcome.and(release(Released::Failed(error)));
                }
            }
            if let Some(submitted) = group.submitted {
                outcome = outcome.and(release(Released::Settled(submitted.elapsed())));
            }
            if let Err(error) = outcome {
                return Poll::Ready(Err(error));
            }
        }
        Poll::Ready(Ok(()))
    }

    /// Identifiers of QoS 2 messages that are not known to be durable.
    pub(crate) fn unproven(&self) -> impl Iterator<Item = u16> + '_ {
        let waits = |owed: &&Owed| owed.kind == AckKind::Rec && owed.append.is_some();
        self.acks.iter().filter(waits).map(|owed| owed.packet_id)
    }
}

/// What comes out of the queue.
#[derive(Debug)]
pub(crate) enum Released<'a> {
    /// An acknowledgement, and the error of its event if there was one.
    Ack(Owed, Option<&'a LogError>),
    /// An append that failed, with events of any QoS in it.
    Failed(&'a LogError),
    /// The end of a group that went to the log: how long that took.
    Settled(Duration),
}

#[cfg(test)]
mod tests;
