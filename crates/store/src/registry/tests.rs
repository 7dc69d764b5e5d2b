use catchment_decode::{DecoderRule, Format};
use catchment_types::DEFAULT_REALM;
use serde_json::json;

use super::*;

/// Where a check has its registry.
enum Site {
    File(tempfile::TempDir),
    Database(String),
}

impl Site {
    fn file() -> Self {
        Self::File(tempfile::tempdir().unwrap())
    }

    /// A new database on the server that `CATCHMENT_TEST_POSTGRES` names (a URL of a user who may make databases).
    async fn database(name: &str) -> Option<Self> {
        let Ok(server) = std::env::var("CATCHMENT_TEST_POSTGRES") else {
            eprintln!("NOT RUN on PostgreSQL: CATCHMENT_TEST_POSTGRES names no server");
            return None;
        };
        sqlx::any::install_default_drivers();
        // PostgreSQL cuts names after 63 bytes, and the number must stay.
        let database = format!("registry_{name:.40}_{:08x}", rand::random::<u32>());
        let pool = AnyPool::connect(&server).await.unwrap();
        let create = format!("CREATE DATABASE {database}");
        sqlx::query(sqlx::AssertSqlSafe(create)).execute(&pool).await.unwrap();
        let (address, _) = server.rsplit_once('/').unwrap();
        Some(Self::Database(format!("{address}/{database}")))
    }

    fn place(&self) -> RegistryPlace {
        match self {
            Self::File(dir) => RegistryPlace::File(dir.path().join("registry.sqlite")),
            Self::Database(url) => RegistryPlace::Postgres(url.clone()),
        }
    }

    async fn open(&self) -> Registry {
        Registry::open_at(self.place(), PasswordConfig::default()).await.unwrap()
    }
}

/// Each check, on a file and on a database.
macro_rules! on_each_site {
    ($($check:ident),+ $(,)?) => {
        mod on_sqlite {
            $(#[tokio::test]
            async fn $check() {
                super::$check(super::Site::file()).await;
            })+
        }
        mod on_postgres {
            $(#[tokio::test]
            async fn $check() {
                if let Some(site) = super::Site::database(stringify!($check)).await {
                    super::$check(site).await;
                }
            })+
        }
    };
}

on_each_site!(
    devices_come_and_go,
    names_that_look_like_sql_are_names,
    decoders_make_a_rule_set_and_tell_of_changes,
    tokens_are_verified_from_memory_and_survive_a_restart,
    the_last_administrator_stays,
    bad_tokens_are_refused,
    a_secret_from_the_owners_file_is_taken_back,
    a_file_of_a_newer_version_is_refused_by_name,
);

fn admin(name: &str) -> NewToken<'_> {
    NewToken { realm: DEFAULT_REALM, name, role: Role::Admin, device_id: None }
}

async fn devices_come_and_go(site: Site) {
    let registry = site.open().await;
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

async fn names_that_look_like_sql_are_names(site: Site) {
    let registry = site.open().await;
    let id = "x'); DROP TABLE devices; --";
    registry.create_device(id, None).await.unwrap();
    assert_eq!(registry.device(id).await.unwrap().unwrap().device_id, id);
}

async fn decoders_make_a_rule_set_and_tell_of_changes(site: Site) {
    let registry = site.open().await;
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

async fn tokens_are_verified_from_memory_and_survive_a_restart(site: Site) {
    let registry = site.open().await;
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

    let registry = site.open().await;
    assert_eq!(registry.verify(&secret).unwrap().token_id, record.id);
    assert!(registry.delete_device("truck-7").await.unwrap());
    assert_eq!(registry.verify(&device_secret), None);
    assert_eq!(registry.tokens().await.unwrap(), [record]);
}

#[tokio::test]
async fn secrets_are_not_in_the_file() {
    let site = Site::file();
    let registry = site.open().await;
    let (_, secret) = registry.create_token(admin("first")).await.unwrap();
    registry.close().await;
    let Site::File(dir) = &site else { unreachable!("it was made as a file") };
    for entry in std::fs::read_dir(dir.path()).unwrap() {
        let bytes = std::fs::read(entry.unwrap().path()).unwrap();
        assert!(!bytes.windows(20).any(|window| secret.as_bytes().ends_with(window)));
    }
}

async fn the_last_administrator_stays(site: Site) {
    let registry = site.open().await;
    let (first, _) = registry.create_token(admin("first")).await.unwrap();
    assert!(matches!(registry.delete_token(&first.id).await, Err(RegistryError::LastAdmin)));
    let (_, secret) = registry.create_token(admin("second")).await.unwrap();
    assert!(registry.delete_token(&first.id).await.unwrap());
    assert!(!registry.delete_token(&first.id).await.unwrap());
    assert!(registry.verify(&secret).is_some());
}

async fn bad_tokens_are_refused(site: Site) {
    let registry = site.open().await;
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

async fn a_secret_from_the_owners_file_is_taken_back(site: Site) {
    let registry = site.open().await;
    let secret = format!("{TOKEN_PREFIX}{}", "A".repeat(43));
    registry.import_token(admin("owner"), &secret).await.unwrap();
    registry.import_token(admin("owner"), &secret).await.unwrap();
    assert_eq!(registry.tokens().await.unwrap().len(), 1);
    assert!(registry.verify(&secret).is_some());
    for bad in ["", "ctm_short", &"A".repeat(47)] {
        assert!(registry.import_token(admin("owner"), bad).await.is_err());
    }
}

async fn a_file_of_a_newer_version_is_refused_by_name(site: Site) {
    let registry = site.open().await;
    sqlx::query(
        "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time)
         SELECT 99, 'later', success, checksum, 0 FROM _sqlx_migrations WHERE version = 1",
    )
    .execute(&registry.pool)
    .await
    .unwrap();
    registry.close().await;
    let error = Registry::open_at(site.place(), PasswordConfig::default()).await.unwrap_err().to_string();
    assert!(error.contains("newer version"), "{error}");
}

/// Waits until something holds.
async fn soon(what: &str, holds: impl Fn() -> bool) {
    for _ in 0..500 {
        if holds() {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    panic!("not within 10 s: {what}");
}

#[tokio::test]
async fn a_database_tells_how_it_stands_and_is_not_changed_by_that() {
    let Some(site) = Site::database("probed").await else { return };
    let before = site.place().probe().await.unwrap();
    assert!(before.starts_with("PostgreSQL 1") && before.contains("no tables yet"), "{before}");
    assert!(site.place().probe().await.unwrap().contains("no tables yet"));
    let registry = site.open().await;
    assert!(site.place().probe().await.unwrap().contains("up to date"));
    sqlx::query("UPDATE _sqlx_migrations SET version = 99 WHERE version = 1")
        .execute(&registry.pool)
        .await
        .unwrap();
    assert!(site.place().probe().await.unwrap_err().to_string().contains("newer version"));
    let Site::Database(url) = &site else { unreachable!("it was made as a database") };
    for wrong in [url.replace("registry_probed", "absent"), "postgres://u:secret@127.0.0.1:1/d".to_owned()] {
        let error = RegistryPlace::Postgres(wrong).probe().await.unwrap_err().to_string();
        assert!(error.contains("cannot be opened") && !error.contains("secret"), "{error}");
    }
}

#[tokio::test]
async fn processes_that_share_a_database_follow_each_other() {
    let Some(site) = Site::database("shared").await else { return };
    let one = Arc::new(site.open().await);
    let two = Arc::new(site.open().await);
    let following = tokio::spawn(Arc::clone(&two).follow());
    one.create_device("truck-7", None).await.unwrap();
    let device =
        NewToken { realm: DEFAULT_REALM, name: "truck-7", role: Role::Device, device_id: Some("truck-7") };
    let (record, secret) = one.create_token(device).await.unwrap();
    soon("a token is known", || two.verify(&secret).is_some()).await;
    one.put_realm("plant", Default::default(), Default::default()).await.unwrap();
    soon("a realm is known", || two.access().realms.contains_key("plant")).await;

    let before = std::time::Instant::now();
    let generation = *two.subscribe().borrow();
    one.delete_token(&record.id).await.unwrap();
    soon("a token is withdrawn", || two.was_withdrawn(&format!("token:{}", record.id), before)).await;
    assert!(two.verify(&secret).is_none() && *two.subscribe().borrow() > generation);

    one.set_password(DEFAULT_REALM, "truck-7", Some("correct horse")).await.unwrap();
    assert!(two.verify_password(DEFAULT_REALM, "truck-7", b"correct horse").await.unwrap());
    let before = std::time::Instant::now();
    one.set_password(DEFAULT_REALM, "truck-7", Some("battery staple")).await.unwrap();
    soon("a password is withdrawn", || two.was_withdrawn("password:main/truck-7", before)).await;
    assert!(!two.verify_password(DEFAULT_REALM, "truck-7", b"correct horse").await.unwrap());

    // Broken connections are made again, and what was missed is read.
    let (_, missed) = one.create_token(admin("missed")).await.unwrap();
    sqlx::query(
        "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND datname = current_database()",
    )
    .execute(&one.pool)
    .await
    .unwrap();
    let third = site.open().await;
    let (_, after) = third.create_token(admin("after")).await.unwrap();
    soon("all is known after a break", || two.verify(&missed).is_some() && two.verify(&after).is_some())
        .await;
    two.close().await;
    one.close().await;
    following.abort();
}
