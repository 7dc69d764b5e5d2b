use super::super::codec::{PublishProperties, Version};
use super::super::message::Message;
use super::*;

const LIMITS: QueueLimits = QueueLimits { messages_max: 5, bytes_max: 1000 };
const PEER: Peer = Peer { version: Version::V3, packet_bytes_max: 100, window: 2, problem_info: true };

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
    (session.fill(&mut output, 10_000, &PEER, None), output)
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
    let remains = session.end();
    assert!(remains.filters.contains("a") && remains.will.is_none() && remains.shared.is_empty());
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

#[test]
fn a_member_that_goes_leaves_to_its_group_what_it_may_not_have() {
    let (session, signal) = attached(60);
    let shared = |payload: &[u8], qos| delivery(payload, qos).by(Some("$share/g/a".into()));
    session.enqueue(shared(b"1", QoS::AtLeastOnce)).unwrap();
    session.enqueue(shared(b"2", QoS::ExactlyOnce)).unwrap();
    session.enqueue(delivery(b"own", QoS::AtLeastOnce)).unwrap();
    session.enqueue(shared(b"3", QoS::ExactlyOnce)).unwrap();
    assert_eq!(fill(&session).0.sent, 2, "the window");
    session.detach(&signal, false, None, &[], Instant::now()).unwrap();
    let left: Vec<_> = session.end().shared.iter().map(|left| left.message.payload().to_vec()).collect();
    assert_eq!(left, [b"1", b"3"], "2 was sent at QoS 2 and must not come twice");
}

#[test]
fn what_was_sent_once_does_not_expire() {
    let (session, signal) = attached(60);
    let properties = PublishProperties { expiry_s: Some(0), ..Default::default() };
    let message = Arc::new(Message::new("a", &properties, b"x", QoS::ExactlyOnce, false, 1));
    let sent =
        Delivery { packet_id: 7, ..Delivery::new(Arc::clone(&message), QoS::ExactlyOnce, false, Vec::new()) };
    session.enqueue(sent).unwrap();
    session.enqueue(Delivery::new(message, QoS::ExactlyOnce, false, Vec::new())).unwrap();
    assert_eq!(fill(&session).0, Filled { sent: 1, expired: 1, ..Filled::default() });
    drop(signal);
}

#[test]
fn topics_that_were_told_are_sent_as_aliases() {
    let (session, _signal) = attached(0);
    let peer = Peer { version: Version::V5, packet_bytes_max: 12, ..PEER };
    let mut aliases = Aliases::new(1);
    let mut sent = |payload: &[u8]| {
        let mut output = Vec::new();
        session.enqueue(delivery(payload, QoS::AtMostOnce)).unwrap();
        session.fill(&mut output, 1000, &peer, aliases.as_deref_mut());
        output
    };
    // 6 bytes and 3 for the alias do not fit in 12 with a payload of 4; without the alias they do.
    assert_eq!(sent(b"1234"), [0x30, 8, 0, 1, b'a', 0, b'1', b'2', b'3', b'4']);
    assert_eq!(sent(b"1"), [0x30, 8, 0, 1, b'a', 3, 0x23, 0, 1, b'1']);
    assert_eq!(sent(b"2"), [0x30, 7, 0, 0, 3, 0x23, 0, 1, b'2']);
}
