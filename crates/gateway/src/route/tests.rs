use super::*;

fn rule(topic: &str, event_type: Option<&str>) -> RouteRule {
    RouteRule { event_type: event_type.map(Into::into), ..RouteRule::of(topic) }
}

/// `device/type tags`, or what is wrong.
fn found(routes: &Routes, topic: &str) -> String {
    let mut tags = String::new();
    match routes.find(topic) {
        Ok(Some(routed)) => match routed.write_tags(&mut tags) {
            Ok(()) => format!("{}/{} {tags}", routed.device_id, routed.event_type).trim_end().to_owned(),
            Err(error) => error.to_string(),
        },
        Ok(None) => "none".to_owned(),
        Err(error) => error.to_string(),
    }
}

#[test]
fn topics_lead_to_devices() {
    let fixed = RouteRule {
        device_id: Some("broker".into()),
        event_type: Some("log".into()),
        tags: BTreeMap::from([("site".into(), "ly\"on".into())]),
        ..RouteRule::of("logs/{path...}")
    };
    let rules = [
        RouteRule::default(),
        rule("plant/+/{device_id}", Some("telemetry")),
        rule("plant/hall/{device_id}", Some("hall")),
        rule("city/{area}/traffic/{device_id}", Some("traffic")),
        rule("city/#", Some("other")),
        fixed,
    ];
    let error = Routes::new(&rules).unwrap_err();
    assert_eq!(error.to_string(), "\"city/#\": does not tell the device");
    let rules: Vec<_> = rules.into_iter().filter(|rule| rule.topic != "city/#").collect();
    let routes = Routes::new(&rules).unwrap();
    for (topic, wanted) in [
        ("devices/d1/state", "d1/state"),
        ("plant/x/d2", "d2/telemetry"),
        ("plant/hall/d2", "d2/hall"),
        ("city/nord/traffic/t1", r#"t1/traffic {"area":"nord"}"#),
        ("city/a\"b\\\u{1}/traffic/t1", r#"t1/traffic {"area":"a\"b\\\u0001"}"#),
        ("city/nord/parking/t1", "none"),
        ("logs/a", r#"broker/log {"site":"ly\"on","path":"a"}"#),
        ("logs/a/b/c", r#"broker/log {"site":"ly\"on","path":"a/b/c"}"#),
        ("logs", "none"),
        ("devices/d1", "none"),
        ("devices/d1/state/x", "none"),
        ("Devices/d1/state", "none"),
        ("/devices/d1/state", "none"),
        ("devices//state", "the device id is empty"),
    ] {
        assert_eq!(found(&routes, topic), wanted, "{topic}");
    }
    assert!(routes.find("devices/d\u{7}/state").is_err());
    let long = format!("city/{}/traffic/t1", "x".repeat(5000));
    assert_eq!(found(&routes, &long), "the tags have more than 4096 bytes");
}

#[test]
fn a_more_specific_branch_that_ends_early_gives_way() {
    let routes =
        Routes::new(&[rule("a/b/c/{device_id}", Some("deep")), rule("a/+/+/+/{device_id}", Some("wide"))])
            .unwrap();
    assert_eq!(found(&routes, "a/b/c/d"), "d/deep");
    assert_eq!(found(&routes, "a/b/c/x/d"), "d/wide");
}

#[test]
fn bad_routes_are_told_where_and_what_to_do() {
    for (topic, event_type, at, what) in [
        ("a/{type}", None, None, "does not tell the device"),
        ("a/{device_id}", None, None, "does not tell the type"),
        ("{device_id}/{type}", Some("t"), None, "names the type twice"),
        ("{device_id}/x#", Some("t"), Some(13), "mixes a word with a placeholder"),
        ("x/s-{device_id}", Some("t"), Some(4), "mixes a word with a placeholder"),
        ("x/{device_id", Some("t"), Some(12), "has a brace that is not closed"),
        ("x/{a b}/{device_id}", Some("t"), Some(4), "has a name with a character that is not allowed"),
        ("x/{}/{device_id}", Some("t"), Some(3), "has a name that is empty or too long"),
        ("#/{device_id}", Some("t"), Some(2), "goes on after a rest"),
        ("{rest...}/{device_id}", Some("t"), Some(10), "goes on after a rest"),
        ("{a}/{a}/{device_id}", Some("t"), Some(4), "has a name twice"),
        ("{device_id}/{device_id}", Some("t"), Some(12), "has a name twice"),
        ("{device_id...}", Some("t"), Some(1), "takes several levels for a name"),
        ("$SYS/{device_id}", Some("t"), Some(0), "begins with $"),
        ("{device_id}", Some("a/b"), None, "'/'"),
        ("", None, None, "has 0 bytes"),
    ] {
        let error = rule(topic, event_type).check().unwrap_err();
        assert!(error.what.contains(what), "{topic}: {error}");
        assert_eq!(error.at, at, "{topic}: {error}");
        assert!(!error.hint.is_empty());
    }
    let same = [rule("a/{device_id}/{type}", None), rule("a/{x}/{device_id}", Some("t"))];
    assert!(
        Routes::new(&same).unwrap_err().to_string().contains("the same topics as \"a/{device_id}/{type}\"")
    );
}

#[test]
fn many_routes_cost_no_more_than_few() {
    let many: Vec<_> =
        (0..5000).map(|n| rule(&format!("site-{n}/{{area}}/{{device_id}}/{{type}}"), None)).collect();
    let routes = Routes::new(&many).unwrap();
    assert_eq!(found(&routes, "site-4999/a/d/t"), r#"d/t {"area":"a"}"#);
    let rounds = 20_000;
    let took = |routes: &Routes, topic: &str| {
        let started = std::time::Instant::now();
        (0..rounds).for_each(|_| assert!(std::hint::black_box(routes.find(topic)).unwrap().is_some()));
        started.elapsed()
    };
    let (of_many, of_one) =
        (took(&routes, "site-4999/a/d/t"), took(&Routes::new(&many[..1]).unwrap(), "site-0/a/d/t"));
    println!("{:?} with 5000 routes, {:?} with one", of_many / rounds, of_one / rounds);
    // A list would take some thousand times as long.
    assert!(of_many < 50 * of_one, "{of_many:?} against {of_one:?}");
}

#[derive(Default)]
struct Kept(parking_lot::Mutex<Vec<RouteRule>>);

#[async_trait::async_trait]
impl RouteStore for Kept {
    async fn routes(&self) -> Result<Vec<RouteRule>, RouteStoreError> {
        Ok(self.0.lock().clone())
    }

    async fn put_route(&self, rule: &RouteRule) -> Result<(), RouteStoreError> {
        self.delete_route(&rule.topic).await?;
        self.0.lock().push(rule.clone());
        Ok(())
    }

    async fn delete_route(&self, topic: &str) -> Result<bool, RouteStoreError> {
        let mut kept = self.0.lock();
        let before = kept.len();
        kept.retain(|rule| rule.topic != topic);
        Ok(kept.len() < before)
    }
}

#[tokio::test]
async fn routes_change_while_running() {
    let store = std::sync::Arc::new(Kept::default());
    let book = RouteBook::new(&[RouteRule::default()]).unwrap();
    book.keep_in(store.clone()).await.unwrap();
    assert_eq!(found(&book.current(), "x/d1"), "none");
    let generation = book.generation();
    book.put(rule("x/{device_id}", Some("t"))).await.unwrap();
    assert_eq!(found(&book.current(), "x/d1"), "d1/t");
    assert!(book.generation() > generation);
    // Another shape of the same topics is refused and changes nothing.
    let same = book.put(rule("x/{device}", Some("t"))).await;
    assert!(matches!(same, Err(RouteChangeError::Bad(_))));
    // One of the configuration's topic goes before it.
    let own = RouteRule { tags: BTreeMap::from([("a".into(), "b".into())]), ..RouteRule::default() };
    book.put(own).await.unwrap();
    let reopened = RouteBook::new(&[RouteRule::default()]).unwrap();
    reopened.keep_in(store).await.unwrap();
    assert_eq!(found(&reopened.current(), "devices/d/s"), r#"d/s {"a":"b"}"#);
    assert_eq!(reopened.list().await.unwrap().len(), 2);
    reopened.delete("devices/{device_id}/{type}").await.unwrap();
    assert_eq!(found(&reopened.current(), "devices/d/s"), "d/s");
    let configured = reopened.delete("devices/{device_id}/{type}").await;
    assert!(matches!(configured, Err(RouteChangeError::Configured(_))));
    assert_eq!(reopened.delete("nowhere").await, Err(RouteChangeError::NotFound));
}
