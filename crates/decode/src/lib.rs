//! Payload to readings and rejects; pure: no I/O, no clock.
//!
//! A [`DecoderRule`] says how a type's payloads become readings. A [`Decoder`] is made from one rule and used by one
//! worker; it parses with SIMD into a flat tape, walks that tape once and hands each reading to a [`ReadingSink`],
//! without building trees or allocating for a single value. [`Decoders`] are the rules of all types, changed while
//! workers run.
//!
//! Whatever the payload is, decoding takes memory and time linear in its size, hands on at most `values_max` readings
//! and at most one reject for each [`RejectReason`](catchment_types::RejectReason).

mod decoder;
mod decoders;
mod glob;
mod parse;
mod rule;
mod sink;
mod time;
mod walk;

pub use decoder::{DecodedEvent, Decoder};
pub use decoders::{Decoders, RuleSet, WorkerDecoders};
pub use glob::Glob;
pub use rule::{ArrayRule, DecoderRule, Format, RuleError};
pub use sink::ReadingSink;
