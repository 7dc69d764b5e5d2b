//! The MQTT broker, 3.1.1 and 5.0 on one port.
//!
//! A connection is one task. It reads what there is, encodes every publish in it straight into the batches of the log,
//! submits them once, and remembers what it owes acknowledgements for; it reads on without waiting, until too much is on
//! its way. Acknowledgements go out in the order of the publishes, all that are due in one write, and never before
//! the log says that the event is durable.
//!
//! A message goes to live subscribers right after the log has taken it over, before it is durable: subscribers see it a
//! group commit earlier, and one that the log refused at once is not shown. A subscriber may thus see a message whose
//! publisher is then told that it could not be kept; what counts is the log.

mod acks;
mod aliases;
mod broker;
pub(crate) mod codec;
mod connection;
mod control;
mod delivery;
mod fanout;
mod far;
#[cfg(test)]
mod footprint;
mod handshake;
mod inbound;
mod keep;
mod lazy;
mod message;
mod output;
mod peers;
mod pool;
mod recall;
mod retained;
mod session;
mod signal;
mod standing;
mod subscriptions;
mod sys;
mod topics;
mod turn;
mod will;

pub(crate) use broker::Broker;
pub use codec::QoS;
pub(crate) use handshake::serve;
pub(crate) use keep::fuzz;
pub use keep::{KeepError, SessionStore};
pub(crate) use keep::{KeepMetrics, Keeper, Record as KeptRecord, restore, settle};
pub(crate) use message::{Message, SERVER};
pub(crate) use peers::{FromPeer, Interest, Outbox, hear, say, set as set_peers, take as take_from_peer};
pub use peers::{Learned, PeerMessage, RetainedChange};
pub(crate) use pool::Pool;
pub(crate) use retained::{Retained, RetainedLimits};
pub(crate) use signal::{RECHECK, SHUT_DOWN, Signal};
pub(crate) use subscriptions::{Matching, Subscriptions, Target, Wish};
pub(crate) use sys::publish_figures;
pub(crate) use topics::{Filter, TopicLimits};
pub(crate) use turn::Turn;
pub(crate) use will::Will;

pub(crate) use codec::{
    Answer, ConnectRequest, Framed, PublishProperties, VIA, Version, connect, decode_connack, frame,
    user_properties, user_property,
};
pub(crate) use far::{BRIDGE_SESSION, FarEnd, FarLink, reason_name, serve_far, settle_session};
pub(crate) use session::{QueueLimits, Session};
