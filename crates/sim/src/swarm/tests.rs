use std::io::{Read, Write};
use std::net::TcpListener;

use super::*;

/// A server that does the least: lets everybody in, acknowledges, grants, answers pings.
fn server() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            std::thread::spawn(move || {
                let (mut input, mut chunk) = (Vec::new(), [0; 4096]);
                while let Ok(read @ 1..) = stream.read(&mut chunk) {
                    input.extend_from_slice(&chunk[..read]);
                    while let Some((first, body)) = wire::split(&input).unwrap() {
                        let is_publish = first & 0xF0 == wire::PUBLISH;
                        let id = wire::publish_id(first, &input[body.clone()]).filter(|_| is_publish);
                        let answer: &[u8] = match first & 0xF0 {
                            0x10 => &[wire::CONNACK, 2, 0, 0],
                            0x80 => &[wire::SUBACK, 3, input[2], input[3], 1],
                            0xC0 => &[wire::PING_RESPONSE, 0],
                            _ => &[],
                        };
                        stream.write_all(answer).unwrap();
                        if let Some(id) = id {
                            let [high, low] = id.to_be_bytes();
                            stream.write_all(&[wire::PUBACK, 2, high, low]).unwrap();
                        }
                        input.drain(..body.end);
                    }
                }
            });
        }
    });
    address
}

fn swarm() -> Swarm {
    let target = SwarmTarget {
        address: server(),
        tls: None,
        sources: vec!["127.0.0.2".parse().unwrap(), "127.0.0.3".parse().unwrap()],
        logins: vec![("u".into(), "p".into())],
    };
    Swarm::new(target).unwrap()
}

fn plan(count: u32) -> OpenPlan {
    OpenPlan { prefix: "t-".into(), count, rate: None, opening_max: 3, clean: true, topics: Topics::Events }
}

#[test]
fn everything_published_is_acknowledged() {
    let mut swarm = swarm();
    let opened = swarm.open(&plan(8)).unwrap();
    assert_eq!((opened.opened, opened.failed, swarm.len()), (8, 0, 8));
    swarm.subscribe(1, |number| format!("a/{number}")).unwrap();
    let fast =
        PublishPlan { duration: Duration::from_millis(200), qos: 1, window: 4, burst: BURST, rate: None };
    let sent = swarm.publish(&fast).unwrap();
    assert!(sent.published > 100, "{}", sent.published);
    assert_eq!((sent.acknowledged, sent.latency_us.len()), (sent.published, sent.published));
    let sent = swarm.publish(&PublishPlan { qos: 0, ..fast.clone() }).unwrap();
    assert!(sent.published > 100 && sent.acknowledged == 0);
    let paced = PublishPlan { rate: Some(1000.0), ..fast };
    let sent = swarm.publish(&paced).unwrap();
    assert!((100..=200).contains(&sent.published), "{}", sent.published);
    assert_eq!(sent.acknowledged, sent.published);
    swarm.leave().unwrap();
    assert!(swarm.is_empty());
}

#[test]
fn a_storm_leaves_nobody() {
    let mut swarm = swarm();
    let stormed = swarm.storm(&OpenPlan { rate: Some(500.0), ..plan(50) }).unwrap();
    assert_eq!((stormed.opened, stormed.latency_us.len(), swarm.len()), (50, 50, 0));
    assert!(stormed.elapsed >= Duration::from_millis(90));
    let left = swarm.leave_sessions(&plan(7), |number| format!("s/{number}")).unwrap();
    assert_eq!((left.opened, swarm.len()), (7, 0));
}

#[test]
fn nobody_there_is_counted() {
    let target = SwarmTarget {
        address: "127.0.0.1:1".parse().unwrap(),
        tls: None,
        sources: Vec::new(),
        logins: Vec::new(),
    };
    let opened = Swarm::new(target).unwrap().open(&plan(2)).unwrap();
    assert_eq!((opened.opened, opened.failed), (0, 2));
    assert!(opened.failure.is_some());
}
