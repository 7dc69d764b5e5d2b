//! From a topic to a device, a type and tags: `devices/{device_id}/{type}` by default.
//!
//! A route's topic is a template, level by level:
//!
//! | level | fits | gives |
//! | --- | --- | --- |
//! | `city` | this word | |
//! | `{device_id}`, `{type}` | any one level | the device, the type |
//! | `{area}`, any other name | any one level | the tag `area` |
//! | `{rest...}`, any name, last | one level or more | the tag `rest` |
//! | `+`; `#` last | any one level; one or more | |
//!
//! A route without `{device_id}` or `{type}` names the device or the type itself, and may have tags of its own. The most
//! specific route counts, whatever the order they were given in: at each level from the left a word goes before a
//! placeholder, and that before a rest. Two routes of the same shape are therefore a mistake, and refused.

mod book;
mod template;
mod tree;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use catchment_types::{BadName, check_device_id, check_event_type};
use serde::{Deserialize, Serialize};
use thiserror::Error;

pub(crate) use book::{ListedRoute, RouteBook, RouteChangeError};
pub use book::{RouteStore, RouteStoreError};
use template::{Level, levels_of};
use tree::Tree;

/// Most routes.
pub(crate) const ROUTES_MAX: usize = 10_000;
/// Most bytes of the tags of one event, as JSON.
const TAGS_BYTES_MAX: usize = 4096;

/// How topics of one shape become events.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RouteRule {
    /// The topic's shape, for instance `city/{area}/traffic/{device_id}`.
    pub topic: String,
    /// The type, where the topic does not tell it.
    #[serde(rename = "type", default, skip_serializing_if = "Option::is_none")]
    pub event_type: Option<String>,
    /// The device, where the topic does not tell it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device_id: Option<String>,
    /// Tags that all events of the route get, besides those of the topic.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub tags: BTreeMap<String, String>,
}

impl Default for RouteRule {
    fn default() -> Self {
        Self::of("devices/{device_id}/{type}")
    }
}

impl RouteRule {
    /// A route that takes everything from the topic.
    #[must_use]
    pub fn of(topic: &str) -> Self {
        Self { topic: topic.to_owned(), event_type: None, device_id: None, tags: BTreeMap::new() }
    }

    /// Checks it by itself.
    ///
    /// # Errors
    /// Says what is wrong, where, and what to write instead.
    pub fn check(&self) -> Result<(), BadRoute> {
        Route::compile(self).map(drop)
    }
}

/// A route that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{topic:?}: {what}{}", .at.map(|at| format!(", at byte {at}")).unwrap_or_default())]
pub struct BadRoute {
    /// The route's topic.
    pub topic: String,
    /// What is wrong.
    pub what: String,
    /// Where in the topic, in bytes from 0, if it is a place.
    pub at: Option<usize>,
    /// What to write instead.
    pub hint: &'static str,
}

/// A route, ready for use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Route {
    topic: Box<str>,
    levels: Box<[Level]>,
    device_id: Box<str>,
    event_type: Box<str>,
    /// The fixed tags as JSON members: `"site":"lyon"`.
    fixed_tags: Box<str>,
    has_tags: bool,
}

/// Where a topic leads. Everything is a part of the topic, or of the route.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Routed<'a> {
    pub(crate) device_id: &'a str,
    pub(crate) event_type: &'a str,
    route: &'a Route,
    topic: &'a str,
}

/// Why a topic that a route takes cannot become an event.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub(crate) enum Unroutable {
    /// What stands for the device or the type cannot be one.
    #[error("{0}")]
    Name(#[from] BadName),
    /// The tags are too long.
    #[error("the tags have more than {TAGS_BYTES_MAX} bytes")]
    Tags,
}

/// All routes.
#[derive(Debug, Clone, Default)]
pub(crate) struct Routes {
    routes: Vec<Route>,
    tree: Tree,
}

impl Routes {
    pub(crate) fn new(rules: &[RouteRule]) -> Result<Self, BadRoute> {
        let mut routes = Self::default();
        for rule in rules {
            routes.add(Route::compile(rule)?)?;
        }
        Ok(routes)
    }

    fn add(&mut self, route: Route) -> Result<(), BadRoute> {
        let bad = |what: String, hint| BadRoute { topic: route.topic.to_string(), what, at: None, hint };
        if self.routes.len() >= ROUTES_MAX {
            return Err(bad(
                format!("there are {ROUTES_MAX} routes already"),
                "remove routes that nobody uses",
            ));
        }
        if let Err(other) = self.tree.insert(&route.levels, self.routes.len()) {
            let what = format!("fits the same topics as {:?}", self.routes[other].topic);
            return Err(bad(what, "remove that one first, or make one of them more specific"));
        }
        self.routes.push(route);
        Ok(())
    }

    /// Where a topic leads; `Ok(None)` when no route takes it. Allocates nothing.
    pub(crate) fn find<'a>(&'a self, topic: &'a str) -> Result<Option<Routed<'a>>, Unroutable> {
        match self.tree.find(topic) {
            Some(at) => self.routes[at].apply(topic).map(Some),
            None => Ok(None),
        }
    }
}

impl Route {
    fn compile(rule: &RouteRule) -> Result<Self, BadRoute> {
        let bad = |what: String, at, hint| BadRoute { topic: rule.topic.clone(), what, at, hint };
        let levels = levels_of(&rule.topic)?;
        let has = |wanted: &Level| levels.contains(wanted);
        match (has(&Level::DeviceId), &rule.device_id) {
            (true, Some(_)) => {
                return Err(bad(
                    "names the device twice".into(),
                    None,
                    "leave either {device_id} or device_id away",
                ));
            }
            (false, None) => {
                return Err(bad(
                    "does not tell the device".into(),
                    None,
                    "put {device_id} in the place of a level, or give device_id",
                ));
            }
            (false, Some(device_id)) => check_device_id(device_id)
                .map_err(|name| bad(name.to_string(), None, "choose another device_id"))?,
            (true, None) => {}
        }
        match (has(&Level::Type), &rule.event_type) {
            (true, Some(_)) => {
                return Err(bad("names the type twice".into(), None, "leave either {type} or type away"));
            }
            (false, None) => {
                return Err(bad(
                    "does not tell the type".into(),
                    None,
                    "put {type} in the place of a level, or give a type",
                ));
            }
            (false, Some(event_type)) => check_event_type(event_type)
                .map_err(|name| bad(name.to_string(), None, "choose another type"))?,
            (true, None) => {}
        }
        let names = levels.iter().filter_map(Level::tag);
        if let Some(name) = names.clone().find(|name| rule.tags.contains_key(*name)) {
            return Err(bad(
                format!("has the tag {name:?} twice"),
                None,
                "leave it away either in topic or in tags",
            ));
        }
        let mut fixed_tags = String::new();
        for (name, value) in &rule.tags {
            push_member(&mut fixed_tags, name, value);
        }
        if fixed_tags.len() > TAGS_BYTES_MAX / 2 {
            return Err(bad(format!("has tags of {} bytes", fixed_tags.len()), None, "use shorter tags"));
        }
        Ok(Self {
            has_tags: !fixed_tags.is_empty() || names.count() > 0,
            topic: rule.topic.as_str().into(),
            device_id: rule.device_id.as_deref().unwrap_or_default().into(),
            event_type: rule.event_type.as_deref().unwrap_or_default().into(),
            fixed_tags: fixed_tags.into(),
            levels,
        })
    }

    /// The parts of a topic that this route fits.
    fn apply<'a>(&'a self, topic: &'a str) -> Result<Routed<'a>, Unroutable> {
        let mut routed =
            Routed { device_id: &self.device_id, event_type: &self.event_type, route: self, topic };
        for (level, text) in self.levels.iter().zip(topic.split('/')) {
            match level {
                Level::DeviceId => routed.device_id = text,
                Level::Type => routed.event_type = text,
                _ => {}
            }
        }
        check_device_id(routed.device_id)?;
        check_event_type(routed.event_type)?;
        Ok(routed)
    }
}

impl Routed<'_> {
    /// The route's topic.
    pub(crate) fn template(&self) -> &str {
        &self.route.topic
    }

    /// Writes the tags as a JSON object in the place of what `into` holds; nothing when the route has none.
    pub(crate) fn write_tags(&self, into: &mut String) -> Result<(), Unroutable> {
        into.clear();
        if !self.route.has_tags {
            return Ok(());
        }
        into.push('{');
        into.push_str(&self.route.fixed_tags);
        let mut rest = self.topic;
        for level in &self.route.levels {
            let (text, after) = rest.split_once('/').unwrap_or((rest, ""));
            match level {
                Level::Tag(name) => push_member(into, name, text),
                Level::RestTag(name) => push_member(into, name, rest),
                _ => {}
            }
            rest = after;
        }
        into.push('}');
        if into.len() > TAGS_BYTES_MAX {
            into.clear();
            return Err(Unroutable::Tags);
        }
        Ok(())
    }
}

/// Appends `"name":"value"` to the members of a JSON object.
fn push_member(into: &mut String, name: &str, value: &str) {
    if !matches!(into.as_bytes().last(), None | Some(b'{')) {
        into.push(',');
    }
    push_json_text(into, name);
    into.push(':');
    push_json_text(into, value);
}

fn push_json_text(into: &mut String, text: &str) {
    into.push('"');
    for character in text.chars() {
        match character {
            '"' => into.push_str("\\\""),
            '\\' => into.push_str("\\\\"),
            control if control < ' ' => into.push_str(&format!("\\u{:04x}", u32::from(control))),
            other => into.push(other),
        }
    }
    into.push('"');
}
