//! Going on from what was kept: asks the log what became of the messages that were on their way to it, then puts sessions,
//! subscriptions and retained messages back.

use std::collections::HashMap;
use std::future::Future;
use std::sync::Arc;

use catchment_eventlog::EventLog;
use catchment_types::Timestamp;

use super::{Image, Keeper, Proof, Record};
use crate::mqtt::broker::Broker;
use crate::mqtt::message::{Message, SERVER};

/// Bytes of events that are looked through at once.
const READ_BYTES: usize = 4 << 20;

/// Decides for every received message that was on its way to the log whether it counts. `redo` gives one to the log again.
pub(crate) async fn settle<F>(
    image: &mut Image,
    log: &dyn EventLog,
    keeper: &Keeper,
    redo: impl Fn(Box<str>, Message, Timestamp) -> F,
) where
    F: Future<Output = bool>,
{
    for (session, packet_id) in image.unproven() {
        let received = image.sessions.get(&session).and_then(|kept| kept.received.get(&packet_id));
        let Some(Some(unproven)) = received else { continue };
        let proof = unproven.proof;
        let message = unproven.message.as_deref().and_then(Message::decode);
        let counts = match (is_in_log(log, &proof).await, message) {
            (false, Some(message)) => {
                redo(unproven.realm.clone(), message, Timestamp(proof.received_at)).await
            }
            (is_in_log, _) => is_in_log,
        };
        if counts {
            image.prove(session, packet_id);
            keeper.append(&Record::Proven { session, packet_id });
        } else {
            image.forget(session, packet_id);
            keeper.append(&Record::Forgotten { session, packet_id });
        }
    }
}

/// Whether the log has an event. An error counts as no: the client sends again what was not acknowledged.
async fn is_in_log(log: &dyn EventLog, proof: &Proof) -> bool {
    let range = log.range(proof.partition);
    let mut from = proof.from.max(range.start);
    while from < range.end {
        let read = match log.read(proof.partition, from, READ_BYTES).await {
            Ok(read) => read,
            Err(error) => {
                tracing::warn!(%error, "the log does not tell whether a message of QoS 2 is in it; it is taken again");
                return false;
            }
        };
        let found = read.blocks.iter().flat_map(|block| block.events.iter()).any(|event| {
            event.received_at.as_micros() == proof.received_at
                && Proof::checksum(event.topic, event.payload) == proof.checksum
        });
        if found {
            return true;
        }
        if read.next <= from {
            return false;
        }
        from = read.next;
    }
    false
}

/// Puts back what an image holds into the brokers of its realms.
pub(crate) fn restore(image: &Image, keeper: &Arc<Keeper>, broker: impl Fn(&str) -> Arc<Broker>) {
    let mut decoded: HashMap<*const u8, Arc<Message>> = HashMap::new();
    let mut messages = |encoded: &Arc<[u8]>| {
        if let Some(message) = decoded.get(&encoded.as_ptr()) {
            return Some(Arc::clone(message));
        }
        let mut message = Message::decode(encoded)?;
        if !image.sessions.contains_key(&message.publisher) {
            // The session that published it is gone, and its identifier may be given anew.
            message.publisher = SERVER;
        }
        let message = Arc::new(message);
        decoded.insert(encoded.as_ptr(), Arc::clone(&message));
        Some(message)
    };
    for ((realm, topic), encoded) in &image.retained {
        let Some(message) = messages(encoded).filter(|message| message.expiry_left_s().is_ok()) else {
            continue;
        };
        if broker(realm).retained.set(topic, &message).is_err() {
            tracing::warn!(
                topic = &**topic,
                "no room for a retained message that was kept; raise retained_messages_max"
            );
        }
    }
    // Of several sessions of a client, which only damage leaves, the last one counts.
    let mut sessions: Vec<_> = image.sessions.iter().collect();
    sessions.sort_unstable_by_key(|(id, _)| **id);
    for (&id, kept) in sessions {
        broker(&kept.realm).restore(id, kept, image, &mut messages);
    }
    tracing::info!(
        sessions = image.sessions.len(),
        retained = image.retained.len(),
        waiting_bytes = keeper.waiting_bytes(),
        "sessions are restored"
    );
}
