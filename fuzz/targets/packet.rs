//! The decoder of packets, of both versions: nothing that is read does harm, what is handed on is what came, and mqtt-proto,
//! which knows nothing of us, says the same of every packet that both of us understand.
#![no_main]

use catchment_gateway::fuzzing::{Packet, decode, encode_again};
use libfuzzer_sys::fuzz_target;

#[path = "oracle.rs"]
mod oracle;

const PACKET_BYTES_MAX: usize = 1 << 16;

fuzz_target!(|bytes: &[u8]| {
    let Some((&first, mut rest)) = bytes.split_first() else { return };
    let is_v5 = first & 1 == 1;
    // A stream of packets, as a connection takes them off its buffer.
    for _ in 0..64 {
        let Ok(Some((packet, length))) = decode(rest, is_v5, PACKET_BYTES_MAX) else {
            oracle::check_refusal(rest, is_v5);
            return;
        };
        let (bytes, after) = rest.split_at(length);
        // Whether more follows changes nothing, and a packet that is cut is no packet.
        assert_eq!(decode(bytes, is_v5, PACKET_BYTES_MAX), Ok(Some((packet, length))));
        assert!(decode(&bytes[..length - 1], is_v5, PACKET_BYTES_MAX).is_ok_and(|found| found.is_none()));
        let Ok(Some((packet, _))) = decode(bytes, is_v5, PACKET_BYTES_MAX) else { return };
        oracle::compare(&packet, bytes, is_v5);
        check_handed_on(bytes, is_v5, &packet);
        rest = after;
    }
});

/// A message that is handed on says what it said; to a 3.1.1 subscriber, without its properties.
fn check_handed_on(bytes: &[u8], is_v5: bool, packet: &Packet<'_>) {
    let Packet::Publish(publish) = packet else {
        assert_eq!(encode_again(bytes, is_v5, is_v5), None);
        return;
    };
    for to_v5 in [false, true] {
        let again = encode_again(bytes, is_v5, to_v5).expect("a PUBLISH");
        let Ok(Some((Packet::Publish(found), length))) = decode(&again, to_v5, usize::MAX) else {
            panic!("what is handed on is not understood: {again:x?}");
        };
        assert_eq!(length, again.len());
        assert_eq!((found.topic, found.payload), (publish.topic, publish.payload));
        assert_eq!(
            (found.qos, found.retain, found.packet_id),
            (publish.qos, publish.retain, publish.packet_id)
        );
        if is_v5 && to_v5 {
            assert_eq!(&found, publish);
            assert_eq!(encode_again(&again, true, true), Some(again), "once more changes nothing");
        }
    }
}
