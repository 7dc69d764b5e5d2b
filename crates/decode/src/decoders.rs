//! The rules of all types, shared by the workers and changed while they run.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use foldhash::fast::FixedState;

use crate::{Decoder, DecoderRule, RuleError};

/// Rules by type, and the one for all other types. Holds only rules that work.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct RuleSet {
    default: DecoderRule,
    by_type: BTreeMap<String, DecoderRule>,
}

impl RuleSet {
    /// A set without any type's own rule.
    ///
    /// # Errors
    /// When the rule cannot work.
    pub fn new(default: DecoderRule) -> Result<Self, RuleError> {
        default.check()?;
        Ok(Self { default, by_type: BTreeMap::new() })
    }

    /// Sets a type's rule.
    ///
    /// # Errors
    /// When the rule cannot work; the set is unchanged then.
    pub fn insert(&mut self, event_type: &str, rule: DecoderRule) -> Result<(), RuleError> {
        rule.check()?;
        self.by_type.insert(event_type.to_owned(), rule);
        Ok(())
    }

    /// The rule that holds for a type.
    #[must_use]
    pub fn rule(&self, event_type: &str) -> &DecoderRule {
        self.by_type.get(event_type).unwrap_or(&self.default)
    }
}

/// The rules in force. Cheap to ask for changes.
#[derive(Debug, Default)]
pub struct Decoders {
    rules: RwLock<Arc<RuleSet>>,
    generation: AtomicU64,
}

impl Decoders {
    /// Starts with these rules.
    #[must_use]
    pub fn new(rules: RuleSet) -> Self {
        Self { rules: RwLock::new(Arc::new(rules)), generation: AtomicU64::new(0) }
    }

    /// Puts other rules in force; workers take them up before their next block of events.
    pub fn replace(&self, rules: RuleSet) {
        *self.rules.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(rules);
        self.generation.fetch_add(1, Ordering::Release);
    }

    /// Grows with each [`Decoders::replace`].
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    /// The rules in force now.
    #[must_use]
    pub fn rules(&self) -> Arc<RuleSet> {
        Arc::clone(&self.rules.read().unwrap_or_else(PoisonError::into_inner))
    }
}

/// One worker's decoders, made when a type is first seen. Types without a rule of their own share one decoder, so that
/// their number is bounded by the registry and not by what devices send.
#[derive(Debug)]
pub struct WorkerDecoders {
    source: Arc<Decoders>,
    generation: u64,
    default: Decoder,
    by_type: HashMap<String, Decoder, FixedState>,
}

impl WorkerDecoders {
    /// Decoders by the rules in force.
    #[must_use]
    pub fn new(source: Arc<Decoders>) -> Self {
        // The generation is read first: a change in between is then taken up once more, and none is missed.
        let generation = source.generation();
        let rules = source.rules();
        let by_type =
            rules.by_type.iter().map(|(name, rule)| (name.clone(), Decoder::from_checked(rule))).collect();
        Self { default: Decoder::from_checked(&rules.default), by_type, generation, source }
    }

    /// Takes up changed rules. To be called between blocks of events.
    pub fn refresh(&mut self) {
        if self.source.generation() != self.generation {
            *self = Self::new(Arc::clone(&self.source));
        }
    }

    /// The decoder of a type.
    pub fn get(&mut self, event_type: &str) -> &mut Decoder {
        // The common case costs no hashing.
        if self.by_type.is_empty() {
            return &mut self.default;
        }
        self.by_type.get_mut(event_type).unwrap_or(&mut self.default)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Format;

    #[test]
    fn changes_are_taken_up_on_refresh() {
        let shared = Arc::new(Decoders::default());
        let mut worker = WorkerDecoders::new(Arc::clone(&shared));
        assert_eq!(worker.get("state").rule().format, Format::Json);

        let mut rules = RuleSet::default();
        rules.insert("state", DecoderRule { format: Format::None, ..DecoderRule::default() }).unwrap();
        assert!(rules.insert("other", DecoderRule { depth_max: 0, ..DecoderRule::default() }).is_err());
        shared.replace(rules);
        assert_eq!(worker.get("state").rule().format, Format::Json);
        worker.refresh();
        assert_eq!(worker.get("state").rule().format, Format::None);
        assert_eq!(worker.get("other").rule().format, Format::Json);
    }
}
