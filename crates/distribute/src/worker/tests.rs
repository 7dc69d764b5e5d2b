use std::collections::{BTreeSet, VecDeque};
use std::ops::Range;
use std::path::PathBuf;

use catchment_decode::{DecoderRule, Decoders, Format, RuleSet};
use catchment_eventlog::{Assigned, ConsumerGroup, EventLog, GroupError, LogStats, Pending};
use catchment_store::history::{FlushReport, History, HistoryHealth, StoreError};
use catchment_store::live::{LiveConfig, LiveFilter, LiveHub, LiveMessage};
use catchment_store::tables::TableId;
use catchment_types::{Event, EventBatch};
use datafusion::catalog::TableProvider;
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::*;
use crate::{DistributeConfig, DistributeMetrics, Distributor, Parts, StartError};

/// A log in memory that can lose events and fail.
#[derive(Default)]
struct MemoryLog {
    partitions: Vec<Partition>,
    appended: Notify,
    failures: Mutex<VecDeque<LogError>>,
    closed: Mutex<bool>,
}

#[derive(Default)]
struct Partition {
    blocks: Mutex<Vec<EventBlock>>,
    lost: Mutex<Vec<Range<Offset>>>,
}

impl MemoryLog {
    fn new(partitions: usize) -> Arc<Self> {
        Arc::new(Self {
            partitions: (0..partitions).map(|_| Partition::default()).collect(),
            ..Self::default()
        })
    }

    /// Appends one block of events of a device.
    fn append(&self, partition: usize, device_id: &str, payloads: &[&str]) {
        let mut builder = EventBatch::builder();
        for payload in payloads {
            builder
                .push(&Event {
                    realm: "main",
                    device_id,
                    event_type: "state",
                    topic: "devices/d/state",
                    received_at: Timestamp::now(),
                    content_type: "",
                    tags: "",
                    mark: 0,
                    payload: payload.as_bytes(),
                })
                .unwrap();
        }
        let first_offset = self.range(partition as u32).end;
        self.partitions[partition].blocks.lock().push(EventBlock { first_offset, events: builder.take() });
        self.appended.notify_waiters();
    }

    /// Drops a block.
    fn lose(&self, partition: usize, block: usize) {
        let block = self.partitions[partition].blocks.lock().remove(block);
        self.partitions[partition].lost.lock().push(block.first_offset..block.end_offset());
    }

    fn try_read(&self, partition: PartitionId, from: Offset) -> Option<ReadBatch> {
        let partition = &self.partitions[partition as usize];
        // One block a read: the worker has to go on by itself.
        let block = partition.blocks.lock().iter().find(|block| block.end_offset() > from).cloned()?;
        let skipped: Vec<_> = partition
            .lost
            .lock()
            .iter()
            .filter(|lost| lost.end > from && lost.end <= block.first_offset)
            .cloned()
            .collect();
        Some(ReadBatch { next: block.end_offset(), blocks: vec![block], skipped })
    }
}

#[async_trait::async_trait]
impl EventLog for MemoryLog {
    fn partitions(&self) -> u32 {
        self.partitions.len() as u32
    }

    async fn submit(&self, _: PartitionId, _: EventBatch) -> Result<Pending, LogError> {
        Err(LogError::Closed)
    }

    async fn read(&self, partition: PartitionId, from: Offset, _: usize) -> Result<ReadBatch, LogError> {
        if let Some(error) = self.failures.lock().pop_front() {
            return Err(error);
        }
        loop {
            let appended = self.appended.notified();
            tokio::pin!(appended);
            appended.as_mut().enable();
            if let Some(batch) = self.try_read(partition, from) {
                return Ok(batch);
            }
            if *self.closed.lock() {
                return Err(LogError::Closed);
            }
            appended.await;
        }
    }

    fn range(&self, partition: PartitionId) -> Range<Offset> {
        let partition = &self.partitions[partition as usize];
        let end = partition.blocks.lock().last().map_or(0, EventBlock::end_offset);
        0..partition.lost.lock().iter().map(|lost| lost.end).fold(end, Offset::max)
    }

    fn release(&self, _: PartitionId, _: Offset) {}

    fn stats(&self) -> LogStats {
        LogStats::default()
    }

    async fn close(&self) {
        *self.closed.lock() = true;
        self.appended.notify_waiters();
    }
}

/// A group whose partitions the test deals out.
#[derive(Debug)]
struct Dealer {
    assigned: watch::Sender<Assigned>,
    left: Mutex<Vec<PartitionId>>,
}

impl Dealer {
    fn deal(&self, partitions: impl IntoIterator<Item = PartitionId>) {
        self.assigned.send_replace(Arc::new(BTreeSet::from_iter(partitions)));
    }
}

#[async_trait::async_trait]
impl ConsumerGroup for Dealer {
    fn assigned(&self) -> watch::Receiver<Assigned> {
        self.assigned.subscribe()
    }

    fn has_joined(&self) -> bool {
        !self.assigned.borrow().is_empty()
    }

    fn left(&self, partition: PartitionId) {
        self.left.lock().push(partition);
    }

    async fn claimed(&self, _: PartitionId) -> Result<Range<Offset>, GroupError> {
        Ok(0..0)
    }

    async fn claim(&self, partition: PartitionId, _: Range<Offset>) -> Result<(), GroupError> {
        Err(GroupError::Lost(partition))
    }

    async fn close(&self) {}
}

/// A history that says from where to read, and takes nothing.
struct StartsAt {
    starts: Mutex<Vec<Start>>,
    refusals: Mutex<u32>,
    panics: Mutex<bool>,
    committed: watch::Sender<Vec<Offset>>,
    released: Mutex<Vec<PartitionId>>,
}

#[async_trait::async_trait]
impl History for StartsAt {
    async fn take_over(&self, partition: PartitionId) -> Result<Start, StoreError> {
        assert!(!*self.panics.lock(), "as the test wants");
        let mut refusals = self.refusals.lock();
        if *refusals > 0 {
            *refusals -= 1;
            return Err(StoreError::Interrupted { what: "start", message: "not yet".to_owned() });
        }
        Ok(self.starts.lock()[partition as usize])
    }

    async fn release(&self, partition: PartitionId) {
        self.released.lock().push(partition);
    }

    fn subscribe_committed(&self) -> watch::Receiver<Vec<Offset>> {
        self.committed.subscribe()
    }

    async fn flush(&self) -> Result<FlushReport, StoreError> {
        Ok(FlushReport::default())
    }

    async fn run(self: Arc<Self>, _: CancellationToken) {}

    fn buffered_bytes(&self) -> usize {
        0
    }

    fn health(&self) -> HistoryHealth {
        HistoryHealth::Healthy
    }

    fn table_provider(&self, _: TableId) -> Arc<dyn TableProvider> {
        unreachable!("nobody asks")
    }

    fn aggregated_metrics(&self) -> datafusion::error::Result<Arc<dyn TableProvider>> {
        unreachable!("nobody asks")
    }

    fn register_metrics(&self, _: &mut prometheus_client::registry::Registry) {}
}

/// Everything that a test looks at.
struct Setup {
    log: Arc<MemoryLog>,
    group: Arc<Dealer>,
    history: Arc<StartsAt>,
    shards: Vec<Arc<Shard>>,
    decoders: Arc<Decoders>,
    live: Arc<LiveHub>,
    metrics: DistributeMetrics,
}

impl Setup {
    fn new(partitions: usize) -> Self {
        let all: Assigned = Arc::new((0..partitions as u32).collect());
        Self {
            log: MemoryLog::new(partitions),
            group: Arc::new(Dealer { assigned: watch::Sender::new(all), left: Mutex::default() }),
            history: Arc::new(StartsAt {
                starts: Mutex::new(vec![Start::default(); partitions]),
                refusals: Mutex::default(),
                panics: Mutex::default(),
                committed: watch::Sender::new(vec![0; partitions]),
                released: Mutex::default(),
            }),
            shards: (0..partitions as u32).map(Shard::new).collect(),
            decoders: Arc::default(),
            live: LiveHub::new(LiveConfig::default()),
            metrics: DistributeMetrics::default(),
        }
    }

    fn try_start(&self, start: &[Offset], config: DistributeConfig) -> Result<Distributor, StartError> {
        *self.history.starts.lock() = start.iter().map(|&offset| Start { offset, repeat_to: 0 }).collect();
        self.history.committed.send_replace(start.to_vec());
        self.try_start_there(config)
    }

    /// From where history is already.
    fn try_start_there(&self, config: DistributeConfig) -> Result<Distributor, StartError> {
        let parts = Parts {
            log: Arc::clone(&self.log) as Arc<dyn EventLog>,
            group: Arc::clone(&self.group) as Arc<dyn ConsumerGroup>,
            history: Arc::clone(&self.history) as Arc<dyn History>,
            follower: None,
            publish: None,
            shards: self.shards.clone(),
            decoders: Arc::clone(&self.decoders),
            live: Arc::clone(&self.live),
            metrics: self.metrics.clone(),
        };
        Distributor::start(parts, config)
    }

    /// With one partition, that history has left off in the middle of a flush.
    fn start_at(&self, start: Start) -> Distributor {
        *self.history.starts.lock() = vec![start];
        self.try_start_there(DistributeConfig::default()).unwrap()
    }

    fn start(&self) -> Distributor {
        self.try_start(&vec![0; self.shards.len()], DistributeConfig::default()).unwrap()
    }

    fn rows(&self, shard: usize, table: TableId) -> usize {
        self.shards[shard].rows(table).iter().map(|batch| batch.num_rows()).sum()
    }
}

async fn until(distributor: &Distributor, expected: &[Offset]) {
    until_each(distributor, &some(expected)).await;
}

async fn until_each(distributor: &Distributor, expected: &[Option<Offset>]) {
    let mut processed = distributor.processed();
    let reached = processed.wait_for(|offsets| offsets == expected);
    tokio::time::timeout(Duration::from_secs(10), reached).await.expect("in time").unwrap();
}

fn some(offsets: &[Offset]) -> Vec<Option<Offset>> {
    offsets.iter().copied().map(Some).collect()
}

#[tokio::test]
async fn events_reach_the_shards_of_their_partitions() {
    let setup = Setup::new(2);
    setup.log.append(0, "a", &[r#"{"v":1}"#, "{"]);
    let distributor = setup.start();
    until(&distributor, &[2, 0]).await;
    setup.log.append(1, "b", &[r#"{"v":2,"w":3}"#]);
    until(&distributor, &[2, 1]).await;
    assert_eq!(setup.shards[0].snapshot("a").unwrap().metrics.len(), 1);
    assert_eq!(setup.shards[1].snapshot("b").unwrap().metrics.len(), 2);
    let metrics = &setup.metrics;
    assert_eq!((metrics.events.get(), metrics.readings.get(), metrics.rejects.get()), (3, 3, 1));
    assert_eq!(distributor.shutdown().await, some(&[2, 1]));
}

#[tokio::test]
async fn subscribers_are_told() {
    let setup = Setup::new(1);
    let mut subscription = setup.live.subscribe(LiveFilter::default()).unwrap();
    let distributor = setup.start();
    setup.log.append(0, "a", &[r#"{"v":1}"#]);
    let Some(LiveMessage::Readings(readings)) = subscription.recv().await else { panic!("no readings") };
    assert_eq!((&*readings[0].device_id, &*readings[0].metric), ("a", "v"));
    distributor.shutdown().await;
}

#[tokio::test]
async fn changed_rules_hold_from_the_next_block_on() {
    let setup = Setup::new(1);
    let distributor = setup.start();
    setup.log.append(0, "a", &[r#"{"v":1}"#]);
    until(&distributor, &[1]).await;
    let mut rules = RuleSet::default();
    rules.insert("state", DecoderRule { format: Format::None, ..DecoderRule::default() }).unwrap();
    setup.decoders.replace(rules);
    setup.log.append(0, "a", &[r#"{"v":1}"#]);
    until(&distributor, &[2]).await;
    assert_eq!((setup.rows(0, TableId::RawEvents), setup.rows(0, TableId::RawMetrics)), (2, 1));
    distributor.shutdown().await;
}

#[tokio::test]
async fn a_restart_goes_on_where_each_table_is() {
    let setup = Setup::new(1);
    setup.log.append(0, "a", &[r#"{"v":1}"#, r#"{"v":2}"#, r#"{"v":3}"#]);
    setup.shards[0].set_start_offsets([2, 1, 3, 3]);
    let distributor = setup.try_start(&[1], DistributeConfig::default()).unwrap();
    until(&distributor, &[3]).await;
    assert_eq!((setup.rows(0, TableId::RawEvents), setup.rows(0, TableId::RawMetrics)), (1, 2));
    assert_eq!(setup.rows(0, TableId::MetricRollups), 0);
    distributor.shutdown().await;
}

#[tokio::test]
async fn workers_wait_for_room() {
    let setup = Setup::new(2);
    for _ in 0..2 {
        setup.log.append(0, "a", &[r#"{"v":1}"#]);
    }
    // Rows of the other partition fill the budget from the start.
    setup.log.append(1, "b", &[r#"{"v":1}"#]);
    let block = setup.log.try_read(1, 0).unwrap().blocks.remove(0);
    let mut decoders = WorkerDecoders::new(Arc::clone(&setup.decoders));
    setup.shards[1].ingest(0, &block.events, .., &mut decoders, None);
    let config = DistributeConfig { budget_bytes: 1, ..DistributeConfig::default() };
    let distributor = setup.try_start(&[0, 1], config).unwrap();
    tokio::time::sleep(Duration::from_millis(120)).await;
    assert_eq!(*distributor.processed().borrow(), some(&[0, 1]));
    let label = PartitionLabel { partition: 0 };
    assert_eq!(setup.metrics.lag_events.get_or_create(&label).get(), 2);
    // Room for one block, which fills the budget again.
    drop(setup.shards[1].take_rows());
    setup.shards[1].all_rows_written();
    until(&distributor, &[1, 1]).await;
    tokio::time::sleep(Duration::from_millis(120)).await;
    assert_eq!(distributor.awaited()(), ["partition 0: 1 events of the log are to be read again"]);
    assert_eq!(*distributor.processed().borrow(), some(&[1, 1]));
    drop(setup.shards[0].take_rows());
    setup.shards[0].all_rows_written();
    until(&distributor, &[2, 1]).await;
    setup.log.append(0, "a", &[r#"{"v":1}"#]);
    assert_eq!(distributor.awaited()(), [""; 0], "what comes later is not waited for");
    assert!(setup.metrics.wait_seconds.get() > 0.1);
    distributor.shutdown().await;
}

#[tokio::test]
async fn lost_events_are_passed_and_counted() {
    let setup = Setup::new(1);
    for _ in 0..3 {
        setup.log.append(0, "a", &[r#"{"v":1}"#, r#"{"v":2}"#]);
    }
    setup.log.lose(0, 1);
    let distributor = setup.start();
    until(&distributor, &[6]).await;
    assert_eq!(setup.rows(0, TableId::RawEvents), 4);
    assert_eq!((setup.metrics.skipped.get(), setup.shards[0].take_rows().next_offset), (2, 6));
    distributor.shutdown().await;
}

#[tokio::test]
async fn a_failing_read_is_tried_again() {
    let setup = Setup::new(1);
    let failed = LogError::Failed { path: PathBuf::from("/log"), message: "gone".into() };
    setup.log.failures.lock().extend([failed.clone(), failed]);
    setup.log.append(0, "a", &[r#"{"v":1}"#]);
    let distributor = setup.start();
    until(&distributor, &[1]).await;
    assert_eq!(setup.metrics.read_errors.get(), 2);
    distributor.shutdown().await;
}

#[tokio::test]
async fn a_shutdown_drains_in_bounded_time() {
    let setup = Setup::new(1);
    let distributor = setup.start();
    tokio::task::yield_now().await;
    for _ in 0..100 {
        setup.log.append(0, "a", &[r#"{"v":1}"#]);
    }
    assert_eq!(distributor.shutdown().await, some(&[100]));

    // A log that was closed first is read to its end too.
    setup.log.append(0, "a", &[r#"{"v":1}"#]);
    setup.log.close().await;
    let distributor = setup.try_start(&[100], DistributeConfig::default()).unwrap();
    assert_eq!(distributor.shutdown().await, some(&[101]));

    // Without room it ends all the same, and tells how far it came.
    let config = DistributeConfig {
        budget_bytes: 0,
        stop_max: Duration::from_millis(50),
        ..DistributeConfig::default()
    };
    setup.log.append(0, "a", &[r#"{"v":1}"#]);
    let distributor = setup.try_start(&[101], config).unwrap();
    assert_eq!(distributor.shutdown().await, some(&[101]));
}

#[tokio::test]
async fn partitions_come_and_go() {
    let setup = Setup::new(2);
    setup.group.deal([0]);
    setup.log.append(0, "a", &[r#"{"v":1}"#]);
    setup.log.append(1, "b", &[r#"{"v":1}"#]);
    let distributor = setup.start();
    until_each(&distributor, &[Some(1), None]).await;
    setup.group.deal([0, 1]);
    until(&distributor, &[1, 1]).await;
    setup.group.deal([1]);
    until_each(&distributor, &[None, Some(1)]).await;
    assert_eq!((&*setup.history.released.lock(), &*setup.group.left.lock()), (&vec![0], &vec![0]));
    // What comes now is another's; when the partition comes back, it goes on where history is then.
    setup.log.append(0, "a", &[r#"{"v":2}"#]);
    setup.log.append(0, "a", &[r#"{"v":3}"#]);
    setup.history.starts.lock()[0] = Start { offset: 2, repeat_to: 0 };
    setup.group.deal([0, 1]);
    until(&distributor, &[3, 1]).await;
    assert_eq!(setup.metrics.events.get(), 3);
    distributor.shutdown().await;
}

#[tokio::test]
async fn what_others_go_on_with_is_left_to_them_at_once() {
    let setup = Setup::new(2);
    let config = DistributeConfig { leaves_to_others: true, ..DistributeConfig::default() };
    let distributor = setup.try_start(&[0, 0], config).unwrap();
    setup.log.append(0, "a", &[r#"{"v":1}"#]);
    until(&distributor, &[1, 0]).await;
    // A stop closes the log first.
    setup.log.close().await;
    let began = std::time::Instant::now();
    assert_eq!(distributor.shutdown().await, [None, None]);
    assert!(began.elapsed() < Duration::from_secs(5));
    let sorted = |list: &Mutex<Vec<PartitionId>>| {
        let mut list = list.lock().clone();
        list.sort_unstable();
        list
    };
    assert_eq!((sorted(&setup.history.released), sorted(&setup.group.left)), (vec![0, 1], vec![0, 1]));
}

#[tokio::test]
async fn a_worker_that_panics_is_told_and_left_alone() {
    let setup = Setup::new(1);
    *setup.history.panics.lock() = true;
    let distributor = setup.start();
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert!(distributor.trouble()()[0].contains("restart this process"));
    assert_eq!(*distributor.processed().borrow(), [None]);
    // It can still be taken away.
    setup.group.deal([]);
    tokio::time::timeout(Duration::from_secs(5), async {
        while setup.group.left.lock().is_empty() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await
    .expect("in time");
    distributor.shutdown().await;
}

#[tokio::test]
async fn what_is_repeated_does_not_wait_for_room() {
    let setup = Setup::new(1);
    for _ in 0..3 {
        setup.log.append(0, "a", &[r#"{"v":1}"#]);
    }
    *setup.history.starts.lock() = vec![Start { offset: 0, repeat_to: 2 }];
    let config = DistributeConfig { budget_bytes: 1, ..DistributeConfig::default() };
    let distributor = setup.try_start_there(config).unwrap();
    until(&distributor, &[2]).await;
    drop(setup.shards[0].take_rows());
    setup.shards[0].all_rows_written();
    setup.history.committed.send_replace(vec![2]);
    until(&distributor, &[3]).await;
}

#[tokio::test]
async fn what_is_repeated_goes_to_history_alone() {
    let setup = Setup::new(1);
    setup.log.append(0, "a", &[r#"{"v":1}"#, r#"{"v":2}"#, r#"{"v":3}"#]);
    setup.log.append(0, "a", &[r#"{"v":4}"#]);
    let distributor = setup.start_at(Start { offset: 0, repeat_to: 2 });
    until(&distributor, &[2]).await;
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert_eq!(*distributor.processed().borrow(), some(&[2]));
    assert_eq!(setup.shards[0].take_rows().next_offset, 2);
    setup.history.committed.send_replace(vec![2]);
    until(&distributor, &[4]).await;
    assert_eq!(setup.rows(0, TableId::RawEvents), 2);
    distributor.shutdown().await;

    // The log has lost what was to be repeated: nothing of it can be waited for.
    let setup = Setup::new(1);
    setup.log.append(0, "a", &[r#"{"v":1}"#, r#"{"v":2}"#]);
    setup.log.append(0, "a", &[r#"{"v":3}"#]);
    setup.log.lose(0, 0);
    let distributor = setup.start_at(Start { offset: 0, repeat_to: 1 });
    until(&distributor, &[1]).await;
    assert_eq!(setup.shards[0].take_rows().next_offset, 1);
    setup.history.committed.send_replace(vec![1]);
    until(&distributor, &[3]).await;
    distributor.shutdown().await;
}

#[tokio::test]
async fn a_history_that_refuses_is_asked_again() {
    let setup = Setup::new(1);
    setup.log.append(0, "a", &[r#"{"v":1}"#]);
    *setup.history.refusals.lock() = 1;
    let distributor = setup.start();
    let (trouble, awaited) = (distributor.trouble(), distributor.awaited());
    assert_eq!((trouble(), awaited()), (vec![], vec!["partition 0 is being taken over".to_owned()]));
    tokio::time::sleep(Duration::from_millis(20)).await;
    assert_eq!(awaited(), [""; 0], "there is more to tell of it");
    assert_eq!(trouble(), ["partition 0 cannot be taken over: history's start was interrupted: not yet"]);
    until(&distributor, &[1]).await;
    assert_eq!((trouble(), awaited()), (vec![], vec![]));
    setup.group.deal([]);
    assert_eq!(awaited(), ["the consumer group has not told which partitions are this process's"]);
    distributor.shutdown().await;
}

#[tokio::test]
async fn what_does_not_fit_together_does_not_start() {
    let setup = Setup { shards: vec![Shard::new(0)], ..Setup::new(2) };
    let wrong = setup.try_start(&[0, 0], DistributeConfig::default()).unwrap_err();
    assert_eq!(wrong, StartError::Partitions { partitions: 2, shards: 1 });
    let setup = Setup::new(2);
    setup.log.append(1, "a", &["1"]);
    let behind = setup.try_start(&[0, 2], DistributeConfig::default()).unwrap_err();
    assert_eq!(behind, StartError::LogBehind { partition: 1, start: 2, end: 1 });
    // Where history knows only once it takes a partition over, that partition waits.
    let setup = Setup::new(1);
    let distributor = setup.start_at(Start { offset: 0, repeat_to: 2 });
    tokio::time::sleep(Duration::from_millis(20)).await;
    let trouble = distributor.trouble()();
    assert!(
        trouble[0].contains("ends at offset 0, but history has committed everything below 2"),
        "{trouble:?}"
    );
    distributor.shutdown().await;
}

#[test]
fn figures_have_their_names() {
    let mut registry = prometheus_client::registry::Registry::default();
    let metrics = DistributeMetrics::default();
    metrics.register(&mut registry);
    metrics.events.inc();
    metrics.lag_events.get_or_create(&PartitionLabel { partition: 3 }).set(7);
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
    assert!(text.contains("catchment_distribute_events_total 1"), "{text}");
    assert!(text.contains("catchment_distribute_lag_events{partition=\"3\"} 7"), "{text}");
}
