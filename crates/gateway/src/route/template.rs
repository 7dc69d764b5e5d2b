//! The levels of a route's topic.

use super::BadRoute;

/// Most levels: as many as a topic may have at all.
const LEVELS_MAX: usize = 128;
const TOPIC_BYTES_MAX: usize = 1024;
const NAME_BYTES_MAX: usize = 64;

/// One level.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Level {
    Word(Box<str>),
    DeviceId,
    Type,
    Tag(Box<str>),
    /// `+`
    Any,
    /// `{name...}`: this level and all that follow.
    RestTag(Box<str>),
    /// `#`
    Rest,
}

impl Level {
    /// The tag that it gives.
    pub(super) fn tag(&self) -> Option<&str> {
        match self {
            Self::Tag(name) | Self::RestTag(name) => Some(name),
            _ => None,
        }
    }
}

/// Takes a template apart.
pub(super) fn levels_of(topic: &str) -> Result<Box<[Level]>, BadRoute> {
    let bad = |what: String, at, hint| BadRoute { topic: topic.to_owned(), what, at, hint };
    if topic.is_empty() || topic.len() > TOPIC_BYTES_MAX {
        let what = format!("has {} bytes; 1 to {TOPIC_BYTES_MAX} are allowed", topic.len());
        return Err(bad(what, None, "write for instance city/{area}/traffic/{device_id}"));
    }
    let mut levels: Vec<Level> = Vec::new();
    let mut at = 0;
    for text in topic.split('/') {
        let here = at;
        at += text.len() + 1;
        let fault = |what: &str, offset, hint| bad(what.to_owned(), Some(here + offset), hint);
        if levels.len() >= LEVELS_MAX {
            return Err(fault("has too many levels", 0, "use # for what follows"));
        }
        if matches!(levels.last(), Some(Level::Rest | Level::RestTag(_))) {
            return Err(fault("goes on after a rest", 0, "# and {name...} must be the last level"));
        }
        let level = match text {
            "+" => Level::Any,
            "#" => Level::Rest,
            "{device_id}" => Level::DeviceId,
            "{type}" => Level::Type,
            _ => match text.strip_prefix('{') {
                Some(rest) => named(rest).map_err(|(what, offset, hint)| fault(what, 1 + offset, hint))?,
                None => match text.find(['+', '#', '{', '}', '\0']) {
                    Some(offset) => {
                        let hint =
                            "a level is a word, {name}, {name...}, + or #, each on its own between slashes";
                        return Err(fault("mixes a word with a placeholder", offset, hint));
                    }
                    None => Level::Word(text.into()),
                },
            },
        };
        let is_twice = match &level {
            Level::DeviceId | Level::Type => levels.contains(&level),
            Level::Tag(_) | Level::RestTag(_) => levels.iter().any(|other| other.tag() == level.tag()),
            _ => false,
        };
        if is_twice {
            return Err(fault("has a name twice", 0, "give each placeholder a name of its own, or use +"));
        }
        levels.push(level);
    }
    if matches!(levels.first(), Some(Level::Word(word)) if word.starts_with('$')) {
        return Err(bad("begins with $".into(), Some(0), "topics that begin with $ are the server's own"));
    }
    Ok(levels.into())
}

type Fault = (&'static str, usize, &'static str);

/// What follows the opening brace.
fn named(text: &str) -> Result<Level, Fault> {
    const NAMES: &str = "names have 1 to 64 letters, digits, _ and -";
    let Some(inner) = text.strip_suffix('}') else {
        return Err(("has a brace that is not closed", text.len(), "close it: {name}"));
    };
    let (name, is_rest) = inner.strip_suffix("...").map_or((inner, false), |name| (name, true));
    let is_allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-');
    if name.is_empty() || name.len() > NAME_BYTES_MAX {
        return Err(("has a name that is empty or too long", 0, NAMES));
    }
    if let Some(at) = name.find(|c| !is_allowed(c)) {
        return Err(("has a name with a character that is not allowed", at, NAMES));
    }
    if is_rest && matches!(name, "device_id" | "type") {
        return Err(("takes several levels for a name", 0, "neither a device nor a type can have a slash"));
    }
    Ok(if is_rest { Level::RestTag(name.into()) } else { Level::Tag(name.into()) })
}
