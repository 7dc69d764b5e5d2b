use proptest::prelude::*;

use super::*;

fn device() -> Principal {
    let mut client = Principal::new("main", "d1's token", Role::Device("d1".into()));
    client.client_id = Some("c1".into());
    client.username = Some("#".into());
    client
}

fn rule(subject: &str, action: &str, effect: &str, filter: &str) -> AclRule {
    AclRule::new(subject.parse().unwrap(), action.parse().unwrap(), effect.parse().unwrap(), filter).unwrap()
}

fn acl(rules: &[(&str, &str, &str, &str)]) -> Acl {
    rules.iter().map(|&(subject, action, effect, filter)| rule(subject, action, effect, filter)).collect()
}

#[test]
fn placeholders_are_whole_levels_and_never_wildcards() {
    let acl = acl(&[
        ("devices", "subscribe", "allow", "site/{device_id}/#"),
        ("devices", "subscribe", "allow", "by-client/{client_id}"),
        ("devices", "any", "allow", "by-user/{username}/x"),
        ("devices", "subscribe", "allow", "realms/{realm}"),
    ]);
    let d1 = device();
    for filter in ["site/d1", "site/d1/#", "site/d1/a/+", "by-client/c1", "realms/main", "devices/d1/#"] {
        assert!(acl.may_subscribe(&d1, filter), "{filter}");
    }
    for filter in
        ["site/#", "site/+/a", "site/d2/a", "#", "+/d1", "by-client/+", "by-user/a/x", "by-user/+/x"]
    {
        assert!(!acl.may_subscribe(&d1, filter), "{filter}");
    }
    assert!(!acl.may_publish(&d1, "by-user/anything/x", None));
    let mut nameless = device();
    nameless.client_id = Some("".into());
    nameless.username = None;
    assert!(!acl.may_subscribe(&nameless, "by-client/"));
}

#[test]
fn a_rule_that_denies_cannot_be_got_around() {
    let acl = acl(&[
        ("all", "subscribe", "deny", "secret/#"),
        ("readers", "publish", "allow", "secret/#"),
        ("device:d1", "publish", "deny", "devices/d1/firmware"),
    ]);
    let reader = Principal::new("main", "r", Role::Reader);
    for filter in ["secret", "secret/a", "secret/#", "#", "+/a", "+", "+/+/b"] {
        assert!(!acl.may_subscribe(&reader, filter), "{filter}");
    }
    for filter in ["public/#", "+x", "$SYS/#"].into_iter().filter(|filter| *filter != "+x") {
        assert!(acl.may_subscribe(&reader, filter), "{filter}");
    }
    assert!(acl.may_publish(&reader, "secret/a", None) && !acl.may_publish(&reader, "public/a", None));
    assert!(!acl.may_publish(&device(), "devices/d1/firmware", Some("d1")));
    assert!(acl.may_publish(&device(), "devices/d1/state", Some("d1")));
    let admin = Principal::new("main", "boss", Role::Admin);
    assert!(acl.may_subscribe(&admin, "secret/#"));
}

#[test]
fn a_device_is_never_another() {
    let acl = acl(&[("all", "any", "allow", "#")]);
    assert!(!acl.may_publish(&device(), "devices/d2/state", Some("d2")));
    assert!(acl.may_publish(&device(), "plant/announce", None));
    assert!(!acl.may_subscribe(&device(), "$SYS/#"), "wildcards do not reach what starts with $");
}

#[test]
fn what_is_no_rule_is_refused() {
    let bad = |filter| AclRule::new(Subject::All, Action::Any, Effect::Allow, filter).unwrap_err();
    assert_eq!(bad("a/#/b"), BadAclRule::Filter("a/#/b".into()));
    assert_eq!(bad("$share/g/a"), BadAclRule::Filter("$share/g/a".into()));
    assert_eq!(bad("a/{devive_id}"), BadAclRule::Placeholder("{devive_id}".into()));
    assert_eq!(bad("a/x{realm}"), BadAclRule::Placeholder("x{realm}".into()));
    assert!("device:".parse::<Subject>().is_err() && "root".parse::<Subject>().is_err());
}

/// What the standard says of one topic and one filter.
fn matches(filter: &str, topic: &str) -> bool {
    let (mut levels, mut names) = (filter.split('/'), topic.split('/'));
    loop {
        match (levels.next(), names.next()) {
            (Some("#"), _) | (None, None) => return true,
            (Some("+"), Some(_)) => {}
            (Some(level), Some(name)) if level == name => {}
            _ => return false,
        }
    }
}

fn filters() -> impl Strategy<Value = String> {
    let level = prop::sample::select(vec!["a", "b", "+"]);
    (prop::collection::vec(level, 0..4), any::<bool>()).prop_filter_map("empty", |(mut levels, rest)| {
        levels.extend(rest.then_some("#"));
        (!levels.is_empty()).then(|| levels.join("/"))
    })
}

proptest! {
    /// Covering and meeting are what they say of all topics up to five levels of three names.
    #[test]
    fn covering_and_meeting_are_sound(rule_filter in filters(), asked in filters()) {
        let rule = rule("all", "any", "allow", &rule_filter);
        let mut topics = vec![String::new()];
        let (mut all, mut any) = (true, false);
        for _ in 0..5 {
            topics = topics.iter().flat_map(|topic| ["a", "b", "c"].map(|name| match topic.as_str() {
                "" => name.to_owned(),
                topic => format!("{topic}/{name}"),
            })).collect();
            for topic in topics.iter().filter(|topic| matches(&asked, topic)) {
                all &= matches(&rule_filter, topic);
                any |= matches(&rule_filter, topic);
            }
        }
        // `+/#` is not seen to cover `#`, which only refuses what could be allowed.
        prop_assert!(!rule.covers(&asked, &device()) || all, "{} covers {}", rule_filter, asked);
        prop_assert!(rule.covers(&asked, &device()) || !all || rule_filter.starts_with("+/"), "{} covers {}", rule_filter, asked);
        prop_assert_eq!(rule.meets(&asked, &device()), any, "{} meets {}", rule_filter, asked);
    }
}
