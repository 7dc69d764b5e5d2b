//! Membership in a consumer group of Kafka: which partitions this process works on, and how far the work is.
//!
//! The consumer here is a member and nothing else: what it is given it pauses at once. Events are read by the log's own
//! reader, from offsets that history tells.
//!
//! - *Given*: a partition is published once its end is known, and once whoever worked on it here before has left it.
//! - *Taken* by the coordinator, because members came or went: it disappears from what is published, and the coordinator's
//!   other members wait until [`ConsumerGroup::left`] was said of it, or [`LEFT_MAX`] is over. Claims are made until then.
//! - *Lost*, because the coordinator has missed us: it disappears, and nobody waits. No claim is made from then on.
//!
//! A *claim* is the partition's committed offset: where the range starts. The offset's metadata is where it ends, in decimal
//! digits. So Kafka's own tools show as lag what is not known to be in history. The coordinator takes a commit only of a
//! member of the present generation; a member whose membership is over is stopped here, since the coordinator of a group
//! that everybody has left takes offsets from anybody.

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use catchment_types::{Offset, PartitionId};
use parking_lot::{Condvar, Mutex, MutexGuard, RwLock};
use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer, ConsumerContext, Rebalance};
use rdkafka::error::{KafkaError as Error, RDKafkaErrorCode as Code};
use rdkafka::{Offset as KafkaOffset, TopicPartitionList};
use tokio::sync::watch;

use super::client::{Context, of_member, settings};
use super::partition::Partition;
use super::topic::{ANSWER_MAX, watermarks};
use super::{KafkaError, KafkaTarget};
use crate::{Assigned, ConsumerGroup, GroupError};

/// How long a partition that is taken from us may still be worked on. The coordinator waits for twice that.
const LEFT_MAX: Duration = Duration::from_secs(30);
/// How long a claim is tried while members come and go.
const CLAIM_MAX: Duration = Duration::from_secs(10);
const CLAIM_AGAIN: Duration = Duration::from_millis(100);
/// How often the member looks whether it is to stop, or whether a partition can be published.
const STEP: Duration = Duration::from_millis(50);
/// How long the library may take to put partitions aside that nobody reads.
const SETTLE: Duration = Duration::from_millis(250);

/// One member of the group of those who bring a topic's events into a history that they share. Dropped without
/// [`ConsumerGroup::close`], it leaves without waiting for those who work on its partitions.
pub struct KafkaGroup {
    shared: Arc<Shared>,
    member: Arc<RwLock<Option<Arc<BaseConsumer<Member>>>>>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

struct Shared {
    /// How errors name the group.
    place: String,
    topic: String,
    partitions: Vec<Arc<Partition>>,
    context: Context,
    state: Mutex<State>,
    /// Something has left, or a claim has ended.
    changed: Condvar,
    assigned: watch::Sender<Assigned>,
    stop: AtomicBool,
    /// Nobody will say any more what was left.
    abandoned: AtomicBool,
    is_forbidden: AtomicBool,
}

#[derive(Default)]
struct State {
    /// The coordinator has told what is ours.
    has_joined: bool,
    /// What the coordinator has given us, published or not.
    given: BTreeSet<PartitionId>,
    /// Published once, taken or lost since, and not left yet.
    leaving: BTreeSet<PartitionId>,
    /// Those of them that the coordinator keeps for us until they are left.
    kept: BTreeSet<PartitionId>,
    /// Published, and left before they were taken: by who is about to leave the group.
    idle: BTreeSet<PartitionId>,
    /// Claims on their way.
    claims: Vec<PartitionId>,
}

impl KafkaGroup {
    /// Joins. `partitions` are those of the log.
    pub(super) fn join(
        target: &KafkaTarget,
        partitions: Vec<Arc<Partition>>,
        context: Context,
    ) -> Result<Arc<Self>, KafkaError> {
        let name = target.group();
        let shared = Arc::new(Shared {
            place: format!("the consumer group {name} of {target}"),
            topic: target.topic.clone(),
            partitions,
            context,
            state: Mutex::default(),
            changed: Condvar::new(),
            assigned: watch::Sender::new(Assigned::default()),
            stop: AtomicBool::new(false),
            abandoned: AtomicBool::new(false),
            is_forbidden: AtomicBool::new(false),
        });
        let refused = |error: Error| KafkaError::refused(target, "join the consumer group of", &error);
        let member = of_member(settings(target)?, &name)
            .create_with_context::<_, BaseConsumer<Member>>(Member(Arc::clone(&shared)))
            .map_err(refused)?;
        // Whether there is a coordinator, and whether it lets us in, is told now rather than later in the log.
        shared.committed(&member, 0).map_err(refused)?;
        member.subscribe(&[&target.topic]).map_err(refused)?;
        let member = Arc::new(RwLock::new(Some(Arc::new(member))));
        let thread = std::thread::Builder::new().name("kafka-group".to_owned()).spawn({
            let (shared, member) = (Arc::clone(&shared), Arc::clone(&member));
            move || shared.take_part(&member)
        });
        let thread = thread.map_err(|error| KafkaError::Refused {
            action: "start a thread for",
            target: target.to_string(),
            message: error.to_string(),
        })?;
        Ok(Arc::new(Self { shared, member, thread: Mutex::new(Some(thread)) }))
    }

    /// Does what needs the member and may wait for brokers.
    async fn with_member<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Shared, &BaseConsumer<Member>) -> Result<T, GroupError> + Send + 'static,
    ) -> Result<T, GroupError> {
        let (shared, member) = (Arc::clone(&self.shared), Arc::clone(&self.member));
        let done = tokio::task::spawn_blocking(move || match member.read().as_ref() {
            Some(member) => work(&shared, member),
            None => Err(shared.failed("it was left")),
        });
        // The library panics at metadata that is no text, which is not ours.
        done.await.unwrap_or_else(|_| Err(self.shared.failed("what it answers is not understood")))
    }
}

#[async_trait]
impl ConsumerGroup for KafkaGroup {
    fn assigned(&self) -> watch::Receiver<Assigned> {
        self.shared.assigned.subscribe()
    }

    fn has_joined(&self) -> bool {
        let state = self.shared.state.lock();
        state.has_joined && state.given.is_subset(&self.shared.published())
    }

    fn left(&self, partition: PartitionId) {
        let mut state = self.shared.state.lock();
        if self.shared.published().contains(&partition) {
            state.idle.insert(partition);
        }
        state.leaving.remove(&partition);
        state.kept.remove(&partition);
        self.shared.changed.notify_all();
    }

    async fn claimed(&self, partition: PartitionId) -> Result<Range<Offset>, GroupError> {
        self.with_member(move |shared, member| {
            let committed = shared.committed(member, partition).map_err(|error| shared.failed(error))?;
            let Some((start, metadata)) = committed else { return Ok(0..0) };
            // Whoever sets the offset by Kafka's own tools claims nothing.
            let end = if metadata.is_empty() { Some(start) } else { metadata.parse().ok() };
            match end.filter(|&end| start <= end) {
                Some(end) => Ok(start..end),
                None => Err(shared.failed(format!(
                    "the metadata {metadata:?} of the offset committed for partition {partition} is not the end of a claim"
                ))),
            }
        })
        .await
    }

    async fn claim(&self, partition: PartitionId, range: Range<Offset>) -> Result<(), GroupError> {
        self.with_member(move |shared, member| shared.claim(member, partition, &range)).await
    }

    async fn close(&self) {
        self.shared.stop.store(true, Ordering::Release);
        let Some(thread) = self.thread.lock().take() else { return };
        // A panic in there was told by its hook.
        let _ = tokio::task::spawn_blocking(move || thread.join()).await;
    }
}

impl Shared {
    /// The life of the member, on a thread of its own.
    fn take_part(&self, slot: &RwLock<Option<Arc<BaseConsumer<Member>>>>) {
        let Some(member) = slot.read().clone() else { return };
        // Records come only in the moment before a partition is paused, errors are told through the context.
        let serve = || drop(member.poll(STEP));
        while !self.stop.load(Ordering::Acquire) {
            serve();
            self.publish(&member);
        }
        member.unsubscribe();
        let deadline = Instant::now() + 2 * LEFT_MAX;
        while !self.state.lock().given.is_empty() && Instant::now() < deadline {
            serve();
        }
        // The library says goodbye to the coordinator once it has put its partitions aside. Closed before that it would not,
        // and the others would have to miss us.
        let settled = Instant::now() + SETTLE;
        while Instant::now() < settled {
            serve();
        }
        // Waits for claims. The last to let go of the member leaves the group with it.
        *slot.write() = None;
    }

    /// Publishes what was given and can be worked on.
    fn publish(&self, member: &BaseConsumer<Member>) {
        let published = self.published();
        let ready: Vec<PartitionId> = {
            let state = self.state.lock();
            let is_ready = |id: &PartitionId| !published.contains(id) && !state.leaving.contains(id);
            state.given.iter().copied().filter(is_ready).collect()
        };
        let mut all = BTreeSet::clone(&published);
        for id in ready {
            let Some(partition) = self.partitions.get(id as usize) else { continue };
            match watermarks(member, &self.topic, partition.id) {
                Ok(range) => {
                    partition.begins(range.start);
                    partition.reaches(range.end);
                    all.insert(id);
                }
                // Tried again with the next step.
                Err(error) => self.context.health.bad(&error.to_string()),
            }
        }
        // Only this thread takes partitions away, in `serve`.
        if all.len() > published.len() {
            tracing::info!(partitions = ?all, "works on these partitions");
            self.assigned.send_replace(Arc::new(all));
        }
    }

    fn published(&self) -> Assigned {
        Arc::clone(&self.assigned.borrow())
    }

    /// Follows that partitions are not ours any more.
    fn give_up(&self, taken: &BTreeSet<PartitionId>, is_lost: bool) {
        let mut state = self.state.lock();
        let published = self.published();
        let (leaving, staying): (BTreeSet<_>, BTreeSet<_>) =
            published.iter().partition(|id| taken.contains(*id));
        state.given.retain(|id| !taken.contains(id));
        state.has_joined &= !is_lost;
        if !leaving.is_empty() {
            tracing::info!(partitions = ?leaving, is_lost, "leaves these partitions");
            self.assigned.send_replace(Arc::new(staying));
        }
        let worked_on: BTreeSet<_> = leaving.difference(&state.idle).copied().collect();
        state.idle.retain(|id| !taken.contains(id));
        state.leaving.extend(&worked_on);
        if !is_lost {
            state.kept.extend(&worked_on);
            let deadline = Instant::now() + LEFT_MAX;
            while !state.kept.is_empty() && !self.abandoned.load(Ordering::Acquire) {
                if self.changed.wait_until(&mut state, deadline).timed_out() {
                    tracing::warn!(partitions = ?state.kept, "others take over what is still worked on here");
                    break;
                }
            }
        }
        state.kept.clear();
        // A claim on its way was made as a member of this generation, and must not be sent as one of the next.
        while state.claims.iter().any(|id| taken.contains(id)) {
            self.changed.wait(&mut state);
        }
    }

    fn claim(
        &self,
        member: &BaseConsumer<Member>,
        partition: PartitionId,
        range: &Range<Offset>,
    ) -> Result<(), GroupError> {
        let out_of_range = || self.failed(format!("{range:?} is no range of offsets"));
        let start = i64::try_from(range.start).map_err(|_| out_of_range())?;
        let id = i32::try_from(partition).map_err(|_| GroupError::Lost(partition))?;
        let mut offsets = TopicPartitionList::with_capacity(1);
        let mut offset = offsets.add_partition(&self.topic, id);
        offset.set_offset(KafkaOffset::Offset(start)).map_err(|_| out_of_range())?;
        offset.set_metadata(range.end.to_string());

        let deadline = Instant::now() + CLAIM_MAX;
        loop {
            let mut state = self.state.lock();
            if !(self.published().contains(&partition) || state.kept.contains(&partition)) {
                return Err(GroupError::Lost(partition));
            }
            state.claims.push(partition);
            // The loss may be known to the library already, and not to us.
            let committed = MutexGuard::unlocked(&mut state, || {
                if member.assignment_lost() {
                    return Err(Error::ConsumerCommit(Code::AssignmentLost));
                }
                member.commit(&offsets, CommitMode::Sync)
            });
            if let Some(at) = state.claims.iter().position(|&id| id == partition) {
                state.claims.swap_remove(at);
            }
            self.changed.notify_all();
            drop(state);
            let Err(error) = committed else { return Ok(()) };
            match error.rdkafka_error_code() {
                Some(Code::AssignmentLost | Code::UnknownMemberId | Code::FencedInstanceId) => {
                    return Err(GroupError::Lost(partition));
                }
                // Members come or go; whether the partition stays ours shows soon.
                Some(Code::RebalanceInProgress | Code::IllegalGeneration) if Instant::now() < deadline => {
                    std::thread::sleep(CLAIM_AGAIN);
                }
                _ => return Err(self.failed(error)),
            }
        }
    }

    /// The offset committed for a partition, and its metadata.
    fn committed(
        &self,
        member: &BaseConsumer<Member>,
        partition: PartitionId,
    ) -> Result<Option<(Offset, String)>, Error> {
        let Ok(id) = i32::try_from(partition) else { return Ok(None) };
        let mut asked = TopicPartitionList::with_capacity(1);
        asked.add_partition(&self.topic, id);
        let answer = member.committed_offsets(asked, ANSWER_MAX)?;
        let Some(found) = answer.find_partition(&self.topic, id) else { return Ok(None) };
        found.error()?;
        let KafkaOffset::Offset(offset) = found.offset() else { return Ok(None) };
        Ok(Some((Offset::try_from(offset).unwrap_or(0), found.metadata().to_owned())))
    }

    fn failed(&self, message: impl ToString) -> GroupError {
        GroupError::Failed { place: self.place.clone(), message: message.to_string() }
    }
}

/// Hears what becomes of the membership.
struct Member(Arc<Shared>);

impl ClientContext for Member {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        self.0.context.log(level, facility, message);
    }

    fn error(&self, error: Error, reason: &str) {
        match error.rdkafka_error_code() {
            Some(Code::GroupAuthorizationFailed) => {
                if !self.0.is_forbidden.swap(true, Ordering::Relaxed) {
                    tracing::error!(reason, "{} may not be joined: allow us to read by it", self.0.place);
                }
            }
            // It has no connections but that to its coordinator. Whether brokers answer is known from the log's own client.
            Some(Code::AllBrokersDown) => {}
            Some(Code::PollExceeded) => {
                tracing::warn!(reason, "the membership is over, and is begun anew");
            }
            _ => self.0.context.error(error, reason),
        }
    }
}

impl ConsumerContext for Member {
    fn pre_rebalance(&self, member: &BaseConsumer<Self>, change: &Rebalance<'_>) {
        match change {
            Rebalance::Assign(partitions) => {
                for mut partition in partitions.elements() {
                    // It is not read by us; this spares the question what offset is committed. A logical offset is taken.
                    let _ = partition.set_offset(KafkaOffset::End);
                }
            }
            Rebalance::Revoke(partitions) => self.0.give_up(&ids(partitions), member.assignment_lost()),
            Rebalance::Error(error) => self.0.context.error(error.clone(), "of the consumer group"),
        }
    }

    fn post_rebalance(&self, member: &BaseConsumer<Self>, change: &Rebalance<'_>) {
        if let Rebalance::Assign(partitions) = change {
            if let Err(error) = member.pause(partitions) {
                tracing::warn!(%error, "partitions are fetched in vain");
            }
            let mut state = self.0.state.lock();
            state.given.extend(ids(partitions));
            state.has_joined = true;
        }
    }
}

fn ids(partitions: &TopicPartitionList) -> BTreeSet<PartitionId> {
    partitions
        .elements()
        .iter()
        .filter_map(|element| PartitionId::try_from(element.partition()).ok())
        .collect()
}

impl Drop for KafkaGroup {
    fn drop(&mut self) {
        self.shared.abandoned.store(true, Ordering::Release);
        self.shared.stop.store(true, Ordering::Release);
        // The thread may be about to wait, and must not miss it.
        let _state = self.shared.state.lock();
        self.shared.changed.notify_all();
    }
}

impl std::fmt::Debug for KafkaGroup {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("KafkaGroup").field("place", &self.shared.place).finish_non_exhaustive()
    }
}
