use super::*;

fn read(text: &str) -> Result<BridgeConfig, toml::de::Error> {
    toml::from_str(&format!("name = \"n\"\n{text}"))
}

fn problem(text: &str) -> String {
    let mqtt = MqttConfig::default();
    read(text).unwrap().check(&mqtt).err().map(|error| error.to_string()).unwrap_or_default()
}

#[test]
fn what_cannot_work_is_told() {
    assert_eq!(problem("url = \"mqtt://h/city/#\""), "");
    for (text, told) in [
        ("url = \"mqtt://h\"", "neither takes nor gives"),
        ("url = \"mqtt://h/a#\"", "no topic filter"),
        ("url = \"mqtt://h/a\"\nca = \"x\"", "ca is of use only with TLS"),
        ("url = \"mqtts://h/a\"\nkey = \"x\"", "go together"),
        ("url = \"mqtt://u:p@h/a\"\npassword_file = \"x\"", "more than one password"),
        ("url = \"mqtt://h/a\"\nkeep_alive_s = 0", "keep_alive_s is 0; it must be from 1 to 65535"),
        ("url = \"mqtt://h\"\n[[in]]\nfilter = \"a/b\"\nqos = 3", "qos of \"a/b\" is 3"),
        ("url = \"mqtt://h\"\n[[in]]\nfilter = \"a/+\"\nstrip_prefix = \"a/b\"", "is not how"),
        ("url = \"mqtt://h\"\n[[in]]\nfilter = \"a\"\nstrip_prefix = \"a\"", "nothing is left"),
        ("url = \"mqtt://h\"\n[[out]]\nfilter = \"$share/g/a\"", "none may be shared"),
    ] {
        assert!(problem(text).contains(told), "{text}: {}", problem(text));
    }
    assert!(read("url = \"mqtt://h/a\"\nkeepalive_s = 1").unwrap_err().to_string().contains("keepalive_s"));
}

#[test]
fn what_would_come_back_is_refused_where_the_broker_cannot_prevent_it() {
    let both = |head: &str, filter: &str| {
        format!(
            "url = \"mqtt://h\"\n{head}\n[[in]]\nfilter = \"{filter}\"\n[[out]]\nfilter = \"a/#\"\nadd_prefix = \"x/\""
        )
    };
    assert_eq!(problem(&both("", "x/#")), "");
    assert!(problem(&both("version = \"3.1.1\"", "x/#")).contains("comes back"));
    assert_eq!(problem(&both("version = \"3.1.1\"\nsays_bridge = true", "x/#")), "");
    assert_eq!(problem(&both("version = \"3.1.1\"", "y/#")), "");
    assert!(problem(&both("", "$share/g/x/#")).contains("comes back"));
}

#[test]
fn secrets_are_not_shown() {
    let config = read("url = \"mqtt://u:tiger@h/a\"").unwrap();
    let other = read("url = \"mqtt://h/a\"\nuser = \"u\"\npassword = \"tiger\"").unwrap();
    for config in [config, other] {
        assert!(!format!("{config:?}{}", toml::to_string(&config).unwrap()).contains("tiger"));
    }
}

#[test]
fn names_and_sessions_are_unique() {
    let mqtt = MqttConfig::default();
    let one = read("url = \"mqtt://h/a\"\nclient_id = \"c\"").unwrap();
    let other = BridgeConfig { name: "m".to_owned(), ..one.clone() };
    let check = |bridges: &[BridgeConfig]| check_bridges(bridges, &mqtt).map_err(|e| e.to_string());
    assert!(check(&[one.clone(), one.clone()]).unwrap_err().contains("twice"));
    assert!(check(&[one, other]).unwrap_err().contains("end each other's"));
}

#[test]
fn a_list_may_be_a_text() {
    #[derive(Deserialize)]
    struct Settings {
        #[serde(deserialize_with = "bridges")]
        bridges: Vec<BridgeConfig>,
    }
    let text = r#"{"bridges": "[{name = 'n', url = 'mqtt://c/z'}]"}"#;
    let read: Settings = serde_json::from_str(text).unwrap();
    assert_eq!(read.bridges[0].url.host, "c");
    assert_eq!(serde_json::from_str::<Settings>(r#"{"bridges": []}"#).unwrap().bridges.len(), 0);
}
