//! Which messages pass a bridge, and under which topic: filters, and prefixes that are cut off and put in front.

/// A filter and what is done to the topics that it matches.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Rule {
    filter: Box<str>,
    strip_bytes: usize,
    add: Box<str>,
    retain: bool,
}

/// The rules of one direction. The first that matches counts.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Rules(Vec<Rule>);

impl Rules {
    /// From filter, prefix to cut off, prefix to put in front, and whether to retain.
    pub(super) fn new<'a>(rules: impl Iterator<Item = (&'a str, &'a str, &'a str, bool)>) -> Self {
        let rule = |(filter, strip, add, retain): (&str, &str, &str, bool)| Rule {
            filter: filter.into(),
            strip_bytes: strip.len(),
            add: add.into(),
            retain,
        };
        Self(rules.map(rule).collect())
    }

    /// Writes the topic on the other side in the place of what `into` holds, and gives whether retained messages pass as
    /// such; nothing when no rule takes this topic.
    pub(crate) fn translate(&self, topic: &str, into: &mut String) -> Option<bool> {
        let rule = self.0.iter().find(|rule| matches(&rule.filter, topic))?;
        into.clear();
        into.push_str(&rule.add);
        // The filter begins with what is cut off, and the topic as the filter does: `a/#` takes `a` alone, too.
        into.push_str(topic.get(rule.strip_bytes..).unwrap_or_default());
        Some(rule.retain)
    }
}

/// Whether a filter takes a topic.
pub(super) fn matches(filter: &str, topic: &str) -> bool {
    if topic.starts_with('$') && filter.starts_with(['+', '#']) {
        return false;
    }
    let mut levels = topic.split('/');
    for wanted in filter.split('/') {
        match (wanted, levels.next()) {
            ("#", _) => return true,
            (wanted, Some(level)) if wanted == "+" || wanted == level => {}
            _ => return false,
        }
    }
    levels.next().is_none()
}

/// A filter as it is on the other side.
pub(super) fn rewritten(filter: &str, strip: &str, add: &str) -> String {
    format!("{add}{}", filter.get(strip.len()..).unwrap_or_default())
}

/// Whether some topic is taken by both filters.
pub(super) fn overlaps(one: &str, other: &str) -> bool {
    let (mut ones, mut others) = (one.split('/'), other.split('/'));
    loop {
        match (ones.next(), others.next()) {
            (Some("#"), _) | (_, Some("#")) | (None, None) => return true,
            (Some(a), Some(b)) if a == b || a == "+" || b == "+" => {}
            _ => return false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_rule_that_matches_rewrites() {
        let rules = [("a/b/#", "a/", "x/", true), ("a/+/c", "", "y/", false), ("z/#", "z/", "", true)];
        let rules = Rules::new(rules.into_iter());
        let mut topic = String::new();
        for (from, to, retain) in
            [("a/b/1", "x/b/1", true), ("a/d/c", "y/a/d/c", false), ("a/b", "x/b", true)]
        {
            assert_eq!(rules.translate(from, &mut topic), Some(retain));
            assert_eq!(topic, to);
        }
        assert_eq!(rules.translate("z", &mut topic), Some(true));
        assert_eq!(topic, "");
        assert_eq!(rules.translate("q", &mut topic), None);
    }

    #[test]
    fn filters_match_as_the_standard_says() {
        for (filter, topic) in
            [("#", "a/b"), ("a/#", "a"), ("+/+", "/x"), ("$SYS/#", "$SYS/a"), ("a/+", "a/")]
        {
            assert!(matches(filter, topic), "{filter} {topic}");
        }
        for (filter, topic) in [("#", "$SYS/a"), ("a/+", "a"), ("a", "a/b"), ("+", "a/b")] {
            assert!(!matches(filter, topic), "{filter} {topic}");
        }
    }

    #[test]
    fn filters_overlap_where_a_topic_fits_both() {
        for (one, other) in [("a/#", "a"), ("a/+/c", "+/b/c"), ("#", "x"), ("a/b", "a/b")] {
            assert!(overlaps(one, other) && overlaps(other, one), "{one} {other}");
        }
        for (one, other) in [("a/#", "b/#"), ("a/+", "a/b/c"), ("a", "a/b")] {
            assert!(!overlaps(one, other) && !overlaps(other, one), "{one} {other}");
        }
        assert_eq!(rewritten("a/b/#", "a/", "x/"), "x/b/#");
    }
}
