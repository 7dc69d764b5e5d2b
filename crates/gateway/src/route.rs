//! From a topic to a device and a type: `devices/{device_id}/{type}` by default.
//!
//! A rule's topic has as many levels as the topics it fits. A level is a word, which must be the same; `{device_id}` or
//! `{type}`, which are taken from there; or `+`, which may be anything. A rule without `{type}` names the type itself.

use catchment_types::{BadName, check_device_id, check_event_type};
use serde::{Deserialize, Serialize};
use thiserror::Error;

/// How topics of one shape become events.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RouteRule {
    /// The topic's shape, for instance `plant/+/{device_id}/{type}`.
    pub topic: String,
    /// The type, where the topic does not tell it.
    #[serde(rename = "type", default, skip_serializing_if = "Option::is_none")]
    pub event_type: Option<String>,
}

impl Default for RouteRule {
    fn default() -> Self {
        Self { topic: "devices/{device_id}/{type}".into(), event_type: None }
    }
}

/// A rule that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum BadRoute {
    /// `{device_id}` is missing or stands there twice.
    #[error("{topic:?} must have the level {{device_id}} exactly once")]
    DeviceId {
        /// The rule's topic.
        topic: String,
    },
    /// No type, or two.
    #[error("{topic:?} must have the level {{type}} once, or be given a type, not both")]
    Type {
        /// The rule's topic.
        topic: String,
    },
    /// A level that is neither a word nor one of the three placeholders.
    #[error("{topic:?} has the level {level:?}; use a word, {{device_id}}, {{type}} or +")]
    Level {
        /// The rule's topic.
        topic: String,
        /// The level.
        level: String,
    },
    /// A type that cannot be one.
    #[error("{topic:?}: {name}")]
    TypeName {
        /// The rule's topic.
        topic: String,
        /// What is wrong with it.
        name: BadName,
    },
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Level {
    Word(Box<str>),
    DeviceId,
    Type,
    Any,
}

#[derive(Debug, Clone)]
struct Route {
    levels: Box<[Level]>,
    event_type: Box<str>,
}

/// Where a topic leads. Both are parts of the topic, or of the rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Routed<'a> {
    pub(crate) device_id: &'a str,
    pub(crate) event_type: &'a str,
}

/// All rules, in order.
#[derive(Debug, Clone)]
pub(crate) struct Routes(Vec<Route>);

impl Routes {
    pub(crate) fn new(rules: &[RouteRule]) -> Result<Self, BadRoute> {
        rules.iter().map(compile).collect::<Result<_, _>>().map(Self)
    }

    /// The device and type of a topic; `Ok(None)` when no rule fits.
    pub(crate) fn find<'a>(&'a self, topic: &'a str) -> Result<Option<Routed<'a>>, BadName> {
        let Some(routed) = self.0.iter().find_map(|route| route.fit(topic)) else { return Ok(None) };
        check_device_id(routed.device_id)?;
        check_event_type(routed.event_type)?;
        Ok(Some(routed))
    }
}

impl Route {
    fn fit<'a>(&'a self, topic: &'a str) -> Option<Routed<'a>> {
        let mut routed = Routed { device_id: "", event_type: &self.event_type };
        let mut found = topic.split('/');
        for level in &self.levels {
            let text = found.next()?;
            match level {
                Level::Word(word) if **word == *text => {}
                Level::Word(_) => return None,
                Level::DeviceId => routed.device_id = text,
                Level::Type => routed.event_type = text,
                Level::Any => {}
            }
        }
        found.next().is_none().then_some(routed)
    }
}

fn compile(rule: &RouteRule) -> Result<Route, BadRoute> {
    let topic = || rule.topic.clone();
    let level = |text: &str| match text {
        "{device_id}" => Ok(Level::DeviceId),
        "{type}" => Ok(Level::Type),
        "+" => Ok(Level::Any),
        word if word.contains(['+', '#', '{', '}', '\0']) => {
            Err(BadRoute::Level { topic: topic(), level: word.into() })
        }
        word => Ok(Level::Word(word.into())),
    };
    let levels = rule.topic.split('/').map(level).collect::<Result<Box<[_]>, _>>()?;
    let count = |wanted: &Level| levels.iter().filter(|level| *level == wanted).count();
    if count(&Level::DeviceId) != 1 {
        return Err(BadRoute::DeviceId { topic: topic() });
    }
    if count(&Level::Type) + usize::from(rule.event_type.is_some()) != 1 {
        return Err(BadRoute::Type { topic: topic() });
    }
    let event_type = rule.event_type.as_deref().unwrap_or_default();
    if rule.event_type.is_some() {
        check_event_type(event_type).map_err(|name| BadRoute::TypeName { topic: topic(), name })?;
    }
    Ok(Route { event_type: event_type.into(), levels })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(topic: &str, event_type: Option<&str>) -> RouteRule {
        RouteRule { topic: topic.into(), event_type: event_type.map(Into::into) }
    }

    #[test]
    fn topics_lead_to_devices() {
        let rules = [RouteRule::default(), rule("plant/+/{device_id}", Some("telemetry"))];
        let routes = Routes::new(&rules).unwrap();
        let routed = |device_id, event_type| Ok(Some(Routed { device_id, event_type }));
        assert_eq!(routes.find("devices/d1/state"), routed("d1", "state"));
        assert_eq!(routes.find("plant/hall/d2"), routed("d2", "telemetry"));
        for other in ["devices/d1", "devices/d1/state/x", "Devices/d1/state", "/devices/d1/state"] {
            assert_eq!(routes.find(other), Ok(None), "{other}");
        }
        assert_eq!(routes.find("devices//state"), Err(BadName::Empty { what: "device id" }));
        assert!(routes.find("devices/d\u{7}/state").is_err());
    }

    #[test]
    fn bad_rules_are_refused() {
        let refused = |topic, event_type| Routes::new(&[rule(topic, event_type)]).unwrap_err().to_string();
        assert!(refused("a/{type}", None).contains("{device_id}"));
        assert!(refused("a/{device_id}", None).contains("{type}"));
        assert!(refused("{device_id}/{type}", Some("t")).contains("not both"));
        assert!(refused("{device_id}/#", Some("t")).contains("\"#\""));
        assert!(refused("{device_id}", Some("a/b")).contains("'/'"));
    }
}
