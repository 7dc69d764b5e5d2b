//! Where a message has been: the user property `catchment-via` of MQTT 5.0, one for each bridge that it went through. By it a
//! message that comes back through others, whatever brokers lie between, is known and goes no further.
//!
//! A value is the instance (of the data folder, made once) and the direction, `in` or `out`: what came in by a bridge may go
//! out by another, once. Instances of Catchment tell each other their names in CONNECT and CONNACK, so that what came from one
//! (`from`) does not go back to it.

use crate::mqtt::{VIA, user_properties, user_property};

/// The mark that bridges of one instance and one direction leave on a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Stamp {
    instance: Box<str>,
    /// Whether messages that the other direction has marked are known, too.
    either: bool,
    value: Box<str>,
    encoded: Box<[u8]>,
}

impl Stamp {
    /// On what comes in: it must not have been here at all.
    pub(super) fn inward(instance: &str) -> Self {
        Self::new(instance, "in", true)
    }

    /// On what goes out: it must not have gone out before.
    pub(super) fn outward(instance: &str) -> Self {
        Self::new(instance, "out", false)
    }

    fn new(instance: &str, direction: &str, either: bool) -> Self {
        let value = format!("{instance}:{direction}");
        let mut encoded = Vec::new();
        user_property(&mut encoded, VIA, &value);
        Self { instance: instance.into(), either, value: value.into(), encoded: encoded.into() }
    }

    /// The same for a connection to another instance of Catchment.
    pub(crate) fn from(mut self, other: &str) -> Self {
        let mut encoded = self.encoded.into_vec();
        user_property(&mut encoded, VIA, &format!("{other}:from"));
        self.encoded = encoded.into();
        self
    }

    /// Whose it is.
    pub(crate) fn instance(&self) -> &str {
        &self.instance
    }

    /// The property, to be put behind others.
    pub(crate) fn encoded(&self) -> &[u8] {
        &self.encoded
    }

    /// Whether it is among these properties.
    pub(crate) fn is_on(&self, properties: &[u8]) -> bool {
        let mut found = false;
        if self.either {
            return has_been_at(properties, &self.instance);
        }
        user_properties(properties, |name, value| found |= name == VIA && value == &*self.value);
        found
    }
}

/// Whether a message with these properties has been at an instance.
pub(super) fn has_been_at(properties: &[u8], wanted: &str) -> bool {
    let mut found = false;
    user_properties(properties, |name, value| {
        let instance = value.split_once(':').map_or(value, |(instance, _)| instance);
        found |= name == VIA && instance == wanted;
    });
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stamps_are_found_again() {
        let (inward, outward) = (Stamp::inward("a1"), Stamp::outward("a1"));
        let mut properties = Vec::new();
        user_property(&mut properties, "other", "a1:in");
        assert!(!inward.is_on(&properties) && !outward.is_on(&properties));
        properties.extend_from_slice(inward.encoded());
        assert!(inward.is_on(&properties) && !outward.is_on(&properties));
        properties.extend_from_slice(outward.encoded());
        assert!(outward.is_on(&properties) && !Stamp::inward("a2").is_on(&properties));
        let known = inward.from("a2");
        assert!(has_been_at(known.encoded(), "a1") && has_been_at(known.encoded(), "a2"));
    }
}
