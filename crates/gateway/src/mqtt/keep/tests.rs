use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::time::{Duration, Instant};

use proptest::prelude::*;

use super::*;
use crate::mqtt::codec::{PublishProperties, QoS};
use crate::mqtt::message::Message;
use crate::mqtt::subscriptions::Wish;

const WISH: Wish =
    Wish { qos: QoS::AtLeastOnce, no_local: true, retain_as_published: false, subscription_id: 7 };

fn encoded(topic: &str, payload: &[u8]) -> Vec<u8> {
    let message = Message::new(topic, &PublishProperties::default(), payload, QoS::AtLeastOnce, true, 1);
    let mut bytes = Vec::new();
    message.encode(&mut bytes);
    bytes
}

fn queued(session: u64, seq: u64) -> Queued {
    Queued {
        session,
        seq,
        qos: QoS::ExactlyOnce,
        retain: seq.is_multiple_of(2),
        subscription_ids: vec![7, 8],
        shared: None,
    }
}

/// A record as version 0.1 wrote it, before it told shared subscriptions.
#[test]
fn a_record_of_the_old_format_is_read() {
    let old = [
        &[9, 4, 0, 0, 0][..],
        b"main",
        &[0, 0, 2, 0, 0, 0],
        b"hi",
        &[1, 0, 0, 0],
        &[5, 0, 0, 0, 0, 0, 0, 0, 6, 0, 0, 0, 0, 0, 0, 0, 0b110, 2, 0, 0, 0, 7, 0, 0, 0, 8, 0, 0, 0],
    ]
    .concat();
    let queued = vec![queued(5, 6)];
    let record = Record::Published { realm: "main", retained: false, origin: None, message: b"hi", queued };
    assert_eq!(Record::decode(&old), Some(record.clone()));
    let mut again = Vec::new();
    record.encode(&mut again);
    assert_eq!(again, old);
}

fn config(segment_bytes: u64) -> JournalConfig {
    JournalConfig { sync: SyncPolicy::Fsync, segment_bytes, queue_bytes_max: 1 << 20 }
}

fn open(dir: &std::path::Path, segment_bytes: u64) -> (Journal, Image, KeepMetrics) {
    let metrics = KeepMetrics::default();
    let (journal, image) = Journal::open(dir, config(segment_bytes), metrics.clone()).unwrap();
    (journal, image, metrics)
}

fn settle(journal: &Journal) {
    if let Some(barrier) = journal.barrier() {
        tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(barrier).unwrap();
    }
}

/// An image in a form that can be compared.
fn shown(image: &Image) -> BTreeMap<String, String> {
    let mut all = BTreeMap::new();
    for (id, kept) in &image.sessions {
        let queue: BTreeMap<_, _> =
            kept.queue.iter().map(|(seq, waiting)| (*seq, format!("{waiting:?}"))).collect();
        let head = (&kept.realm, &kept.client_id, kept.expiry_s, &kept.will, kept.link, kept.next_seq);
        all.insert(
            format!("session {id}"),
            format!("{head:?} {:?} {queue:?} {:?}", kept.filters, kept.received),
        );
    }
    for (key, message) in &image.retained {
        all.insert(format!("retained {key:?}"), format!("{message:?}"));
    }
    all.insert("last".to_owned(), image.last_session.to_string());
    all
}

/// What would be read after writing an image anew.
fn anew(image: &Image) -> Image {
    let mut again = Image::default();
    image.records(|record| {
        let mut bytes = Vec::new();
        record.encode(&mut bytes);
        assert!(again.take(&bytes), "{record:?}");
    });
    again
}

#[test]
fn records_come_back_as_they_were() {
    let proof = Proof { partition: 3, from: 1 << 40, received_at: -5, checksum: 9 };
    let origin = Origin { session: 1, packet_id: 65_535, proof: Some(proof) };
    let message = encoded("a/b", b"payload");
    let records = [
        Record::Reset,
        Record::Clock { at_ms: -1 },
        Record::Opened { session: 1, realm: "main", client_id: "é", owner: "o", next_seq: 9 },
        Record::Attached { session: 1, at_ms: 2, expiry_s: u64::MAX, will: Some(b"will") },
        Record::Attached { session: 1, at_ms: 2, expiry_s: 3, will: None },
        Record::Detached { session: 1, at_ms: 2, expiry_s: 3, will_due_ms: Some(4), sent: 5 },
        Record::WillDone { session: 1 },
        Record::Ended { session: 1 },
        Record::Subscribed { session: 1, filter: "$share/g/+/#", wish: WISH },
        Record::Unsubscribed { session: 1, filter: "a" },
        Record::Published {
            realm: "main",
            retained: true,
            origin: Some(origin),
            message: &message,
            queued: vec![queued(1, 2), queued(3, 4)],
        },
        Record::Published {
            realm: "main",
            retained: false,
            origin: None,
            message: &message,
            queued: vec![Queued { shared: Some("$share/g/+".into()), ..queued(1, 2) }, queued(3, 4)],
        },
        Record::Received(Origin { proof: None, ..origin }),
        Record::Proven { session: 1, packet_id: 2 },
        Record::Forgotten { session: 1, packet_id: 2 },
        Record::Released { session: 1, seq: 2 },
        Record::Finished { session: 1, seq: 2 },
    ];
    for record in records {
        let mut bytes = Vec::new();
        record.encode(&mut bytes);
        assert_eq!(Record::decode(&bytes).as_ref(), Some(&record));
        for length in 0..bytes.len() {
            assert_ne!(Record::decode(&bytes[..length]).as_ref(), Some(&record));
        }
    }
    assert_eq!(Record::decode(&[200]), None);
}

#[test]
fn a_message_that_was_never_in_the_log_never_was() {
    let proof = Proof { partition: 0, from: 0, received_at: 0, checksum: 0 };
    let message = encoded("t", b"x");
    let mut image = Image::default();
    let apply = |image: &mut Image, record: Record<'_>| {
        let mut bytes = Vec::new();
        record.encode(&mut bytes);
        assert!(image.take(&bytes));
    };
    for session in [1, 2] {
        apply(&mut image, Record::Opened { session, realm: "m", client_id: "c", owner: "o", next_seq: 1 });
    }
    for packet_id in [5, 6] {
        let origin = Some(Origin { session: 1, packet_id, proof: Some(proof) });
        let queued = vec![queued(2, packet_id.into())];
        apply(
            &mut image,
            Record::Published { realm: "m", retained: true, origin, message: &message, queued },
        );
    }
    assert!(image.retained.is_empty(), "not before it is proven");
    let mut image = anew(&image);
    assert_eq!(image.unproven().len(), 2);
    image.forget(1, 5);
    assert!(image.retained.is_empty());
    assert_eq!(image.sessions[&2].queue.keys().collect::<Vec<_>>(), [&6]);
    image.prove(1, 6);
    assert_eq!(image.retained.len(), 1);
    assert_eq!(image.sessions[&1].received.keys().collect::<Vec<_>>(), [&6]);
    assert_eq!(image.sessions[&2].queue.len(), 1);
}

#[test]
fn damage_costs_what_it_hit_and_is_counted() {
    let dir = tempfile::tempdir().unwrap();
    let (journal, _, _) = open(dir.path(), 1 << 20);
    for session in 1..=9 {
        journal.append(&Record::Opened {
            session,
            realm: "m",
            client_id: &format!("client-{session}"),
            owner: "o",
            next_seq: 1,
        });
    }
    drop(journal);
    let path = dir.path().join(compact::file_name(1));
    let mut bytes = fs::read(&path).unwrap();
    let at = bytes.windows(8).position(|window| window == b"client-5").unwrap();
    bytes[at] ^= 1;
    // And a tail that a crash has cut.
    bytes.truncate(bytes.len() - 3);
    fs::write(&path, &bytes).unwrap();
    let (journal, image, metrics) = open(dir.path(), 1 << 20);
    let ids: BTreeSet<u64> = image.sessions.keys().copied().collect();
    assert_eq!(ids, BTreeSet::from([1, 2, 3, 4, 6, 7, 8]));
    assert_eq!(metrics.damaged.get(), 1);
    // The tail is gone: what is written after it is found.
    journal.append(&Record::Opened { session: 10, realm: "m", client_id: "c", owner: "o", next_seq: 1 });
    drop(journal);
    assert!(open(dir.path(), 1 << 20).1.sessions.contains_key(&10));
}

#[test]
fn the_journal_stays_as_small_as_what_is_kept() {
    let dir = tempfile::tempdir().unwrap();
    let (journal, _, metrics) = open(dir.path(), 64 << 10);
    journal.append(&Record::Opened { session: 1, realm: "m", client_id: "c", owner: "o", next_seq: 1 });
    let message = encoded("t", &[b'x'; 1000]);
    for seq in 1..=5000 {
        let queued = vec![queued(1, seq)];
        journal.append(&Record::Published {
            realm: "m",
            retained: true,
            origin: None,
            message: &message,
            queued,
        });
        if seq > 10 {
            journal.append(&Record::Finished { session: 1, seq: seq - 10 });
        }
        if seq.is_multiple_of(20) {
            settle(&journal);
        }
    }
    // 5 MB were written. A thread that was at work when the next files were closed may leave some; one that was given no processor
    // makes up for it when further ones are closed.
    let size = || -> u64 {
        fs::read_dir(dir.path())
            .unwrap()
            .map(|entry| entry.unwrap().metadata().map_or(0, |file| file.len()))
            .sum()
    };
    let until = Instant::now() + Duration::from_secs(20);
    while size() >= 2_000_000 && Instant::now() < until {
        for _ in 0..100 {
            journal.append(&Record::Unsubscribed { session: 1, filter: "there is none" });
        }
        settle(&journal);
    }
    drop(journal);
    assert!(metrics.compactions.get() > 0);
    assert!(size() < 2_000_000, "{} bytes", size());
    let (_, image, _) = open(dir.path(), 64 << 10);
    assert_eq!(
        image.sessions[&1].queue.keys().copied().collect::<Vec<_>>(),
        (4991..=5000).collect::<Vec<_>>()
    );
    assert_eq!(image.retained.len(), 1);
}

#[test]
fn a_crash_while_writing_anew_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (journal, _, _) = open(dir.path(), 64 << 10);
    for session in 1..=3000 {
        journal.append(&Record::Opened {
            session,
            realm: "m",
            client_id: "some client",
            owner: "o",
            next_seq: 1,
        });
        if session.is_multiple_of(3) {
            journal.append(&Record::Ended { session });
        }
        if session.is_multiple_of(500) {
            settle(&journal);
        }
    }
    drop(journal);
    let before = shown(&open(dir.path(), 64 << 10).1);
    let numbers = compact::files(dir.path()).unwrap();
    assert!(numbers.len() > 1);
    let kept: Vec<_> = numbers
        .iter()
        .map(|&number| fs::read(dir.path().join(compact::file_name(number))).unwrap())
        .collect();
    compact::compact(dir.path(), &numbers, &KeepMetrics::default()).unwrap();
    assert_eq!(compact::files(dir.path()).unwrap(), numbers[numbers.len() - 1..]);
    assert_eq!(shown(&open(dir.path(), 64 << 10).1), before);
    // As if the crash had come before the old files were removed, with a draft of another attempt beside.
    for (&number, bytes) in numbers.iter().zip(&kept).take(numbers.len() - 1) {
        fs::write(dir.path().join(compact::file_name(number)), bytes).unwrap();
    }
    fs::write(dir.path().join("0000000000000099.new"), b"half").unwrap();
    assert_eq!(shown(&open(dir.path(), 64 << 10).1), before);
    assert!(!dir.path().join("0000000000000099.new").exists());
}

#[test]
fn who_waits_is_told_and_who_does_not_is_written_all_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let (journal, _, metrics) = open(dir.path(), 1 << 20);
    assert!(journal.barrier().is_none(), "nothing is owed");
    let position = journal.append(&Record::Clock { at_ms: 1 });
    let signal = Arc::new(Signal::default());
    assert!(!journal.is_durable(position, Some(&signal)));
    settle(&journal);
    assert!(journal.is_durable(position, None));
    let commits = metrics.commits.get();
    let lazy = journal.append(&Record::Clock { at_ms: 2 });
    let start = Instant::now();
    while metrics.commits.get() == commits {
        assert!(start.elapsed() < Duration::from_secs(5));
        std::thread::sleep(Duration::from_millis(1));
    }
    assert!(start.elapsed() > Duration::from_millis(20), "it was in no hurry");
    settle(&journal);
    assert!(journal.is_durable(lazy, None));
}

#[test]
fn the_total_is_given_back() {
    let config = crate::config::MqttConfig { kept_bytes_max: 10, ..Default::default() };
    let keeper = Keeper::volatile(&config);
    let message = |payload: &[u8]| {
        Message::new("t", &PublishProperties::default(), payload, QoS::AtLeastOnce, false, 1)
    };
    let first = message(b"12345");
    assert!(first.charge(&keeper) && first.charge(&keeper), "counted once");
    assert_eq!(keeper.waiting_bytes(), 6);
    assert!(!message(b"12345").charge(&keeper));
    drop(first);
    assert_eq!(keeper.waiting_bytes(), 0);
    assert!(message(b"12345").charge(&keeper));
}

/// Something that happens; sessions and numbers are few, so that they meet.
#[derive(Debug, Clone)]
enum Step {
    Open(u64),
    Attach(u64, bool),
    Detach(u64, bool),
    WillDone(u64),
    End(u64),
    Subscribe(u64, u8),
    Unsubscribe(u64, u8),
    Publish { retained: bool, origin: Option<(u64, u16, bool)>, queued: Vec<u64>, payload: Vec<u8> },
    Prove(u64, u16),
    Forget(u64, u16),
    Release(u64, u64),
    Finish(u64, u64),
}

fn step() -> impl Strategy<Value = Step> {
    let (session, seq, packet_id) = (1..4u64, 0..60u64, 1..4u16);
    let publish = (
        any::<bool>(),
        proptest::option::of((session.clone(), packet_id.clone(), any::<bool>())),
        proptest::collection::btree_set(session.clone(), 0..3),
        proptest::collection::vec(any::<u8>(), 0..3),
    );
    prop_oneof![
        1 => session.clone().prop_map(Step::Open),
        1 => (session.clone(), any::<bool>()).prop_map(|(id, will)| Step::Attach(id, will)),
        1 => (session.clone(), any::<bool>()).prop_map(|(id, will)| Step::Detach(id, will)),
        1 => session.clone().prop_map(Step::WillDone),
        1 => session.clone().prop_map(Step::End),
        1 => (session.clone(), 0..3u8).prop_map(|(id, filter)| Step::Subscribe(id, filter)),
        1 => (session.clone(), 0..3u8).prop_map(|(id, filter)| Step::Unsubscribe(id, filter)),
        8 => publish.prop_map(|(retained, origin, queued, payload)| Step::Publish {
            retained, origin, queued: queued.into_iter().collect(), payload,
        }),
        1 => (session.clone(), packet_id.clone()).prop_map(|(id, packet)| Step::Prove(id, packet)),
        1 => (session.clone(), packet_id).prop_map(|(id, packet)| Step::Forget(id, packet)),
        1 => (session.clone(), seq.clone()).prop_map(|(id, seq)| Step::Release(id, seq)),
        1 => (session, seq).prop_map(|(id, seq)| Step::Finish(id, seq)),
    ]
}

/// A message's number in all its queues is that of the step: none is given twice.
fn with_record(step: &Step, seq: u64, then: impl FnOnce(&Record<'_>)) {
    let message;
    let filter;
    then(&match step {
        Step::Open(session) => {
            Record::Opened { session: *session, realm: "m", client_id: "c", owner: "o", next_seq: 1 }
        }
        Step::Attach(session, will) => {
            Record::Attached { session: *session, at_ms: 5, expiry_s: 6, will: will.then_some(b"will") }
        }
        Step::Detach(session, will) => Record::Detached {
            session: *session,
            at_ms: 5,
            expiry_s: 7,
            will_due_ms: will.then_some(8),
            sent: 2,
        },
        Step::WillDone(session) => Record::WillDone { session: *session },
        Step::End(session) => Record::Ended { session: *session },
        Step::Subscribe(session, name) => {
            filter = name.to_string();
            Record::Subscribed { session: *session, filter: &filter, wish: WISH }
        }
        Step::Unsubscribe(session, name) => {
            filter = name.to_string();
            Record::Unsubscribed { session: *session, filter: &filter }
        }
        Step::Publish { retained, origin, queued: places, payload } => {
            message = encoded("t", payload);
            let proof = Proof { partition: 0, from: 0, received_at: 1, checksum: 2 };
            let origin = origin.map(|(session, packet_id, proven)| Origin {
                session,
                packet_id,
                proof: (!proven).then_some(proof),
            });
            let queued = places.iter().map(|&session| queued(session, seq)).collect();
            Record::Published { realm: "m", retained: *retained, origin, message: &message, queued }
        }
        Step::Prove(session, packet_id) => Record::Proven { session: *session, packet_id: *packet_id },
        Step::Forget(session, packet_id) => Record::Forgotten { session: *session, packet_id: *packet_id },
        Step::Release(session, seq) => Record::Released { session: *session, seq: *seq },
        Step::Finish(session, seq) => Record::Finished { session: *session, seq: *seq },
    });
}

/// What a client could tell of an image: a message that is over is not among the queues of an unproven one.
fn visible(image: &Image) -> BTreeMap<String, String> {
    let mut all = BTreeMap::new();
    for (id, kept) in &image.sessions {
        let queue: BTreeMap<_, _> =
            kept.queue.iter().map(|(seq, waiting)| (*seq, format!("{waiting:?}"))).collect();
        let received: BTreeMap<_, _> = kept
            .received
            .iter()
            .map(|(id, unproven)| (*id, unproven.as_ref().map(|unproven| unproven.proof)))
            .collect();
        let head = (&kept.realm, &kept.client_id, kept.expiry_s, &kept.will, kept.link);
        all.insert(format!("session {id}"), format!("{head:?} {:?} {queue:?} {received:?}", kept.filters));
    }
    for (key, message) in &image.retained {
        all.insert(format!("retained {key:?}"), format!("{message:?}"));
    }
    all.insert("lived".to_owned(), image.at_ms.to_string());
    all
}

proptest! {
    /// Writing anew at any moment, however often, and reading what a crash leaves: the same as if it had all been kept.
    #[test]
    fn writing_anew_forgets_nothing(steps in proptest::collection::vec((step(), any::<bool>()), 0..60)) {
        let (mut plain, mut compacted) = (Image::default(), Image::default());
        for (seq, (step, rewrite)) in (0..).zip(&steps) {
            with_record(step, seq, |record| {
                let mut bytes = Vec::new();
                record.encode(&mut bytes);
                assert!(plain.take(&bytes) && compacted.take(&bytes));
            });
            if *rewrite {
                compacted = anew(&compacted);
            }
        }
        prop_assert_eq!(visible(&plain), visible(&compacted));
    }
}
