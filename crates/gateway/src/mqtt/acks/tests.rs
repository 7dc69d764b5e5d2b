use futures::task::noop_waker_ref;
use tokio::sync::oneshot::Sender;

use super::*;

type Outcome = Result<(), &'static str>;
type End = Sender<Result<u64, LogError>>;

const LIMITS: InflightLimits = InflightLimits { events_max: 4, bytes_max: 100 };

fn full() -> LogError {
    LogError::Full { path: "x".into() }
}

/// Takes a read in: its appends, and for each acknowledgement the append it waits for.
fn read(acks: &mut Acks, appends: usize, owed: &[(u16, Option<usize>)]) -> Vec<End> {
    for &(packet_id, append) in owed {
        acks.count_event();
        acks.owe(Owed::to(QoS::AtLeastOnce, packet_id, Reason::Success, append));
    }
    let ends = (0..appends).map(|_| {
        let (end, pending) = Pending::new();
        acks.append(Ok(pending));
        end
    });
    let ends = ends.collect();
    acks.close_group(10, None);
    ends
}

/// Identifiers that are released, with whether their event was kept; then the first error.
fn released(acks: &mut Acks) -> (Vec<(u16, bool)>, Poll<Outcome>) {
    let mut released = Vec::new();
    let polled = acks.poll(&mut Context::from_waker(noop_waker_ref()), |item| match item {
        Released::Ack(owed, error) => {
            released.push((owed.packet_id, error.is_none()));
            if error.is_some() { Err("ack") } else { Ok(()) }
        }
        Released::Failed(_) => Err("append"),
        Released::Settled(_) => Ok(()),
    });
    (released, polled)
}

#[test]
fn groups_are_released_whole_and_in_order() {
    let mut acks = Acks::default();
    let mut first = read(&mut acks, 2, &[(1, Some(0)), (2, Some(1)), (3, None)]);
    let mut second = read(&mut acks, 1, &[(4, Some(0))]);
    assert_eq!(acks.publishes_qos1(), 4);
    assert!(!acks.has_room(LIMITS));
    second.pop().unwrap().send(Ok(0)).unwrap();
    first.pop().unwrap().send(Ok(0)).unwrap();
    assert_eq!(released(&mut acks), (vec![], Poll::Pending));
    first.pop().unwrap().send(Ok(0)).unwrap();
    assert_eq!(released(&mut acks), (vec![(1, true), (2, true), (3, true), (4, true)], Poll::Ready(Ok(()))));
    assert!(acks.has_room(LIMITS) && acks.publishes_qos1() == 0);
}

#[test]
fn a_failed_append_fails_its_own_acknowledgements() {
    let mut acks = Acks::default();
    let mut ends = read(&mut acks, 2, &[(1, Some(0)), (2, Some(1))]);
    ends.pop().unwrap().send(Err(full())).unwrap();
    ends.pop().unwrap().send(Ok(0)).unwrap();
    assert_eq!(released(&mut acks), (vec![(1, true), (2, false)], Poll::Ready(Err("ack"))));
    // The end of a log that is dropped is an error too.
    drop(read(&mut acks, 1, &[(3, Some(0))]));
    assert_eq!(released(&mut acks), (vec![(3, false)], Poll::Ready(Err("ack"))));
    assert_eq!(released(&mut acks), (vec![], Poll::Ready(Ok(()))));
}

#[test]
fn a_refusal_is_known_at_once() {
    let mut acks = Acks::default();
    let _ends = read(&mut acks, 1, &[(1, Some(0))]);
    acks.count_event();
    acks.append(Err(full()));
    let (_end, pending) = Pending::new();
    acks.append(Ok(pending));
    assert!(acks.was_refused(Some(0)) && !acks.was_refused(Some(1)) && !acks.was_refused(None));
}

#[test]
fn bytes_bound_what_is_on_its_way_and_qos_2_stays_unproven() {
    let mut acks = Acks::default();
    acks.count_event();
    acks.owe(Owed::to(QoS::ExactlyOnce, 9, Reason::Success, Some(0)));
    acks.owe(Owed::to(QoS::ExactlyOnce, 10, Reason::Success, None));
    let (_end, pending) = Pending::new();
    acks.append(Ok(pending));
    acks.close_group(100, None);
    assert!(!acks.has_room(LIMITS));
    assert!(acks.owes_rec(9) && !acks.owes_rec(8));
    assert_eq!(acks.unproven().collect::<Vec<_>>(), [9]);
}
