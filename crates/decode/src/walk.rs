//! From tape to readings: one pass, one reused name.

use std::fmt::Write as _;

use catchment_types::{Reading, RejectReason, Timestamp, Value};
use simd_json::{Node, StaticNode};

use crate::sink::{Excerpt, Rejects};
use crate::{ArrayRule, DecoderRule, Glob, ReadingSink, time};

/// Metric of a document that is one bare value.
const BARE_METRIC: &str = "value";

/// The walk over one event's document. Recursion is bounded: the parser refused what is deeper than the rule allows.
pub(crate) struct Walk<'a, S> {
    rule: &'a DecoderRule,
    received_at: Timestamp,
    name: &'a mut String,
    rejects: &'a mut Rejects,
    sink: &'a mut S,
    /// Time of the set of readings that is walked.
    time: Timestamp,
    /// The first set's own time.
    event_time: Option<Timestamp>,
    values: u32,
    readings: u32,
}

/// What the first look at a set's fields finds.
#[derive(Default)]
struct Heading<'t, 'i> {
    /// The field with the time, and which path it is.
    time: Option<(usize, &'t [Node<'i>])>,
    /// Whether there are both a latitude and a longitude.
    position: bool,
}

impl<'a, S: ReadingSink> Walk<'a, S> {
    pub(crate) fn new(
        rule: &'a DecoderRule,
        received_at: Timestamp,
        name: &'a mut String,
        rejects: &'a mut Rejects,
        sink: &'a mut S,
    ) -> Self {
        let time = received_at;
        Self { rule, received_at, name, rejects, sink, time, event_time: None, values: 0, readings: 0 }
    }

    /// The first set's own time, if it has one.
    pub(crate) fn event_time(&self) -> Option<Timestamp> {
        self.event_time
    }

    /// How many readings the sink took.
    pub(crate) fn readings(&self) -> u32 {
        self.readings
    }

    pub(crate) fn document(&mut self, tape: &[Node<'_>]) {
        self.name.clear();
        match tape.first() {
            Some(Node::Object { .. }) => self.set(tape),
            Some(Node::Array { .. }) if matches!(tape.get(1), Some(Node::Object { .. })) => {
                for (at, item) in items(tape).enumerate() {
                    if self.is_full() {
                        break;
                    }
                    match item.first() {
                        Some(Node::Object { .. }) => self.set(item),
                        _ => self.rejects.add(
                            RejectReason::Value,
                            format_args!("item {at} is not an object, as the first item is"),
                        ),
                    }
                }
            }
            _ => {
                self.name.push_str(BARE_METRIC);
                self.value(tape);
            }
        }
    }

    /// A set of readings: an object with a time of its own.
    fn set(&mut self, object: &[Node<'_>]) {
        let heading = self.heading(object);
        self.time = self.received_at;
        if let Some((path, value)) = heading.time {
            match self.checked_time(value) {
                Some(time) => {
                    self.time = time;
                    self.event_time.get_or_insert(time);
                }
                None => self.reject_time(path, value),
            }
        }
        let point = point(object);
        if let Some(coordinates) = point {
            self.position(coordinates);
        }
        let time_at = heading.time.map(|(_, value)| value.as_ptr());
        for (key, value) in fields(object) {
            if time_at == Some(value.as_ptr()) || (point.is_some() && is_point_field(key)) {
                continue;
            }
            let key = if heading.position { position_name(key).unwrap_or(key) } else { key };
            self.name.clear();
            self.name.push_str(key);
            match value.first() {
                // Only here can the time be deeper down.
                Some(Node::Object { .. }) => self.object(value, time_at),
                _ => self.value(value),
            }
        }
        self.name.clear();
    }

    fn heading<'t, 'i>(&self, object: &'t [Node<'i>]) -> Heading<'t, 'i> {
        let mut heading = Heading::default();
        let (mut latitude, mut longitude) = (false, false);
        for (key, value) in fields(object) {
            let best = heading.time.map_or(self.rule.timestamp.len(), |(path, _)| path);
            let found =
                self.rule.timestamp[..best].iter().position(|path| lookup(key, value, path).is_some());
            if let Some(path) = found {
                heading.time = lookup(key, value, &self.rule.timestamp[path]).map(|value| (path, value));
            }
            if matches!(value.first(), Some(node) if number(node).is_some()) {
                match position_name(key) {
                    Some("latitude") => latitude = true,
                    Some(_) => longitude = true,
                    None => {}
                }
            }
        }
        heading.position = latitude && longitude;
        heading
    }

    /// The time that a field tells, if it is one and not absurd.
    fn checked_time(&self, value: &[Node<'_>]) -> Option<Timestamp> {
        let latest = Timestamp(
            self.received_at
                .0
                .saturating_add(i64::from(self.rule.timestamp_ahead_seconds_max) * Timestamp::SECOND),
        );
        parse_time(value).filter(|time| (time::EARLIEST..=latest).contains(time))
    }

    #[cold]
    fn reject_time(&mut self, path: usize, value: &[Node<'_>]) {
        let field = Excerpt(&self.rule.timestamp[path]);
        match (parse_time(value), value.first()) {
            (Some(time), _) => self.rejects.add(
                RejectReason::Timestamp,
                format_args!("{field} is {time}, too far from the arrival at {}", self.received_at),
            ),
            (None, Some(Node::String(text))) => self
                .rejects
                .add(RejectReason::Timestamp, format_args!("{field} is {}, which is no time", Excerpt(text))),
            (None, _) => {
                self.rejects
                    .add(RejectReason::Timestamp, format_args!("{field} has a value that is no time"));
            }
        }
    }

    /// Any value, under the name as it stands.
    fn value(&mut self, nodes: &[Node<'_>]) {
        match nodes.first() {
            Some(Node::Object { .. }) => self.object(nodes, None),
            Some(Node::Array { .. }) => self.array(nodes),
            Some(Node::String(text)) => self.leaf(Value::Text(text)),
            Some(Node::Static(StaticNode::Bool(bool))) => self.leaf(Value::Bool(*bool)),
            Some(node) => {
                if let Some(number) = number(node) {
                    self.leaf(Value::Number(number));
                }
            }
            None => {}
        }
    }

    /// A nested object, without the field that is at `time_at`.
    fn object(&mut self, object: &[Node<'_>], time_at: Option<*const Node<'_>>) {
        let length = self.name.len();
        self.name.push('.');
        let point = point(object);
        if let Some(coordinates) = point {
            self.position(coordinates);
        }
        let prefix = self.name.len();
        for (key, value) in fields(object) {
            if self.is_full() {
                break;
            }
            if time_at == Some(value.as_ptr()) || (point.is_some() && is_point_field(key)) {
                continue;
            }
            self.name.truncate(prefix);
            self.name.push_str(key);
            match value.first() {
                Some(Node::Object { .. }) => self.object(value, time_at),
                _ => self.value(value),
            }
        }
        self.name.truncate(length);
    }

    fn array(&mut self, array: &[Node<'_>]) {
        let count = items(array).count();
        let length = self.name.len();
        match self.rule.arrays {
            ArrayRule::Ignore => {}
            ArrayRule::Length => {
                self.name.push_str(".length");
                self.leaf(Value::Number(count as f64));
            }
            ArrayRule::Index => {
                let kept = self.rule.array_items_max as usize;
                for (at, item) in items(array).take(kept).enumerate() {
                    if self.is_full() {
                        break;
                    }
                    self.name.truncate(length);
                    // Writing to a String cannot fail.
                    let _ = write!(self.name, ".{at}");
                    self.value(item);
                }
                self.name.truncate(length);
                if count > kept {
                    let name = Excerpt(self.name);
                    self.rejects.add(
                        RejectReason::TooManyValues,
                        format_args!("the array {name} has {count} items, at most {kept} are kept"),
                    );
                }
            }
        }
        self.name.truncate(length);
    }

    /// A GeoJSON point's coordinates, under names that begin as the name stands.
    fn position(&mut self, coordinates: &[Node<'_>]) {
        let length = self.name.len();
        for (name, item) in ["longitude", "latitude", "altitude"].into_iter().zip(items(coordinates)) {
            self.name.push_str(name);
            self.value(item);
            self.name.truncate(length);
        }
    }

    /// Whether no further value is taken.
    fn is_full(&self) -> bool {
        self.values > self.rule.values_max
    }

    fn leaf(&mut self, value: Value<'_>) {
        let matches = |globs: &[Glob], name: &str| globs.iter().any(|glob| glob.matches(name));
        if (!self.rule.include.is_empty() && !matches(&self.rule.include, self.name))
            || matches(&self.rule.exclude, self.name)
        {
            return;
        }
        if self.is_full() {
            return;
        }
        self.values += 1;
        if self.is_full() {
            let most = self.rule.values_max;
            self.rejects
                .add(RejectReason::TooManyValues, format_args!("the document has more than {most} values"));
            return;
        }
        let metric = match self.rule.rename.is_empty() {
            true => self.name.as_str(),
            false => self.rule.rename.get(self.name.as_str()).unwrap_or(self.name),
        };
        let bytes_max = self.rule.metric_bytes_max as usize;
        if metric.is_empty() || metric.len() > bytes_max || metric.bytes().any(|b| b.is_ascii_control()) {
            let excerpt = Excerpt(metric);
            self.rejects.add(
                RejectReason::MetricName,
                format_args!("the name {excerpt} is empty, has control characters or over {bytes_max} bytes"),
            );
            return;
        }
        if let Value::Text(text) = value
            && text.len() > self.rule.text_bytes_max as usize
        {
            let (name, length, most) = (Excerpt(metric), text.len(), self.rule.text_bytes_max);
            self.rejects.add(
                RejectReason::Value,
                format_args!("the text of {name} has {length} bytes, at most {most} are kept"),
            );
            return;
        }
        match self.sink.reading(Reading { timestamp: self.time, metric, value }) {
            Ok(()) => self.readings += 1,
            Err(reason) => self.rejects.add(reason, format_args!("the metric {}", Excerpt(metric))),
        }
    }
}

/// The number of nodes that a value takes up.
fn size(node: &Node<'_>) -> usize {
    match node {
        Node::Object { count, .. } | Node::Array { count, .. } => count + 1,
        _ => 1,
    }
}

/// The fields of the object that the nodes begin with.
fn fields<'t, 'i>(object: &'t [Node<'i>]) -> impl Iterator<Item = (&'i str, &'t [Node<'i>])> {
    let mut rest = object.get(1..object.first().map_or(0, size)).unwrap_or_default();
    std::iter::from_fn(move || {
        let (Node::String(key), after) = rest.split_first()? else { return None };
        let (value, after) = after.split_at_checked(size(after.first()?))?;
        rest = after;
        Some((*key, value))
    })
}

/// The items of the array that the nodes begin with.
fn items<'t, 'i>(array: &'t [Node<'i>]) -> impl Iterator<Item = &'t [Node<'i>]> {
    let mut rest = array.get(1..array.first().map_or(0, size)).unwrap_or_default();
    std::iter::from_fn(move || {
        let (item, after) = rest.split_at_checked(size(rest.first()?))?;
        rest = after;
        Some(item)
    })
}

fn number(node: &Node<'_>) -> Option<f64> {
    match node {
        Node::Static(StaticNode::F64(number)) => Some(*number),
        Node::Static(StaticNode::I64(number)) => Some(*number as f64),
        Node::Static(StaticNode::U64(number)) => Some(*number as f64),
        _ => None,
    }
}

/// The value at a dotted path that begins with this field. Keys may have dots themselves. `null` is no value.
fn lookup<'t, 'i>(key: &str, value: &'t [Node<'i>], path: &str) -> Option<&'t [Node<'i>]> {
    let rest = path.strip_prefix(key)?;
    if rest.is_empty() {
        return (!matches!(value.first(), Some(Node::Static(StaticNode::Null)))).then_some(value);
    }
    let rest = rest.strip_prefix('.')?;
    match value.first() {
        Some(Node::Object { .. }) => fields(value).find_map(|(key, value)| lookup(key, value, rest)),
        _ => None,
    }
}

/// The time that a value tells: a number, a text, or an NGSI property around one of these.
fn parse_time(value: &[Node<'_>]) -> Option<Timestamp> {
    match value.first()? {
        Node::String(text) => time::from_text(text),
        Node::Static(StaticNode::I64(number)) => time::from_integer(*number),
        Node::Static(StaticNode::U64(number)) => time::from_integer(i64::try_from(*number).ok()?),
        Node::Static(StaticNode::F64(number)) => time::from_float(*number),
        Node::Object { .. } => {
            let inner = fields(value).find(|(key, _)| matches!(*key, "value" | "@value"));
            inner.and_then(|(_, value)| parse_time(value))
        }
        _ => None,
    }
}

/// The coordinates, if the object is a GeoJSON point.
fn point<'t, 'i>(object: &'t [Node<'i>]) -> Option<&'t [Node<'i>]> {
    let (mut is_point, mut coordinates) = (false, None);
    for (key, value) in fields(object) {
        match (key, value.first()) {
            ("type", Some(Node::String("Point"))) => is_point = true,
            ("coordinates", Some(Node::Array { len: 2 | 3, count: 2 | 3 })) => coordinates = Some(value),
            _ => {}
        }
    }
    coordinates.filter(|value| is_point && value[1..].iter().all(|node| number(node).is_some()))
}

fn is_point_field(key: &str) -> bool {
    matches!(key, "type" | "coordinates")
}

/// The one name of a position's part among those in use.
fn position_name(key: &str) -> Option<&'static str> {
    match key {
        "lat" | "latitude" => Some("latitude"),
        "lon" | "lng" | "long" | "longitude" => Some("longitude"),
        _ => None,
    }
}
