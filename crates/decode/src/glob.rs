//! Simple patterns: `*` stands for any run of characters, everything else for itself.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A pattern with any number of `*`. Matching takes time linear in the text for each `*`, and allocates nothing.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Glob {
    pattern: Box<str>,
    exact: bool,
}

impl Glob {
    /// Makes a pattern of any text.
    #[must_use]
    pub fn new(pattern: &str) -> Self {
        Self { pattern: pattern.into(), exact: !pattern.contains('*') }
    }

    /// The text that alone matches, if the pattern has no `*`.
    #[must_use]
    pub fn as_exact(&self) -> Option<&str> {
        self.exact.then_some(&*self.pattern)
    }

    /// The pattern as written.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.pattern
    }

    /// Whether the whole of `text` fits.
    #[must_use]
    pub fn matches(&self, text: &str) -> bool {
        if self.exact {
            return *self.pattern == *text;
        }
        // Without a `*` the pattern is exact, so there are always a first and a last part.
        let mut parts = self.pattern.split('*');
        let Some(mut rest) = parts.next().and_then(|first| text.strip_prefix(first)) else { return false };
        let last = parts.next_back().unwrap_or_default();
        // The leftmost place of each middle part leaves the most room for what follows.
        for part in parts {
            let Some(at) = rest.find(part) else { return false };
            rest = &rest[at + part.len()..];
        }
        rest.ends_with(last)
    }
}

impl From<&str> for Glob {
    fn from(pattern: &str) -> Self {
        Self::new(pattern)
    }
}

impl fmt::Display for Glob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.pattern)
    }
}

impl Serialize for Glob {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.pattern)
    }
}

impl<'de> Deserialize<'de> for Glob {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer).map(|pattern| Self::new(&pattern))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns() {
        for (pattern, text, expected) in [
            ("a", "a", true),
            ("a", "ab", false),
            ("", "", true),
            ("*", "", true),
            ("*", "anything", true),
            ("a*", "abc", true),
            ("a*", "ba", false),
            ("*c", "abc", true),
            ("a*c", "ac", true),
            ("a*a", "a", false),
            ("engine.*.rpm", "engine.left.rpm", true),
            ("engine.*.rpm", "engine.rpm", false),
            ("*b*b*", "abab", true),
            ("*b*b*", "aba", false),
            ("a*b*a", "aba", true),
            ("é*é", "éé", true),
        ] {
            assert_eq!(Glob::new(pattern).matches(text), expected, "{pattern} {text}");
        }
    }
}
