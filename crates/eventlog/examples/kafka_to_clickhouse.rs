//! The floor that `bench/on_engines.py` measures Catchment against: what a plain consumer costs that brings a topic of events
//! into ClickHouse as they are, undecoded, in batches, and commits nothing.
//!
//! ```text
//! cargo run --release -p catchment-eventlog --features kafka --example kafka_to_clickhouse -- HOST:PORT TOPIC http://HOST:PORT DATABASE
//! ```
//! Makes the table `floor_events` in the database, with the columns of `raw_events`; reads the topic from its start to the end
//! that it has at the start, and prints events, seconds and CPU seconds.

use std::collections::BTreeMap;
use std::error::Error;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arrow::array::{
    ArrayRef, BinaryBuilder, Int32Builder, Int64Builder, RecordBatch, StringBuilder,
    TimestampMicrosecondBuilder,
};
use arrow::ipc::writer::StreamWriter;
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::message::{BorrowedMessage, Headers};
use rdkafka::{Message, Offset, TopicPartitionList};

const ROWS_MAX: usize = 100_000;
const ANSWER_MAX: Duration = Duration::from_secs(30);

type Failure = Box<dyn Error + Send + Sync>;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Failure> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [brokers, topic, clickhouse, database] = arguments.as_slice() else {
        return Err("four arguments are wanted: HOST:PORT TOPIC http://HOST:PORT DATABASE".into());
    };
    let client = reqwest::Client::new();
    let ask = |query: String, body: Vec<u8>| {
        let request = client.post(clickhouse).query(&[("database", database.as_str()), ("query", &query)]);
        async move {
            let answer = request.body(body).send().await?;
            let status = answer.status();
            match status.is_success() {
                true => Ok::<_, Failure>(()),
                false => Err(format!("ClickHouse: {status}: {}", answer.text().await?).into()),
            }
        }
    };
    ask("DROP TABLE IF EXISTS floor_events".to_owned(), Vec::new()).await?;
    ask("CREATE TABLE floor_events AS raw_events".to_owned(), Vec::new()).await?;

    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", brokers)
        .set("group.id", "floor")
        .set("enable.auto.commit", "false")
        .create()?;
    let metadata = consumer.fetch_metadata(Some(topic), ANSWER_MAX)?;
    let mut assignment = TopicPartitionList::new();
    let mut left = BTreeMap::new();
    for partition in metadata.topics().iter().flat_map(|topic| topic.partitions()) {
        let (start, end) = consumer.fetch_watermarks(topic, partition.id(), ANSWER_MAX)?;
        assignment.add_partition_offset(topic, partition.id(), Offset::Offset(start))?;
        if end > start {
            left.insert(partition.id(), end);
        }
    }
    consumer.assign(&assignment)?;

    let began = Instant::now();
    let (mut rows, mut events) = (Rows::default(), 0_u64);
    while !left.is_empty() {
        let Some(message) = consumer.poll(Duration::from_millis(100)) else { continue };
        let message = message?;
        rows.push(&message);
        events += 1;
        if left.get(&message.partition()).is_some_and(|&end| message.offset() + 1 >= end) {
            left.remove(&message.partition());
        }
        if rows.len >= ROWS_MAX || left.is_empty() {
            ask("INSERT INTO floor_events FORMAT ArrowStream".to_owned(), rows.take()?).await?;
        }
    }
    let seconds = began.elapsed().as_secs_f64();
    let cpu = cpu_seconds()?;
    println!("{{\"events\": {events}, \"seconds\": {seconds:.2}, \"cpu_seconds\": {cpu:.2}}}");
    Ok(())
}

/// Columns of `raw_events` under construction.
#[derive(Default)]
struct Rows {
    device_id: StringBuilder,
    received_at: TimestampMicrosecondBuilder,
    event_type: StringBuilder,
    topic: StringBuilder,
    content_type: StringBuilder,
    payload: BinaryBuilder,
    partition: Int32Builder,
    offset: Int64Builder,
    len: usize,
}

impl Rows {
    fn push(&mut self, message: &BorrowedMessage<'_>) {
        let header = |name: &str| {
            let found = message.headers()?.iter().find(|header| header.key == name)?;
            std::str::from_utf8(found.value?).ok()
        };
        let text = |bytes: Option<&'_ [u8]>| {
            bytes.and_then(|bytes| std::str::from_utf8(bytes).ok()).unwrap_or_default().to_owned()
        };
        self.device_id.append_value(text(message.key()));
        let received_at = header("received_at").and_then(|text| text.parse().ok());
        self.received_at.append_value(received_at.unwrap_or_default());
        self.event_type.append_value(header("type").unwrap_or_default());
        self.topic.append_value(header("topic").unwrap_or_default());
        self.content_type.append_value(header("content_type").unwrap_or_default());
        self.payload.append_value(message.payload().unwrap_or_default());
        self.partition.append_value(message.partition());
        self.offset.append_value(message.offset());
        self.len += 1;
    }

    fn take(&mut self) -> Result<Vec<u8>, Failure> {
        self.len = 0;
        let received_at = Arc::new(self.received_at.finish().with_timezone("UTC")) as ArrayRef;
        let batch = RecordBatch::try_from_iter([
            ("device_id", Arc::new(self.device_id.finish()) as ArrayRef),
            ("received_at", Arc::clone(&received_at)),
            ("event_time", received_at),
            ("type", Arc::new(self.event_type.finish())),
            ("topic", Arc::new(self.topic.finish())),
            ("content_type", Arc::new(self.content_type.finish())),
            ("payload", Arc::new(self.payload.finish())),
            ("log_partition", Arc::new(self.partition.finish())),
            ("log_offset", Arc::new(self.offset.finish())),
        ])?;
        let mut writer = StreamWriter::try_new(Vec::new(), &batch.schema())?;
        writer.write(&batch)?;
        Ok(writer.into_inner()?)
    }
}

/// CPU seconds of this process so far, user and system.
fn cpu_seconds() -> Result<f64, Failure> {
    let stat = std::fs::read_to_string("/proc/self/stat")?;
    let fields: Vec<&str> = stat.rsplit_once(')').map_or("", |(_, rest)| rest).split_whitespace().collect();
    // Fields 14 and 15 of proc(5); what is kept here begins with field 3. A hundred ticks a second.
    let ticks = |field: usize| fields.get(field - 3).and_then(|text| text.parse::<f64>().ok()).unwrap_or(0.0);
    Ok((ticks(14) + ticks(15)) / 100.0)
}
