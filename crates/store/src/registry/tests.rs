use catchment_decode::{DecoderRule, Format};
use catchment_types::DEFAULT_REALM;
use serde_json::json;

use super::*;

async fn open() -> (tempfile::TempDir, Registry) {
    let dir = tempfile::tempdir().unwrap();
    let registry = Registry::open(&dir.path().join("registry.sqlite")).await.unwrap();
    (dir, registry)
}

fn admin(name: &str) -> NewToken<'_> {
    NewToken { realm: DEFAULT_REALM, name, role: Role::Admin, device_id: None }
}

#[tokio::test]
async fn devices_come_and_go() {
    let (_dir, registry) = open().await;
    let labels = json!({"site": "north", "floor": 2});
    let labels = labels.as_object().unwrap();
    let created = registry.create_device("truck-7", Some(labels)).await.unwrap();
    assert_eq!(created.labels.as_ref(), Some(labels));
    assert!(matches!(registry.create_device("truck-7", None).await, Err(RegistryError::Exists { .. })));
    // The refused attempt changed nothing.
    assert_eq!(registry.device("truck-7").await.unwrap(), Some(created.clone()));

    let (replaced, is_new) = registry.put_device("truck-7", None).await.unwrap();
    assert!(!is_new && replaced.labels.is_none() && replaced.created_at == created.created_at);
    for id in ["a", "b", "été"] {
        assert!(registry.put_device(id, None).await.unwrap().1);
    }
    let page = registry.devices(None, 2).await.unwrap();
    assert_eq!(page.iter().map(|device| &*device.device_id).collect::<Vec<_>>(), ["a", "b"]);
    let rest = registry.devices(Some("b"), 10).await.unwrap();
    assert_eq!(rest.iter().map(|device| &*device.device_id).collect::<Vec<_>>(), ["truck-7", "été"]);

    assert!(registry.delete_device("a").await.unwrap());
    assert!(!registry.delete_device("a").await.unwrap());
    assert!(matches!(registry.create_device("a/b", None).await, Err(RegistryError::Name(_))));
    let huge = json!({"text": "x".repeat(20_000)});
    assert!(matches!(
        registry.put_device("a", huge.as_object()).await,
        Err(RegistryError::Invalid(message)) if message.contains("bytes")
    ));
}

#[tokio::test]
async fn names_that_look_like_sql_are_names() {
    let (_dir, registry) = open().await;
    let id = "x'); DROP TABLE devices; --";
    registry.create_device(id, None).await.unwrap();
    assert_eq!(registry.device(id).await.unwrap().unwrap().device_id, id);
}

#[tokio::test]
async fn decoders_make_a_rule_set_and_tell_of_changes() {
    let (_dir, registry) = open().await;
    let changes = registry.subscribe();
    assert_eq!(*changes.borrow(), 0);
    let raw = DecoderRule { format: Format::None, ..DecoderRule::default() };
    assert!(registry.put_decoder("firmware", &raw).await.unwrap());
    assert!(!registry.put_decoder("firmware", &raw).await.unwrap());
    let shallow = DecoderRule { depth_max: 3, ..DecoderRule::default() };
    assert!(registry.put_decoder(DEFAULT_DECODER, &shallow).await.unwrap());
    assert_eq!(*changes.borrow(), 3);

    let rules = registry.rule_set().await.unwrap();
    assert_eq!(rules.rule("firmware"), &raw);
    assert_eq!(rules.rule("anything"), &shallow);
    let decoders = catchment_decode::Decoders::default();
    registry.apply_decoders(&decoders).await.unwrap();
    assert_eq!(decoders.rules().rule("firmware"), &raw);
    let bad = DecoderRule { depth_max: 0, ..DecoderRule::default() };
    assert!(matches!(registry.put_decoder("firmware", &bad).await, Err(RegistryError::Rule(_))));
    assert!(registry.delete_decoder("firmware").await.unwrap());
    assert_eq!(registry.decoder("firmware").await.unwrap(), None);
    assert_eq!(registry.decoders().await.unwrap().len(), 1);
}

#[tokio::test]
async fn tokens_are_verified_from_memory_and_survive_a_restart() {
    let (dir, registry) = open().await;
    let (record, secret) = registry.create_token(admin("first")).await.unwrap();
    assert!(secret.starts_with(TOKEN_PREFIX) && secret.len() == TOKEN_PREFIX.len() + 43);
    registry.create_device("truck-7", None).await.unwrap();
    let device =
        NewToken { realm: DEFAULT_REALM, name: "truck-7", role: Role::Device, device_id: Some("truck-7") };
    let (_, device_secret) = registry.create_token(device).await.unwrap();

    registry.close().await;
    assert_eq!(registry.verify(&secret).unwrap().role, Role::Admin);
    assert_eq!(registry.verify(&device_secret).unwrap().device_id.as_deref(), Some("truck-7"));
    for wrong in ["", "ctm_", &secret[..secret.len() - 1], &format!("{secret}x"), &secret.to_uppercase()] {
        assert_eq!(registry.verify(wrong), None, "{wrong}");
    }

    let registry = Registry::open(&dir.path().join("registry.sqlite")).await.unwrap();
    assert_eq!(registry.verify(&secret).unwrap().token_id, record.id);
    assert!(registry.delete_device("truck-7").await.unwrap());
    assert_eq!(registry.verify(&device_secret), None);
    assert_eq!(registry.tokens().await.unwrap(), [record]);
}

#[tokio::test]
async fn secrets_are_not_in_the_file() {
    let (dir, registry) = open().await;
    let (_, secret) = registry.create_token(admin("first")).await.unwrap();
    registry.close().await;
    for entry in std::fs::read_dir(dir.path()).unwrap() {
        let bytes = std::fs::read(entry.unwrap().path()).unwrap();
        assert!(!bytes.windows(20).any(|window| secret.as_bytes().ends_with(window)));
    }
}

#[tokio::test]
async fn the_last_administrator_stays() {
    let (_dir, registry) = open().await;
    let (first, _) = registry.create_token(admin("first")).await.unwrap();
    assert!(matches!(registry.delete_token(&first.id).await, Err(RegistryError::LastAdmin)));
    let (_, secret) = registry.create_token(admin("second")).await.unwrap();
    assert!(registry.delete_token(&first.id).await.unwrap());
    assert!(!registry.delete_token(&first.id).await.unwrap());
    assert!(registry.verify(&secret).is_some());
}

#[tokio::test]
async fn bad_tokens_are_refused() {
    let (_dir, registry) = open().await;
    let new = |name, role, device_id| NewToken { realm: DEFAULT_REALM, name, role, device_id };
    for bad in [
        new("", Role::Reader, None),
        new("a\nb", Role::Reader, None),
        new("x", Role::Reader, Some("d")),
        new("x", Role::Device, None),
        new("x", Role::Device, Some("not-registered")),
    ] {
        assert!(registry.create_token(bad.clone()).await.is_err(), "{bad:?}");
    }
    assert!("root".parse::<Role>().is_err());
}

#[tokio::test]
async fn a_secret_from_the_owners_file_is_taken_back() {
    let (_dir, registry) = open().await;
    let secret = format!("{TOKEN_PREFIX}{}", "A".repeat(43));
    registry.import_token(admin("owner"), &secret).await.unwrap();
    registry.import_token(admin("owner"), &secret).await.unwrap();
    assert_eq!(registry.tokens().await.unwrap().len(), 1);
    assert!(registry.verify(&secret).is_some());
    for bad in ["", "ctm_short", &"A".repeat(47)] {
        assert!(registry.import_token(admin("owner"), bad).await.is_err());
    }
}

#[tokio::test]
async fn a_file_of_a_newer_version_is_refused_by_name() {
    let (dir, registry) = open().await;
    sqlx::query(
        "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time) VALUES (99, 'later', true, x'00', 0)",
    )
    .execute(&registry.pool)
    .await
    .unwrap();
    registry.close().await;
    let error = Registry::open(&dir.path().join("registry.sqlite")).await.unwrap_err().to_string();
    assert!(error.contains("newer version"), "{error}");
}
