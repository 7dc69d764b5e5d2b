//! The engine on Kafka, against a real one: `CATCHMENT_TEST_KAFKA` is its `host:port`; `cargo xtask test` starts one.
#![allow(
    clippy::unwrap_used,
    clippy::single_range_in_vec_init,
    reason = "helpers of tests; gaps are lists of ranges"
)]
#![cfg(feature = "kafka")]

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Write};
use std::ops::Range;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use catchment_eventlog::conformance::groups::{self, GroupSite};
use catchment_eventlog::conformance::{self, Site, append, batch, read_all};
use catchment_eventlog::embedded::{EmbeddedLog, LogConfig};
use catchment_eventlog::kafka::source::{KafkaSource, RecordMarks, SourceTarget};
use catchment_eventlog::kafka::{KafkaConfig, KafkaGroup, KafkaLog, KafkaReadings, KafkaTarget, probe};
use catchment_eventlog::readings::{PublishReadings, ReadingsBatch};
use catchment_eventlog::{Assigned, ConsumerGroup, EventLog, GroupError, LogError};
use catchment_types::{Event, EventBatch, Reading, RejectReason, Timestamp, Value};
use rdkafka::admin::{AdminClient, AdminOptions};
use rdkafka::client::DefaultClientContext;
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::message::{Header, Headers, OwnedHeaders};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use rdkafka::{Message, Offset, TopicPartitionList};

const SOON: Duration = Duration::from_secs(20);

/// The address of the real Kafka. Without one a test fails in CI, and says elsewhere that it was not run.
fn kafka(test: &str) -> Option<String> {
    let address = std::env::var("CATCHMENT_TEST_KAFKA").ok().filter(|address| !address.is_empty());
    if address.is_none() {
        let is_ci = std::env::var_os("CI").is_some_and(|value| !value.is_empty());
        assert!(
            !is_ci,
            "CATCHMENT_TEST_KAFKA is not set: start Kafka with `cargo xtask services up --only kafka`"
        );
        // Around libtest, which keeps what a test that passes has printed.
        let line = format!("NOT RUN  eventlog kafka {test}: CATCHMENT_TEST_KAFKA is not set\n");
        let _ = std::io::stdout().write_all(line.as_bytes());
    }
    address
}

fn settings(address: &str) -> ClientConfig {
    let mut settings = ClientConfig::new();
    settings.set("bootstrap.servers", address).set("allow.auto.create.topics", "false");
    settings
}

/// A topic that nobody else uses, deleted at the end.
struct Topic {
    address: String,
    name: String,
}

impl Topic {
    fn new(address: &str) -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let moment = Timestamp::now().as_micros();
        Self { address: address.to_owned(), name: format!("test-{}-{moment}-{number}", std::process::id()) }
    }

    fn target(&self) -> KafkaTarget {
        let url = format!("kafka://{}/{}", self.address, self.name);
        KafkaTarget::parse(&url, &KafkaConfig::default()).unwrap()
    }

    async fn open_with(&self, config: LogConfig) -> Arc<KafkaLog> {
        KafkaLog::open(self.target(), config).await.unwrap()
    }

    async fn open_log(&self) -> Arc<KafkaLog> {
        self.open_with(LogConfig { partitions: 3, ..LogConfig::default() }).await
    }

    fn admin(&self) -> AdminClient<DefaultClientContext> {
        settings(&self.address).create().unwrap()
    }
}

#[async_trait]
impl Site for Topic {
    async fn open(&self) -> Arc<dyn EventLog> {
        self.open_log().await
    }
}

#[async_trait]
impl GroupSite for Topic {
    async fn join(&self) -> Arc<dyn ConsumerGroup> {
        Arc::new(Joined::new(self).await)
    }

    fn partitions(&self) -> u32 {
        3
    }
}

/// A member with the log that it belongs to.
#[derive(Debug)]
struct Joined {
    log: Arc<KafkaLog>,
    group: Arc<KafkaGroup>,
}

impl Joined {
    async fn new(topic: &Topic) -> Self {
        let log = topic.open_log().await;
        let group = log.join(topic.target()).await.unwrap();
        Self { log, group }
    }

    fn assigned(&self) -> BTreeSet<u32> {
        (**self.group.assigned().borrow()).clone()
    }

    /// Says of each partition that disappears that it was left, after a while.
    fn leave_after(&self, pause: Duration) -> tokio::task::JoinHandle<()> {
        let group = Arc::clone(&self.group);
        tokio::spawn(async move {
            let mut assigned = group.assigned();
            let mut had = assigned.borrow_and_update().clone();
            while assigned.changed().await.is_ok() {
                let has = assigned.borrow_and_update().clone();
                tokio::time::sleep(pause).await;
                had.difference(&has).for_each(|&partition| group.left(partition));
                had = has;
            }
        })
    }
}

#[async_trait]
impl ConsumerGroup for Joined {
    fn assigned(&self) -> tokio::sync::watch::Receiver<Assigned> {
        self.group.assigned()
    }

    fn has_joined(&self) -> bool {
        self.group.has_joined()
    }

    fn left(&self, partition: u32) {
        self.group.left(partition);
    }

    async fn claimed(&self, partition: u32) -> Result<Range<u64>, GroupError> {
        self.group.claimed(partition).await
    }

    async fn claim(&self, partition: u32, range: Range<u64>) -> Result<(), GroupError> {
        self.group.claim(partition, range).await
    }

    async fn close(&self) {
        self.group.close().await;
    }
}

async fn until(what: &str, is_so: impl Fn() -> bool) {
    let begun = Instant::now();
    while !is_so() {
        assert!(begun.elapsed() < 2 * SOON, "{what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

impl Drop for Topic {
    fn drop(&mut self) {
        let (admin, name) = (self.admin(), self.name.clone());
        // In a thread of its own: a runtime cannot wait inside another.
        let deleting = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            let _ = runtime.block_on(admin.delete_topics(&[&name], &AdminOptions::new()));
        });
        let _ = deleting.join();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn conforms() {
    let Some(address) = kafka("conforms") else { return };
    conformance::all(|| Box::new(Topic::new(&address))).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn groups_conform() {
    let Some(address) = kafka("groups_conform") else { return };
    groups::all(|| Box::new(Topic::new(&address))).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn members_share_and_hand_over() {
    let Some(address) = kafka("members_share_and_hand_over") else { return };
    let topic = Topic::new(&address);
    let first = Joined::new(&topic).await;
    append(&*first.log, 2, batch(["one", "two"])).await;
    until("the first has all", || first.assigned().len() == 3).await;
    first.group.claim(0, 0..4).await.unwrap();
    let leaving = first.leave_after(Duration::from_millis(500));

    let second = Joined::new(&topic).await;
    let joined = Instant::now();
    until("something is taken from the first", || first.assigned().len() < 3).await;
    let taken = Instant::now();
    let kept = first.assigned();
    until("the second has something", || !second.assigned().is_empty()).await;
    assert!(taken.elapsed() >= Duration::from_millis(500), "it waits until the first has left");
    println!("shared {:?} after the second has joined", joined.elapsed());
    assert_eq!(first.assigned(), kept, "what the first keeps is never taken from it");
    let shared: BTreeSet<u32> = first.assigned().union(&second.assigned()).copied().collect();
    assert_eq!((shared.len(), first.assigned().len() + second.assigned().len()), (3, 3));

    // Each claims what it has; what the other has is refused.
    let (ours, theirs) = (*first.assigned().first().unwrap(), *second.assigned().first().unwrap());
    first.group.claim(ours, 4..9).await.unwrap();
    second.group.claim(theirs, 1..2).await.unwrap();
    assert_eq!(first.group.claim(theirs, 2..3).await, Err(GroupError::Lost(theirs)));
    assert_eq!(first.group.claimed(theirs).await, Ok(1..2));
    assert_eq!(second.group.claimed(ours).await, Ok(4..9));

    // One that stops in order is not waited for.
    let stopped = Instant::now();
    first.group.close().await;
    until("the second has all", || second.assigned().len() == 3).await;
    println!("handed over {:?} after the first has stopped, 500 ms of which it worked", stopped.elapsed());
    assert!(stopped.elapsed() < Duration::from_secs(5), "{:?}", stopped.elapsed());
    assert_eq!(second.log.range(2), 0..2, "ends are known when partitions are");
    assert!(matches!(first.group.claim(ours, 9..10).await, Err(GroupError::Failed { .. })));
    second.group.claim(ours, 9..10).await.unwrap();
    leaving.abort();

    // One that is dropped neither.
    drop(second);
    let third = Joined::new(&topic).await;
    assert!(!third.has_joined());
    until("the third has all", || third.assigned().len() == 3).await;
    assert!(third.has_joined());
    assert_eq!(third.group.claimed(ours).await, Ok(9..10));
}

#[tokio::test(flavor = "multi_thread")]
async fn who_comes_when_all_is_dealt_out_has_joined_too() {
    let Some(address) = kafka("who_comes_when_all_is_dealt_out_has_joined_too") else { return };
    let topic = Topic::new(&address);
    let mut members = Vec::new();
    for _ in 0..4 {
        let member = Joined::new(&topic).await;
        let leaving = member.leave_after(Duration::ZERO);
        until("it is a member", || member.has_joined()).await;
        members.push((member, leaving));
    }
    let had = || members.iter().map(|(member, _)| member.assigned().len()).collect::<Vec<_>>();
    until("one has nothing", || had().iter().filter(|&&had| had == 0).count() == 1).await;
    until("the others have one each", || had().iter().sum::<usize>() == 3).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_has_left_everything_is_gone_at_once() {
    let Some(address) = kafka("who_has_left_everything_is_gone_at_once") else { return };
    let topic = Topic::new(&address);
    let only = Joined::new(&topic).await;
    until("it has all", || only.assigned().len() == 3).await;
    (0..3).for_each(|partition| only.group.left(partition));
    let stopped = Instant::now();
    only.group.close().await;
    assert!(stopped.elapsed() < Duration::from_secs(5), "{:?}", stopped.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_partition_comes_back_only_after_it_was_left() {
    let Some(address) = kafka("a_partition_comes_back_only_after_it_was_left") else { return };
    let topic = Topic::new(&address);
    let first = Joined::new(&topic).await;
    until("the first has all", || first.assigned().len() == 3).await;
    let second = Joined::new(&topic).await;
    until("something is taken from the first", || first.assigned().len() < 3).await;
    let taken: Vec<u32> = (0..3).filter(|id| !first.assigned().contains(id)).collect();
    // Rows that are left are still brought in, and said to be.
    first.group.claim(taken[0], 0..3).await.unwrap();
    taken.iter().for_each(|&id| first.group.left(id));
    until("the second has it", || second.assigned().contains(&taken[0])).await;
    assert_eq!(second.group.claimed(taken[0]).await, Ok(0..3));
    assert_eq!(first.group.claim(taken[0], 3..4).await, Err(GroupError::Lost(taken[0])));
    drop(second);
    until("the first has all again", || first.assigned().len() == 3).await;
    first.group.claim(taken[0], 3..4).await.unwrap();
}

/// A member in a process of its own, which the test stops: it claims what it reads from its input.
#[tokio::test(flavor = "multi_thread")]
async fn member_of_a_process_of_its_own() {
    let Ok(name) = std::env::var("CATCHMENT_TEST_MEMBER_OF") else { return };
    let Some(address) = kafka("member_of_a_process_of_its_own") else { return };
    let topic = std::mem::ManuallyDrop::new(Topic { address, name });
    let member = Joined::new(&topic).await;
    until("it has all", || member.assigned().len() == 3).await;
    println!("joined");
    for line in std::io::stdin().lines().map_while(Result::ok) {
        let numbers: Vec<u64> = line.split(' ').map(|number| number.parse().unwrap()).collect();
        let claimed = member.group.claim(0, numbers[0]..numbers[1]).await;
        println!("claim {claimed:?}");
        if claimed.is_err() {
            until("it loses all", || member.assigned().is_empty()).await;
            println!("lost");
            (0..3).for_each(|partition| member.group.left(partition));
            until("the group has taken it in again", || member.has_joined()).await;
            println!("member again");
        }
    }
}

/// Claims of a member that was stopped for longer than its session, with another that has taken over and is there, or has
/// left meanwhile.
async fn a_sleeper_cannot_claim(test: &str, other_stays: bool) {
    let Some(address) = kafka(test) else { return };
    let topic = Topic::new(&address);
    drop(topic.open_log().await);
    let mut sleeper = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "member_of_a_process_of_its_own", "--nocapture"])
        .env("CATCHMENT_TEST_MEMBER_OF", &topic.name)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut says = BufReader::new(sleeper.stdout.take().unwrap()).lines().map_while(Result::ok);
    let mut hear = |word: &str| says.find(|line| line.contains(word)).unwrap_or_default();
    let mut input = sleeper.stdin.take().unwrap();
    assert!(hear("joined").contains("joined"));
    writeln!(input, "0 5").unwrap();
    assert!(hear("claim").contains("Ok(())"));

    let signal = |name: &str| {
        let pid = sleeper.id().to_string();
        assert!(Command::new("kill").args([name, &pid]).status().unwrap().success());
    };
    signal("-STOP");
    let other = Joined::new(&topic).await;
    let stopped = Instant::now();
    until("the other takes over", || other.assigned().len() == 3).await;
    println!("taken over {:?} after the first was stopped", stopped.elapsed());
    assert_eq!(other.group.claimed(0).await, Ok(0..5));
    other.group.claim(0, 5..9).await.unwrap();
    let leaving = other.leave_after(Duration::ZERO);
    if !other_stays {
        other.group.close().await;
    }
    writeln!(input, "3 4").unwrap();
    signal("-CONT");
    let said = hear("claim");
    assert!(said.contains("Err(Lost(0))"), "{said}");
    assert!(hear("lost").contains("lost"));
    assert!(hear("member").contains("again"));
    if other_stays {
        assert_eq!(other.group.claimed(0).await, Ok(5..9));
    } else {
        let later = Joined::new(&topic).await;
        assert_eq!(later.group.claimed(0).await, Ok(5..9));
    }
    leaving.abort();
    sleeper.kill().unwrap();
    sleeper.wait().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sleeper_cannot_claim_what_another_has() {
    a_sleeper_cannot_claim("a_sleeper_cannot_claim_what_another_has", true).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sleeper_cannot_claim_what_nobody_has() {
    a_sleeper_cannot_claim("a_sleeper_cannot_claim_what_nobody_has", false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn only_what_is_read_is_fetched() {
    let Some(address) = kafka("only_what_is_read_is_fetched") else { return };
    let topic = Topic::new(&address);
    let log = topic.open_log().await;
    let texts: Vec<String> = (0..100).map(|number| number.to_string()).collect();
    append(&*log, 1, batch(&texts)).await;
    assert_eq!(log.fetched(), [0; 0]);
    assert_eq!(read_all(&*log, 1).await.len(), 100);
    let waits = tokio::spawn({
        let log = Arc::clone(&log);
        async move { log.read(0, 0, 1).await.unwrap().next }
    });
    // Who waits is there, for however long; who has gone is not.
    until("only the other is read on", || log.fetched() == [0]).await;
    tokio::time::sleep(Duration::from_secs(10)).await;
    assert_eq!(log.fetched(), [0]);
    append(&*log, 0, batch(["a"])).await;
    append(&*log, 1, batch(["100", "101"])).await;
    assert_eq!(waits.await.unwrap(), 1);
    // Who comes again gets what it asks for, and nothing between.
    for from in [100, 7, 101] {
        let read = tokio::time::timeout(SOON, log.read(1, from, 1)).await.expect("soon").unwrap();
        assert_eq!(conformance::events_from(&read, from)[0], (from, from.to_string()));
        until("nothing is read", || log.fetched().is_empty()).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn readings_are_published_in_order() {
    let Some(address) = kafka("readings_are_published_in_order") else { return };
    let topic = Topic::new(&address);
    let more = ["readings", "rejects"]
        .map(|suffix| Topic { address: address.clone(), name: format!("{}.{suffix}", topic.name) });
    let publisher = KafkaReadings::open(topic.target(), 3).await.unwrap();
    let events = batch(["first", "second", "third"]);
    let mut rows = ReadingsBatch::default();
    for (offset, event) in (40..).zip(&events) {
        let timestamp = Timestamp(1_645_270_401_000_000);
        let reading = Reading { timestamp, metric: "rpm", value: Value::Number(offset as f64) };
        rows.reading(2, offset, &event, &reading);
        rows.reject(2, offset, &event, RejectReason::Syntax, "is no JSON");
    }
    publisher.publish(2, &rows).await.unwrap();
    // At least once.
    publisher.publish(2, &rows).await.unwrap();
    publisher.publish(0, &ReadingsBatch::default()).await.unwrap();

    for (topic, value) in more.iter().zip([r#""metric_value":40.0"#, r#""payload":"first""#]) {
        let consumer: BaseConsumer = settings(&address).set("group.id", "test").create().unwrap();
        let mut assignment = TopicPartitionList::new();
        assignment.add_partition_offset(&topic.name, 2, Offset::Beginning).unwrap();
        consumer.assign(&assignment).unwrap();
        for number in 0..6 {
            let record = consumer.poll(SOON).expect("a record").unwrap();
            let text = std::str::from_utf8(record.payload().unwrap()).unwrap();
            assert_eq!(record.key(), Some(&b"device-1"[..]));
            assert!(
                text.ends_with(&format!(r#""log_partition":2,"log_offset":{}}}"#, 40 + number % 3)),
                "{text}"
            );
            assert!(number % 3 != 0 || text.contains(value), "{text}");
            let headers = record.headers().unwrap();
            let names: Vec<&str> = headers.iter().map(|header| header.key).collect();
            assert_eq!(names, ["type", "content_type", "timestamp", "received_at"]);
            assert_eq!(headers.get(1).value, Some(&b"application/json"[..]));
        }
    }
}

/// Marks as plain as can be: for one source.
struct PlainMarks;

impl RecordMarks for PlainMarks {
    fn mark(&self, partition: u32, offset: u64, fingerprint: u32) -> u128 {
        1 << 127 | u128::from(fingerprint) << 80 | u128::from(partition) << 64 | u128::from(offset)
    }

    fn record(&self, mark: u128) -> Option<(u32, u64)> {
        (mark != 0).then_some(((mark >> 64) as u32 & 0xffff, mark as u64))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_topic_of_others_is_taken_in_once() {
    let Some(address) = kafka("a_topic_of_others_is_taken_in_once") else { return };
    let topic = Topic::new(&address);
    drop(topic.open_log().await);
    let producer: BaseProducer = settings(&address).create().unwrap();
    for number in 0..100 {
        let payload = format!(r#"{{"name":"d{}","number":{number}}}"#, number % 5);
        let record: BaseRecord<'_, [u8], str> = BaseRecord::to(&topic.name).partition(number % 3);
        producer.send(record.payload(&payload)).unwrap();
    }
    producer.flush(SOON).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let log: Arc<dyn EventLog> =
        EmbeddedLog::open(folder.path(), LogConfig { partitions: 2, ..LogConfig::default() }).unwrap();
    let source = |group: &str| {
        let url = format!("kafka://{address}/{}?group={group}&type=quote&device=name", topic.name);
        KafkaSource::start(SourceTarget::parse(&url).unwrap(), Arc::clone(&log), Arc::new(PlainMarks))
            .unwrap()
    };
    let counted = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed);
    let first = source("first");
    let figures = first.figures();
    until("all are taken", || counted(&figures.taken) == 100).await;
    first.stop().await;
    let devices = |log: &Arc<dyn EventLog>| {
        let log = Arc::clone(log);
        async move {
            let mut devices = Vec::new();
            for partition in 0..2 {
                let range = log.range(partition);
                if !range.is_empty() {
                    let read = log.read(partition, range.start, 1 << 20).await.unwrap();
                    let events = read.blocks.iter().flat_map(|block| &block.events);
                    devices.extend(events.map(|event| format!("{} {}", event.device_id, event.event_type)));
                }
            }
            devices.sort();
            devices
        }
    };
    let taken = devices(&log).await;
    assert_eq!((taken.len(), taken[0].as_str(), taken[99].as_str()), (100, "d0 quote", "d4 quote"));
    // A member that has committed nothing, as after a crash before that.
    let second = source("second");
    let figures = second.figures();
    until("all are known", || counted(&figures.duplicates) == 100).await;
    second.stop().await;
    assert_eq!(devices(&log).await.len(), 100);
    // One that has committed everything has nothing to do.
    let third = source("first");
    let figures = third.figures();
    producer
        .send(BaseRecord::<'_, [u8], str>::to(&topic.name).partition(0).payload(r#"{"name":"new"}"#))
        .unwrap();
    producer.flush(SOON).unwrap();
    until("the new one is taken", || counted(&figures.taken) == 1).await;
    third.stop().await;
    assert_eq!(counted(&figures.duplicates), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn others_can_read_the_records() {
    let Some(address) = kafka("others_can_read_the_records") else { return };
    let topic = Topic::new(&address);
    let log = topic.open_log().await;
    let event = Event {
        realm: "main",
        device_id: "pump-1",
        event_type: "state",
        topic: "plant/north/pump-1",
        received_at: Timestamp(1_700_000_000_123_456),
        content_type: "application/json",
        tags: r#"{"area":"north"}"#,
        mark: 0xAB,
        payload: b"{\"rpm\":900}",
    };
    let mut builder = EventBatch::builder();
    builder.push(&event).unwrap();
    append(&*log, 2, builder.take()).await;

    let consumer: BaseConsumer = settings(&address).set("group.id", "test").create().unwrap();
    let mut assignment = TopicPartitionList::new();
    assignment.add_partition_offset(&topic.name, 2, Offset::Beginning).unwrap();
    consumer.assign(&assignment).unwrap();
    let record = consumer.poll(SOON).expect("a record").unwrap();
    assert_eq!((record.key(), record.payload()), (Some(&b"pump-1"[..]), Some(event.payload)));
    assert_eq!(record.timestamp().to_millis(), Some(1_700_000_000_123));
    let headers: Vec<(String, String)> = record
        .headers()
        .unwrap()
        .iter()
        .map(|header| (header.key.to_owned(), String::from_utf8_lossy(header.value.unwrap()).into_owned()))
        .collect();
    let expected = [
        ("received_at", "1700000000123456"),
        ("realm", "main"),
        ("type", "state"),
        ("topic", "plant/north/pump-1"),
        ("content_type", "application/json"),
        ("tags", r#"{"area":"north"}"#),
        ("mark", "000000000000000000000000000000ab"),
    ];
    assert_eq!(headers, expected.map(|(name, value)| (name.to_owned(), value.to_owned())));
}

#[tokio::test(flavor = "multi_thread")]
async fn records_of_others_are_events_or_are_told() {
    let Some(address) = kafka("records_of_others_are_events_or_are_told") else { return };
    let topic = Topic::new(&address);
    let log = topic.open_log().await;
    let producer: BaseProducer = settings(&address).create().unwrap();
    let send = |key: &[u8], payload: &str, headers: OwnedHeaders| {
        producer
            .send(BaseRecord::to(&topic.name).partition(0).key(key).payload(payload).headers(headers))
            .unwrap();
    };
    let header = |value| OwnedHeaders::new().insert(Header { key: "type", value: Some(value) });
    send(b"a", "plain", OwnedHeaders::new());
    send(b"\xff", "no name", OwnedHeaders::new());
    send(b"b", "typed", header("state"));
    send(b"c", "too long", header(&"t".repeat(300)));
    producer.flush(SOON).unwrap();

    let mut events = Vec::new();
    let (mut next, mut skipped) = (0, Vec::new());
    while next < 4 {
        let read = tokio::time::timeout(SOON, log.read(0, next, 1 << 20)).await.expect("soon").unwrap();
        for event in read.blocks.iter().flat_map(|block| &block.events) {
            let payload = String::from_utf8_lossy(event.payload).into_owned();
            events.push((
                event.realm.to_owned(),
                event.device_id.to_owned(),
                event.event_type.to_owned(),
                payload,
            ));
        }
        skipped.extend(read.skipped);
        next = read.next;
    }
    let event =
        |device: &str, kind: &str, payload: &str| ["main", device, kind, payload].map(str::to_owned).into();
    assert_eq!(events, [event("a", "unknown", "plain"), event("b", "state", "typed")]);
    assert_eq!(skipped, [1..2, 3..4]);
    assert_eq!(log.stats().corrupted_blocks, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn readers_at_different_places_take_turns() {
    let Some(address) = kafka("readers_at_different_places_take_turns") else { return };
    let topic = Topic::new(&address);
    let log = topic.open_log().await;
    let texts: Vec<String> = (0..5000).map(|number| format!("{number:05}{}", "x".repeat(200))).collect();
    append(&*log, 0, batch(&texts)).await;
    let end = log.range(0).end;
    let readers = [0, 10, 2500, 4000].map(|begin| {
        let (log, texts) = (log.clone(), texts.clone());
        tokio::spawn(async move {
            let mut next = begin;
            while next < end {
                let read =
                    tokio::time::timeout(SOON, log.read(0, next, 100 << 10)).await.expect("a turn").unwrap();
                for (offset, text) in conformance::events_from(&read, next) {
                    assert_eq!(text, texts[offset as usize]);
                }
                assert_eq!(read.skipped, Vec::<std::ops::Range<u64>>::new());
                next = read.next;
            }
        })
    });
    let waits_at_the_end = tokio::spawn({
        let log = log.clone();
        async move { log.read(0, end, 1).await }
    });
    for reader in readers {
        reader.await.unwrap();
    }
    append(&*log, 0, batch(["last"])).await;
    let last = tokio::time::timeout(SOON, waits_at_the_end).await.expect("soon").unwrap().unwrap();
    assert_eq!(conformance::events_from(&last, end), [(end, "last".to_owned())]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_deleted_is_told_as_skipped() {
    let Some(address) = kafka("what_was_deleted_is_told_as_skipped") else { return };
    let topic = Topic::new(&address);
    let log = topic.open_log().await;
    append(&*log, 1, batch(["a", "b", "c", "d"])).await;
    log.close().await;
    drop(log);
    let mut before = TopicPartitionList::new();
    before.add_partition_offset(&topic.name, 1, Offset::Offset(3)).unwrap();
    topic.admin().delete_records(&before, &AdminOptions::new()).await.unwrap();

    let log = topic.open_log().await;
    assert_eq!(log.range(1), 3..4);
    let read = tokio::time::timeout(SOON, log.read(1, 1, 1 << 20)).await.expect("soon").unwrap();
    assert_eq!((read.skipped, read.next), (vec![1..3], 4));
    assert_eq!(read_all(&*log, 1).await, [(3, "d".to_owned())]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_does_not_fit_is_refused_with_advice() {
    let Some(address) = kafka("what_does_not_fit_is_refused_with_advice") else { return };
    let topic = Topic::new(&address);
    assert_eq!(probe(topic.target()).await.unwrap().partitions, None, "looking makes no topic");
    let log = topic.open_log().await;
    let found = probe(topic.target()).await.unwrap();
    assert_eq!((found.partitions, found.brokers >= 1), (Some(3), true));
    assert_eq!(found.cluster.as_deref(), Some(log.cluster()));
    assert_eq!(found.record_bytes_max, Some(16 << 20));
    let other = LogConfig { partitions: 5, ..LogConfig::default() };
    let error = KafkaLog::open(topic.target(), other).await.unwrap_err().to_string();
    assert!(
        error.contains("has 3 partitions, 5 are configured") && error.contains("log.partitions = 3"),
        "{error}"
    );
    assert_eq!(topic.open_with(LogConfig::default()).await.partitions(), 3, "0 takes those that there are");

    let too_large = "x".repeat(17 << 20);
    let refused = log.submit(0, batch([&too_large])).await;
    assert!(matches!(refused, Err(LogError::Refused { .. })), "{refused:?}");
    append(&*log, 0, batch(["others are taken"])).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn brokers_that_do_not_answer_are_told_without_secrets() {
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let url = format!("kafka://user:secret@{nobody}/t?security=plaintext");
    let target = KafkaTarget::parse(&url, &KafkaConfig::default()).unwrap();
    let error = probe(target).await.unwrap_err().to_string();
    assert!(error.starts_with(&format!("no broker of kafka://{nobody}/t answers: ")), "{error}");
    assert!(error.contains("Connection refused") && !error.contains("secret"), "{error}");
}
