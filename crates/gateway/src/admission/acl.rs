//! Rules about topics: who may, or may not, publish and subscribe where.
//!
//! A rule is a subject (everybody, a role, one device), an action, an effect and an MQTT filter. Levels of the filter may be
//! `{device_id}`, `{client_id}`, `{username}` or `{realm}`: they stand for the client's own, as one whole level, and for
//! nothing where the client has none. So a client id of `#` is a level that is called `#`, not a wildcard.
//!
//! - A rule that denies is stronger than any that allows; the order of rules means nothing.
//! - What no rule speaks of is decided by the role.
//! - An administrator is bound by no rule, so that nobody locks himself out.
//! - A device never publishes as another device, whatever is allowed.
//! - To subscribe, one allowing rule must cover the whole of the asked filter, and none that denies may share a topic with it:
//!   no wildcard gets around a rule.
//!
//! Rules are compiled once; a check allocates nothing.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use thiserror::Error;

use super::{Principal, Role};
use crate::mqtt::TopicLimits;

/// Filters of rules keep to these limits.
const LIMITS: TopicLimits = TopicLimits { bytes_max: 1024, levels_max: 32 };

/// Whom a rule is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Subject {
    /// Every client but administrators.
    All,
    /// All with the role reader.
    Readers,
    /// All devices.
    Devices,
    /// One device.
    Device(Arc<str>),
}

/// What a rule is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Publishing.
    Publish,
    /// Subscribing.
    Subscribe,
    /// Both.
    Any,
}

/// What a rule says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    /// It may.
    Allow,
    /// It may not.
    Deny,
}

/// A word that is not one of a rule's.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum BadAclRule {
    /// Not one of the words for this field.
    #[error("there is no {what} {word:?}; use {known}")]
    Word {
        /// Which field.
        what: &'static str,
        /// What was given.
        word: String,
        /// What may be given.
        known: &'static str,
    },
    /// Not an MQTT filter.
    #[error("{0:?} is not an MQTT filter")]
    Filter(String),
    /// A placeholder that is none.
    #[error(
        "the level {0:?} is no placeholder; there are {{device_id}}, {{client_id}}, {{username}} and {{realm}}, each a whole level"
    )]
    Placeholder(String),
}

impl FromStr for Action {
    type Err = BadAclRule;
    fn from_str(word: &str) -> Result<Self, BadAclRule> {
        match word {
            "publish" => Ok(Self::Publish),
            "subscribe" => Ok(Self::Subscribe),
            "any" => Ok(Self::Any),
            _ => Err(bad_word("action", word, "publish, subscribe or any")),
        }
    }
}

impl FromStr for Effect {
    type Err = BadAclRule;
    fn from_str(word: &str) -> Result<Self, BadAclRule> {
        match word {
            "allow" => Ok(Self::Allow),
            "deny" => Ok(Self::Deny),
            _ => Err(bad_word("effect", word, "allow or deny")),
        }
    }
}

impl FromStr for Subject {
    type Err = BadAclRule;
    fn from_str(word: &str) -> Result<Self, BadAclRule> {
        match (word, word.strip_prefix("device:")) {
            ("all", _) => Ok(Self::All),
            ("readers", _) => Ok(Self::Readers),
            ("devices", _) => Ok(Self::Devices),
            (_, Some(id)) if !id.is_empty() => Ok(Self::Device(id.into())),
            _ => Err(bad_word("subject", word, "all, readers, devices or device:ID")),
        }
    }
}

fn bad_word(what: &'static str, word: &str, known: &'static str) -> BadAclRule {
    BadAclRule::Word { what, word: word.to_owned(), known }
}

/// One rule, compiled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AclRule {
    subject: Subject,
    action: Action,
    effect: Effect,
    levels: Box<[Level]>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Level {
    /// `+`
    One,
    /// `#`
    Rest,
    Named(Box<str>),
    Own(Own),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Own {
    DeviceId,
    ClientId,
    Username,
    Realm,
}

impl Level {
    fn parse(level: &str) -> Result<Self, BadAclRule> {
        Ok(match level {
            "+" => Self::One,
            "#" => Self::Rest,
            "{device_id}" => Self::Own(Own::DeviceId),
            "{client_id}" => Self::Own(Own::ClientId),
            "{username}" => Self::Own(Own::Username),
            "{realm}" => Self::Own(Own::Realm),
            level if level.contains(['{', '}']) => return Err(BadAclRule::Placeholder(level.to_owned())),
            level => Self::Named(level.into()),
        })
    }

    fn is_wild(&self) -> bool {
        matches!(self, Self::One | Self::Rest)
    }

    /// Whether it is this one level, which is no wildcard.
    fn is(&self, level: &str, client: &Principal) -> bool {
        match self {
            Self::One => true,
            Self::Rest => false,
            Self::Named(name) => **name == *level,
            Self::Own(own) => own.of(client) == Some(level).filter(|level| !level.is_empty()),
        }
    }
}

impl Own {
    fn of(self, client: &Principal) -> Option<&str> {
        match (self, &client.role) {
            (Self::DeviceId, Role::Device(id)) => Some(id),
            (Self::DeviceId, _) => None,
            (Self::ClientId, _) => client.client_id.as_deref(),
            (Self::Username, _) => client.username.as_deref(),
            (Self::Realm, _) => Some(&client.realm),
        }
    }
}

impl AclRule {
    /// Compiles a rule.
    ///
    /// # Errors
    /// The filter is not one, or has an unknown placeholder.
    pub fn new(subject: Subject, action: Action, effect: Effect, filter: &str) -> Result<Self, BadAclRule> {
        if LIMITS.filter(filter).is_none_or(|parsed| parsed.group.is_some()) {
            return Err(BadAclRule::Filter(filter.to_owned()));
        }
        let levels = filter.split('/').map(Level::parse).collect::<Result<_, _>>()?;
        Ok(Self { subject, action, effect, levels })
    }

    fn concerns(&self, client: &Principal, action: Action) -> bool {
        let subject = match (&self.subject, &client.role) {
            (_, Role::Admin) => false,
            (Subject::All, _) | (Subject::Readers, Role::Reader) | (Subject::Devices, Role::Device(_)) => {
                true
            }
            (Subject::Device(id), Role::Device(own)) => id == own,
            _ => false,
        };
        subject && (self.action == action || self.action == Action::Any)
    }

    /// Whether every topic that `filter`, which may be a topic, matches is one of the rule's.
    fn covers(&self, filter: &str, client: &Principal) -> bool {
        if filter.starts_with('$') && self.levels.first().is_some_and(Level::is_wild) {
            return false;
        }
        let mut asked = filter.split('/');
        for level in &self.levels {
            match (level, asked.next()) {
                // `a/#` is also `a`.
                (Level::Rest, _) => return true,
                (_, None | Some("#")) => return false,
                (Level::One, Some(_)) => {}
                (_, Some("+")) => return false,
                (level, Some(name)) if level.is(name, client) => {}
                _ => return false,
            }
        }
        asked.next().is_none()
    }

    /// Whether there is a topic that both the rule and `filter` match.
    fn meets(&self, filter: &str, client: &Principal) -> bool {
        let mut asked = filter.split('/').peekable();
        let reserved = |name: &str| name.starts_with('$');
        match (self.levels.first(), asked.peek()) {
            (Some(level), Some(&name)) if level.is_wild() && reserved(name) => return false,
            (Some(Level::Named(name)), Some(&("+" | "#"))) if reserved(name) => return false,
            _ => {}
        }
        for level in &self.levels {
            match (level, asked.next()) {
                (Level::Rest, _) | (_, Some("#")) => return true,
                (_, None) => return false,
                // A placeholder of which the client has nothing stands for no topic.
                (Level::Own(own), Some("+")) if own.of(client).is_none_or(str::is_empty) => return false,
                (_, Some("+")) => {}
                (level, Some(name)) if level.is(name, client) => {}
                _ => return false,
            }
        }
        // `a` meets `a/#`.
        matches!((asked.next(), asked.next()), (None | Some("#"), None))
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Publish => "publish",
            Self::Subscribe => "subscribe",
            Self::Any => "any",
        })
    }
}

/// The rules of a realm.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Acl {
    rules: Vec<AclRule>,
}

impl FromIterator<AclRule> for Acl {
    fn from_iter<I: IntoIterator<Item = AclRule>>(rules: I) -> Self {
        Self { rules: rules.into_iter().collect() }
    }
}

impl Acl {
    /// Whether `client` may publish to `topic`; see [`super::Admission::may_publish`].
    #[must_use]
    pub fn may_publish(&self, client: &Principal, topic: &str, device_id: Option<&str>) -> bool {
        let foreign = match (&client.role, device_id) {
            (Role::Device(own), Some(device_id)) => **own != *device_id,
            _ => false,
        };
        if foreign {
            return false;
        }
        let rules = || self.rules.iter().filter(|rule| rule.concerns(client, Action::Publish));
        let said = |effect| rules().any(|rule| rule.effect == effect && rule.covers(topic, client));
        !said(Effect::Deny) && (client.may_publish_by_role(topic, device_id) || said(Effect::Allow))
    }

    /// Whether `client` may subscribe to `filter`; see [`super::Admission::may_subscribe`].
    #[must_use]
    pub fn may_subscribe(&self, client: &Principal, filter: &str) -> bool {
        let rules = || self.rules.iter().filter(|rule| rule.concerns(client, Action::Subscribe));
        let denied = rules().any(|rule| rule.effect == Effect::Deny && rule.meets(filter, client));
        let allowed = || rules().any(|rule| rule.effect == Effect::Allow && rule.covers(filter, client));
        !denied && (client.may_subscribe_by_role(filter) || allowed())
    }
}

#[cfg(test)]
mod tests;
