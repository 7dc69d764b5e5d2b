use std::path::Path;

use super::*;

fn load_file(text: &str) -> Result<Settings, String> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("t.toml");
    std::fs::write(&path, text).unwrap();
    let shown =
        |error: layers::SettingsError| error.to_string().replace(&dir.path().display().to_string(), "DIR");
    load(Some(&path), std::iter::empty(), &Vec::new()).map_err(shown)
}

fn variable(name: &str, value: &str) -> std::vec::IntoIter<(String, String)> {
    vec![(name.to_owned(), value.to_owned())].into_iter()
}

#[test]
fn the_shipped_file_tells_the_defaults() {
    let text =
        std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../../catchment.toml")).unwrap();
    let as_text = |settings: Settings| toml::to_string(&settings).unwrap();
    let defaults = as_text(load_file("").unwrap());
    assert_eq!(as_text(load_file(&text).unwrap()), defaults);
    // A setting that is commented out begins right after the '#'; with all of them in force, nothing changes either.
    let in_force: String = text
        .lines()
        .map(|line| match line.strip_prefix('#') {
            Some(setting) if setting.starts_with(|c: char| c.is_ascii_lowercase() || c == '[') => {
                format!("{setting}\n")
            }
            _ => format!("{line}\n"),
        })
        .collect();
    assert_eq!(as_text(load_file(&in_force).unwrap()), defaults);
}

#[test]
fn mistakes_in_the_file_are_found_and_hinted() {
    let error = load_file("http = \"127.0.0.1:8080\"\n[history]\nflush_intervall_ms = 5\n").unwrap_err();
    assert_eq!(
        error,
        "DIR/t.toml:3:1: there is no setting `flush_intervall_ms` here; did you mean `flush_interval_ms`?"
    );
    let error = load_file("[gatway]\n").unwrap_err();
    assert!(
        error.starts_with("DIR/t.toml:1:2: there is no setting `gatway` here; did you mean `gateway`?"),
        "{error}"
    );
    let error = load_file("stop_ms_max = \"soon\"\n").unwrap_err();
    assert!(error.starts_with("DIR/t.toml:1:15: invalid type"), "{error}");
    let error = load_file("http = \n").unwrap_err();
    assert!(error.starts_with("DIR/t.toml:1:"), "{error}");
}

#[test]
fn later_layers_are_stronger() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("t.toml");
    std::fs::write(&path, "stop_ms_max = 1\nlog_level = \"warn\"\nhttp = \"127.0.0.1:1\"\n").unwrap();
    let environment = vec![
        ("CATCHMENT_HTTP".to_owned(), "127.0.0.1:2".to_owned()),
        ("CATCHMENT_LOG_LEVEL".to_owned(), "debug".to_owned()),
        ("CATCHMENT_LOG__PARTITIONS".to_owned(), "7".to_owned()),
        ("CATCHMENT_TOKEN".to_owned(), "x".to_owned()),
        ("UNRELATED".to_owned(), "x".to_owned()),
    ];
    let flags = vec![("http", "127.0.0.1:3".to_owned()), ("engines.log", "kafka://h".to_owned())];
    let settings = load(Some(&path), environment.into_iter(), &flags).unwrap();
    assert_eq!(settings.stop_ms_max, 1);
    assert_eq!(settings.log_level, "debug");
    assert_eq!(settings.http.port(), 3);
    assert_eq!(settings.log.partitions, 7);
    assert_eq!(settings.engines.log, "kafka://h");
    assert_eq!(settings.mqtt, Settings::default().mqtt);
}

#[test]
fn mistakes_in_the_environment_name_the_variable() {
    let error = |name, value| {
        load(Some(Path::new("/dev/null")), variable(name, value), &Vec::new()).unwrap_err().to_string()
    };
    let text = error("CATCHMENT_HTPP", "127.0.0.1:1");
    assert_eq!(
        text,
        "the environment variable CATCHMENT_HTPP: there is no setting `htpp` here; did you mean `http`?"
    );
    let text = error("CATCHMENT_STOP_MS_MAX", "soon");
    assert!(text.starts_with("the environment variable CATCHMENT_STOP_MS_MAX: "), "{text}");
}

#[test]
fn roles_are_a_list_or_a_text() {
    assert_eq!(load_file("roles = [\"api\"]").unwrap().roles, [ProcessRole::Api]);
    let split = load_file("roles = \"api, gateway\"").unwrap();
    assert!(split.check_roles().unwrap_err().to_string().contains("--roles api,gateway leaves work"));
    assert!(load_file("roles = \"apii\"").unwrap_err().contains("there is no role \"apii\""));
}

#[test]
fn only_loopback_is_private() {
    assert!(Settings::default().loopback_only());
    let open = Settings { mqtt: SocketAddr::from(([0, 0, 0, 0], 1883)), ..Settings::default() };
    assert!(!open.loopback_only());
    let open = Settings { https: Some(SocketAddr::from(([0, 0, 0, 0], 8443))), ..Settings::default() };
    assert!(!open.loopback_only());
    let balanced = "[[listeners]]\nprotocol = \"mqtt\"\naddress = \"127.0.0.1:1884\"\n";
    assert!(load_file(balanced).unwrap().loopback_only());
    let from = format!("{balanced}proxy_protocol_from = [\"127.0.0.1\"]\n");
    assert!(!load_file(&from).unwrap().loopback_only());
}

#[test]
fn listeners_with_tls_need_a_certificate() {
    let error = |text: &str| load_file(text).unwrap().check().unwrap_err().to_string();
    let text = "mqtts = \"127.0.0.1:8883\"\n";
    assert!(error(text).contains("mqtts 127.0.0.1:8883 needs a certificate"), "{}", error(text));
    let text = "[[listeners]]\nprotocol = \"pg\"\naddress = \"127.0.0.1:1\"\n";
    assert!(error(text).contains("[[listeners]] takes"), "{}", error(text));
    let text = "[network]\nopening_s_max = 0\n";
    assert_eq!(error(text), "network.opening_s_max is 0; it must be from 1 to 3600");
}
