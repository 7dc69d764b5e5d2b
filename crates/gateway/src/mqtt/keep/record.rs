//! What the journal says: one record a change of a session that is kept, or of the retained messages.
//!
//! A record is the unit that is there or not after a crash. What must hold together is therefore one record: a message with
//! all the queues it went into, its place among the retained ones, and the identifier that its publisher used for it.

use std::sync::Arc;

use catchment_types::Offset;

use super::wire::{Put, Take};
use crate::mqtt::codec::QoS;
use crate::mqtt::subscriptions::Wish;

/// Where to look in the event log for an event that may or may not have become durable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Proof {
    pub(crate) partition: u32,
    /// The event is here or later, if anywhere.
    pub(crate) from: Offset,
    /// Microseconds since 1970.
    pub(crate) received_at: i64,
    /// Of topic and payload.
    pub(crate) checksum: u32,
}

impl Proof {
    /// The checksum of an event.
    pub(crate) fn checksum(topic: &str, payload: &[u8]) -> u32 {
        crc32c::crc32c_append(crc32c::crc32c(topic.as_bytes()), payload)
    }
}

/// A QoS 2 message as its publisher knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Origin {
    pub(crate) session: u64,
    pub(crate) packet_id: u16,
    /// Given when the message counts only once its event is in the log.
    pub(crate) proof: Option<Proof>,
}

/// A queue that a message went into.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Queued {
    pub(crate) session: u64,
    /// Numbers the messages of a session; its packet identifier follows from it.
    pub(crate) seq: u64,
    pub(crate) qos: QoS,
    pub(crate) retain: bool,
    pub(crate) subscription_ids: Vec<u32>,
    /// The shared subscription that it came by, as a whole filter.
    pub(crate) shared: Option<Arc<str>>,
}

/// A record, borrowed from where it is encoded or decoded. Times are milliseconds since 1970.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Record<'a> {
    /// What came before does not count: everything is told anew from here.
    Reset,
    /// The server lived at this time.
    Clock { at_ms: i64 },
    /// A session begins.
    Opened { session: u64, realm: &'a str, client_id: &'a str, owner: &'a str, next_seq: u64 },
    /// A connection serves the session.
    Attached { session: u64, at_ms: i64, expiry_s: u64, will: Option<&'a [u8]> },
    /// It does so no more. `sent`: messages up to this number have been sent before.
    Detached { session: u64, at_ms: i64, expiry_s: u64, will_due_ms: Option<i64>, sent: u64 },
    /// The will was published.
    WillDone { session: u64 },
    /// The session is over.
    Ended { session: u64 },
    /// A subscription was made or replaced.
    Subscribed { session: u64, filter: &'a str, wish: Wish },
    /// A subscription was taken away.
    Unsubscribed { session: u64, filter: &'a str },
    /// A message, encoded by `Message::encode`.
    Published {
        realm: &'a str,
        retained: bool,
        origin: Option<Origin>,
        message: &'a [u8],
        queued: Vec<Queued>,
    },
    /// A QoS 2 message that went to no queue.
    Received(Origin),
    /// The event of a received message is in the log.
    Proven { session: u64, packet_id: u16 },
    /// The identifier of a received message is free again. If it was not proven, the message never was.
    Forgotten { session: u64, packet_id: u16 },
    /// A subscriber sent PUBREC.
    Released { session: u64, seq: u64 },
    /// A message has left the queue for good.
    Finished { session: u64, seq: u64 },
}

impl<'a> Record<'a> {
    /// Appends the record.
    pub(crate) fn encode(&self, into: &mut Vec<u8>) {
        let put = &mut Put(into);
        match self {
            Self::Reset => put.u8(0),
            Self::Clock { at_ms } => put.u8(1).i64(*at_ms),
            Self::Opened { session, realm, client_id, owner, next_seq } => {
                put.u8(2).u64(*session).bytes(realm.as_bytes()).bytes(client_id.as_bytes());
                put.bytes(owner.as_bytes()).u64(*next_seq)
            }
            Self::Attached { session, at_ms, expiry_s, will } => {
                put.u8(3).u64(*session).i64(*at_ms).u64(*expiry_s).option(*will, |put, will| {
                    put.bytes(will);
                })
            }
            Self::Detached { session, at_ms, expiry_s, will_due_ms, sent } => {
                put.u8(4).u64(*session).i64(*at_ms).u64(*expiry_s).u64(*sent).option(
                    *will_due_ms,
                    |put, due| {
                        put.i64(due);
                    },
                )
            }
            Self::WillDone { session } => put.u8(5).u64(*session),
            Self::Ended { session } => put.u8(6).u64(*session),
            Self::Subscribed { session, filter, wish } => put
                .u8(7)
                .u64(*session)
                .bytes(filter.as_bytes())
                .u8(wish.qos as u8)
                .u8(u8::from(wish.no_local) | u8::from(wish.retain_as_published) << 1)
                .u32(wish.subscription_id),
            Self::Unsubscribed { session, filter } => put.u8(8).u64(*session).bytes(filter.as_bytes()),
            Self::Published { realm, retained, origin, message, queued } => {
                // 15 is 9 with the shared subscriptions, which version 0.1 did not tell.
                let tells_shared = queued.iter().any(|queued| queued.shared.is_some());
                put.u8(if tells_shared { 15 } else { 9 }).bytes(realm.as_bytes()).u8((*retained).into());
                put.option(*origin, |put, origin| origin.put(put));
                put.bytes(message).u32(queued.len() as u32);
                for queued in queued {
                    queued.put(put);
                    if tells_shared {
                        put.option(queued.shared.as_deref(), |put, shared| {
                            put.bytes(shared.as_bytes());
                        });
                    }
                }
                put
            }
            Self::Received(origin) => {
                origin.put(put.u8(10));
                put
            }
            Self::Proven { session, packet_id } => put.u8(11).u64(*session).u16(*packet_id),
            Self::Forgotten { session, packet_id } => put.u8(12).u64(*session).u16(*packet_id),
            Self::Released { session, seq } => put.u8(13).u64(*session).u64(*seq),
            Self::Finished { session, seq } => put.u8(14).u64(*session).u64(*seq),
        };
    }

    /// The record in `bytes`; none when this version does not understand it.
    pub(crate) fn decode(bytes: &'a [u8]) -> Option<Self> {
        let take = &mut Take(bytes);
        Some(match take.u8()? {
            0 => Self::Reset,
            1 => Self::Clock { at_ms: take.i64()? },
            2 => Self::Opened {
                session: take.u64()?,
                realm: take.text()?,
                client_id: take.text()?,
                owner: take.text()?,
                next_seq: take.u64()?,
            },
            3 => Self::Attached {
                session: take.u64()?,
                at_ms: take.i64()?,
                expiry_s: take.u64()?,
                will: take.option(Take::bytes)?,
            },
            4 => Self::Detached {
                session: take.u64()?,
                at_ms: take.i64()?,
                expiry_s: take.u64()?,
                sent: take.u64()?,
                will_due_ms: take.option(Take::i64)?,
            },
            5 => Self::WillDone { session: take.u64()? },
            6 => Self::Ended { session: take.u64()? },
            7 => {
                let (session, filter, qos) = (take.u64()?, take.text()?, QoS::from_bits(take.u8()?)?);
                let (flags, subscription_id) = (take.u8()?, take.u32()?);
                let (no_local, retain_as_published) = (flags & 1 != 0, flags & 2 != 0);
                Self::Subscribed {
                    session,
                    filter,
                    wish: Wish { qos, no_local, retain_as_published, subscription_id },
                }
            }
            8 => Self::Unsubscribed { session: take.u64()?, filter: take.text()? },
            kind @ (9 | 15) => {
                let (realm, retained, origin) = (take.text()?, take.bool()?, take.option(Origin::take)?);
                let (message, count) = (take.bytes()?, take.u32()?);
                let queued = (0..count).map(|_| Queued::take(take, kind == 15)).collect::<Option<_>>()?;
                Self::Published { realm, retained, origin, message, queued }
            }
            10 => Self::Received(Origin::take(take)?),
            11 => Self::Proven { session: take.u64()?, packet_id: take.u16()? },
            12 => Self::Forgotten { session: take.u64()?, packet_id: take.u16()? },
            13 => Self::Released { session: take.u64()?, seq: take.u64()? },
            14 => Self::Finished { session: take.u64()?, seq: take.u64()? },
            _ => return None,
        })
    }
}

impl Origin {
    fn put(self, put: &mut Put<'_>) {
        put.u64(self.session).u16(self.packet_id).option(self.proof, |put, proof| {
            put.u32(proof.partition).u64(proof.from).i64(proof.received_at).u32(proof.checksum);
        });
    }

    fn take(take: &mut Take<'_>) -> Option<Self> {
        let (session, packet_id) = (take.u64()?, take.u16()?);
        let proof = take.option(|take| {
            let (partition, from) = (take.u32()?, take.u64()?);
            Some(Proof { partition, from, received_at: take.i64()?, checksum: take.u32()? })
        })?;
        Some(Self { session, packet_id, proof })
    }
}

impl Queued {
    fn put(&self, put: &mut Put<'_>) {
        put.u64(self.session).u64(self.seq).u8(self.qos as u8 | u8::from(self.retain) << 2);
        put.u32(self.subscription_ids.len() as u32);
        for id in &self.subscription_ids {
            put.u32(*id);
        }
    }

    fn take(take: &mut Take<'_>, tells_shared: bool) -> Option<Self> {
        let (session, seq, flags) = (take.u64()?, take.u64()?, take.u8()?);
        let count = take.u32()?;
        let subscription_ids = (0..count).map(|_| take.u32()).collect::<Option<_>>()?;
        let (qos, retain) = (QoS::from_bits(flags & 3)?, flags & 4 != 0);
        let shared = if tells_shared { take.option(Take::text)?.map(Into::into) } else { None };
        Some(Self { session, seq, qos, retain, subscription_ids, shared })
    }
}
