//! Topic names and topic filters: what is allowed, and which matches which.
//!
//! A name has 1 to `topic_bytes_max` bytes, no U+0000 (the codec sees to that), no `+` and no `#`. A filter may have `+`
//! as a whole level and `#` as the whole last level; `$share/{group}/{filter}` shares a subscription. Names that start
//! with `$` are matched only by filters that name that first level.

/// Limits that topics and filters keep to, so that no tree walk goes deep.
#[derive(Debug, Clone, Copy)]
pub(crate) struct TopicLimits {
    /// Longest name or filter.
    pub(crate) bytes_max: usize,
    /// Most levels.
    pub(crate) levels_max: usize,
}

impl TopicLimits {
    fn fits(&self, text: &str) -> bool {
        !text.is_empty()
            && text.len() <= self.bytes_max
            && text.bytes().filter(|&byte| byte == b'/').count() < self.levels_max
    }

    /// Whether a message may have this topic.
    pub(crate) fn is_topic(&self, topic: &str) -> bool {
        self.fits(topic) && !topic.bytes().any(|byte| matches!(byte, b'+' | b'#'))
    }

    /// Takes a filter apart; nothing when it is not one.
    pub(crate) fn filter<'a>(&self, text: &'a str) -> Option<Filter<'a>> {
        if !self.fits(text) {
            return None;
        }
        let (group, filter) = match text.strip_prefix("$share/") {
            Some(shared) => {
                let (group, filter) = shared.split_once('/')?;
                (Some(group).filter(|group| !group.is_empty() && !group.contains(['+', '#']))?, filter)
            }
            None => ("", text),
        };
        let well_formed = |(index, level): (usize, &str)| match level {
            "#" => index + 1 == filter.split('/').count(),
            "+" => true,
            _ => !level.contains(['+', '#']),
        };
        let is_filter = !filter.is_empty() && filter.split('/').enumerate().all(well_formed);
        is_filter.then_some(Filter { group: Some(group).filter(|group| !group.is_empty()), filter })
    }
}

/// A well-formed topic filter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Filter<'a> {
    /// The group that shares the subscription.
    pub(crate) group: Option<&'a str>,
    /// What is subscribed to.
    pub(crate) filter: &'a str,
}

impl Filter<'_> {
    /// A shared subscription's whole name, as its members write it.
    pub(crate) fn shared_name(&self) -> Option<String> {
        self.group.map(|group| format!("$share/{group}/{}", self.filter))
    }
}

/// Whether a topic is reserved for the server.
pub(crate) fn is_reserved(topic: &str) -> bool {
    topic.starts_with('$')
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: TopicLimits = TopicLimits { bytes_max: 32, levels_max: 4 };

    #[test]
    fn topic_names() {
        for good in ["a", "/", "a/b/c/d", "a//b", "été", "$SYS/x"] {
            assert!(LIMITS.is_topic(good), "{good}");
        }
        for bad in ["", "a/+", "a/#", "a+b", "a/b/c/d/e", &"x".repeat(33)] {
            assert!(!LIMITS.is_topic(bad), "{bad}");
        }
    }

    #[test]
    fn filters() {
        for good in ["#", "+", "/", "+/+/#", "a/+/b", "a//#", "$SYS/#"] {
            assert_eq!(LIMITS.filter(good), Some(Filter { group: None, filter: good }), "{good}");
        }
        for bad in
            ["", "a#", "a/#/b", "a+/b", "##", "a/b#", "$share/g", "$share//a", "$share/g/", "$share/+/a"]
        {
            assert_eq!(LIMITS.filter(bad), None, "{bad}");
        }
        let shared = Filter { group: Some("g"), filter: "a/#" };
        assert_eq!(LIMITS.filter("$share/g/a/#"), Some(shared));
    }
}
