use super::super::codec::PublishProperties;
use super::*;

const LIMITS: QueueLimits = QueueLimits { messages_max: 5, bytes_max: 1000 };
const PEER: Peer = Peer { version: Version::V3, packet_bytes_max: 100, window: 2 };

fn delivery(payload: &[u8], qos: QoS) -> Delivery {
    let message = Message::new("a", &PublishProperties::default(), payload, qos, false, 1);
    Delivery::new(Arc::new(message), qos, false, Vec::new())
}

fn attached(expiry_s: u64) -> (Session, Arc<Signal>) {
    let keeper = Arc::new(Keeper::volatile(&Default::default()));
    let (session, signal) = (Session::new(1, "c", LIMITS, keeper), Arc::new(Signal::default()));
    assert!(session.attach(Arc::clone(&signal), Duration::from_secs(expiry_s), None).is_empty());
    (session, signal)
}

fn fill(session: &Session) -> (Filled, Vec<u8>) {
    let mut output = Vec::new();
    (session.fill(&mut output, 10_000, &PEER), output)
}

#[test]
fn the_window_holds_messages_back() {
    let (session, _signal) = attached(0);
    for payload in 0..4 {
        session.enqueue(delivery(&[payload], QoS::AtLeastOnce)).unwrap();
    }
    let (filled, output) = fill(&session);
    assert_eq!(filled.sent, 2);
    assert_eq!(output, [0x32, 6, 0, 1, b'a', 0, 1, 0, 0x32, 6, 0, 1, b'a', 0, 2, 1]);
    assert_eq!(fill(&session).0.sent, 0);
    assert!(session.finish(2) && !session.finish(2));
    assert_eq!(fill(&session).1, [0x32, 6, 0, 1, b'a', 0, 3, 2]);
    // PUBREC keeps its place until PUBCOMP.
    assert!(session.release(1) && !session.release(9));
    assert_eq!(fill(&session).0.sent, 0);
    assert!(session.finish(1));
    assert_eq!(fill(&session).0.sent, 1);
}

#[test]
fn the_queue_is_bounded_in_messages_and_bytes() {
    let (session, _signal) = attached(0);
    for _ in 0..5 {
        session.enqueue(delivery(b"x", QoS::AtMostOnce)).unwrap();
    }
    assert_eq!(session.enqueue(delivery(b"x", QoS::AtMostOnce)), Err(QueueFull));
    assert_eq!(fill(&session).0.sent, 5);
    session.enqueue(delivery(&[0; 1000], QoS::AtMostOnce)).unwrap();
    assert_eq!(session.enqueue(delivery(b"x", QoS::AtMostOnce)), Err(QueueFull));
    assert_eq!(fill(&session).0, Filled { too_large: 1, ..Filled::default() });
    session.enqueue(delivery(b"x", QoS::AtMostOnce)).unwrap();
}

#[test]
fn a_new_connection_gets_the_unfinished_first_and_as_duplicates() {
    let (session, signal) = attached(60);
    for payload in 0..3 {
        session.enqueue(delivery(&[payload], QoS::ExactlyOnce)).unwrap();
    }
    session.enqueue(delivery(b"0", QoS::AtMostOnce)).unwrap();
    fill(&session);
    session.release(1);
    assert!(session.detach(&signal, false, None, &[], Instant::now()).unwrap().due.is_some());
    assert!(session.detach(&signal, false, None, &[], Instant::now()).is_none(), "only once");
    session.enqueue(delivery(b"0", QoS::AtMostOnce)).unwrap();
    assert_eq!(session.attach(signal, Duration::ZERO, None), [1]);
    let (filled, output) = fill(&session);
    assert_eq!((filled.sent, output), (1, vec![0x3c, 6, 0, 1, b'a', 0, 2, 1]));
    session.finish(1);
    assert_eq!(fill(&session).1, [0x34, 6, 0, 1, b'a', 0, 3, 2]);
}

#[test]
fn packet_identifiers_wrap_and_skip_those_in_use() {
    let (session, _signal) = attached(0);
    session.state.lock().last_packet_id = 65_534;
    let next = || {
        session.enqueue(delivery(b"", QoS::AtLeastOnce)).unwrap();
        let output = fill(&session).1;
        u16::from_be_bytes([output[5], output[6]])
    };
    assert_eq!(next(), 65_535);
    assert_eq!(next(), 1);
    session.finish(1);
    session.state.lock().last_packet_id = 65_534;
    assert_eq!(next(), 1, "65,535 is still in use");
}

#[test]
fn what_may_not_be_in_the_log_counts_as_never_sent() {
    let (session, signal) = attached(60);
    assert!(session.receive(1) && session.receive(2) && !session.receive(1));
    session.detach(&signal, false, None, &[2], Instant::now()).unwrap();
    assert_eq!(session.received_count(), 1);
    assert!(!session.receive(1) && session.receive(2));
}

#[test]
fn an_ended_session_takes_nothing() {
    let (session, _signal) = attached(60);
    assert!(session.add_filter("a", 1) && session.add_filter("a", 1) && !session.add_filter("b", 1));
    let (filters, will) = session.end();
    assert!(filters.contains("a") && will.is_none());
    session.enqueue(delivery(b"x", QoS::AtLeastOnce)).unwrap();
    assert_eq!(fill(&session).0, Filled::default());
}

#[test]
fn timers_are_set_once() {
    let (session, _signal) = attached(60);
    let now = Instant::now();
    let later = now + Duration::from_secs(1);
    assert!(session.needs_timer(later) && !session.needs_timer(later));
    assert!(session.needs_timer(now));
    assert!(session.due(now).next.is_none(), "it is connected");
    assert!(session.needs_timer(later));
}
