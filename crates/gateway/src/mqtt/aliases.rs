//! Topic aliases that the server gives to a client which allows them (5.0, 3.3.2.3.4): the first topics that it is sent get
//! one each, for as long as its connection lasts. None is taken back, so that a connection of many topics costs no more
//! than the table.

use std::collections::HashMap;

use foldhash::fast::RandomState;

/// The aliases of one connection.
#[derive(Debug)]
pub(crate) struct Aliases {
    given: HashMap<Box<str>, u16, RandomState>,
    /// At most so many.
    max: u16,
}

/// How a topic may be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Alias {
    /// In full: there is no alias left.
    None,
    /// In full, with this new alias; [`Aliases::keep`] it once the packet is sent.
    New(u16),
    /// As this alias alone.
    Known(u16),
}

impl Aliases {
    /// None when the client allows none.
    pub(crate) fn new(max: u16) -> Option<Box<Self>> {
        (max > 0).then(|| Box::new(Self { given: HashMap::default(), max }))
    }

    /// How to send a topic.
    pub(crate) fn find(&self, topic: &str) -> Alias {
        match self.given.get(topic) {
            Some(&alias) => Alias::Known(alias),
            None => match u16::try_from(self.given.len()) {
                Ok(given) if given < self.max => Alias::New(given + 1),
                _ => Alias::None,
            },
        }
    }

    /// The client has been told a new alias.
    pub(crate) fn keep(&mut self, topic: &str, alias: u16) {
        self.given.insert(topic.into(), alias);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_topics_get_aliases() {
        assert!(Aliases::new(0).is_none());
        let mut aliases = Aliases::new(2).unwrap();
        assert_eq!(aliases.find("a"), Alias::New(1));
        assert_eq!(aliases.find("a"), Alias::New(1), "not before the packet is sent");
        aliases.keep("a", 1);
        aliases.keep("b", 2);
        assert_eq!((aliases.find("a"), aliases.find("b")), (Alias::Known(1), Alias::Known(2)));
        assert_eq!(aliases.find("c"), Alias::None);
    }
}
