//! What the subscribers of a process want, all together, as other processes are told: rather too much than too little.

use std::collections::BTreeSet;

use catchment_decode::Glob;
use serde::{Deserialize, Serialize};

use crate::live::{Follow, LiveFilter};

/// More patterns than that are said as "all": who is told has to match each event with them.
const PATTERNS_MAX: usize = 1_000;

/// What is wanted by all subscribers of a process.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Wants {
    pub(super) readings: Option<Want>,
    pub(super) events: Option<Want>,
}

/// One kind of it: what matches one pattern of each list; null matches all.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Want {
    pub(super) devices: Option<BTreeSet<String>>,
    pub(super) types: Option<BTreeSet<String>>,
    pub(super) metrics: Option<BTreeSet<String>>,
}

impl Wants {
    pub(super) fn of(filters: &[LiveFilter]) -> Self {
        let of = |follow| {
            let wanted = filters.iter().filter(|filter| filter.follow == follow).map(Want::of);
            wanted.reduce(Want::or)
        };
        Self { readings: of(Follow::Readings), events: of(Follow::Events) }
    }

    pub(super) fn or(self, other: Self) -> Self {
        let or = |a: Option<Want>, b: Option<Want>| match (a, b) {
            (Some(a), Some(b)) => Some(a.or(b)),
            (a, b) => a.or(b),
        };
        Self { readings: or(self.readings, other.readings), events: or(self.events, other.events) }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.readings.is_none() && self.events.is_none()
    }
}

impl Want {
    fn of(filter: &LiveFilter) -> Self {
        let list = |globs: &[Glob]| match globs.len() {
            0 => None,
            _ => Some(globs.iter().map(|glob| glob.as_str().to_owned()).collect()),
        };
        Self { devices: list(&filter.devices), types: list(&filter.types), metrics: list(&filter.metrics) }
    }

    fn or(self, other: Self) -> Self {
        let or = |a: Option<BTreeSet<String>>, b: Option<BTreeSet<String>>| {
            let (mut all, more) = a.zip(b)?;
            all.extend(more);
            (all.len() <= PATTERNS_MAX).then_some(all)
        };
        Self {
            devices: or(self.devices, other.devices),
            types: or(self.types, other.types),
            metrics: or(self.metrics, other.metrics),
        }
    }

    /// The filter of who forwards it.
    pub(super) fn filter(&self, follow: Follow) -> LiveFilter {
        let globs = |list: &Option<BTreeSet<String>>| {
            list.iter().flatten().map(|pattern| Glob::new(pattern)).collect()
        };
        LiveFilter {
            follow,
            devices: globs(&self.devices),
            metrics: globs(&self.metrics),
            types: globs(&self.types),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filter(follow: Follow, devices: &[&str], types: &[&str]) -> LiveFilter {
        let globs = |list: &[&str]| list.iter().map(|&pattern| Glob::new(pattern)).collect();
        LiveFilter { follow, devices: globs(devices), metrics: Vec::new(), types: globs(types) }
    }

    #[test]
    fn together_they_want_what_each_wants() {
        let a = filter(Follow::Readings, &["a"], &["state"]);
        let b = filter(Follow::Readings, &["b*"], &[]);
        let tail = filter(Follow::Events, &[], &["state"]);
        let wants = Wants::of(&[a.clone(), b]);
        let Wants { readings: Some(readings), events: None } = &wants else { panic!("{wants:?}") };
        assert_eq!(readings.devices, Some(["a".to_owned(), "b*".to_owned()].into()));
        assert_eq!((&readings.types, &readings.metrics), (&None, &None));
        assert_eq!(readings.filter(Follow::Readings).devices.len(), 2);
        let both = wants.or(Wants::of(&[tail]));
        assert_eq!(both.events.as_ref().unwrap().devices, None);
        let text = serde_json::to_string(&both).unwrap();
        assert_eq!(serde_json::from_str::<Wants>(&text).unwrap(), both);
        assert!(Wants::of(&[]).is_empty());
        // Too many to name.
        let many: Vec<_> =
            (0..=PATTERNS_MAX).map(|at| filter(Follow::Readings, &[&at.to_string()], &[])).collect();
        assert_eq!(Wants::of(&many).readings.unwrap().devices, None);
    }
}
