use std::time::Instant;

use catchment_serve::access::Access as _;
use catchment_store::registry::{BanRecord, NewToken, PasswordConfig};

use super::*;

struct Desk {
    _dir: tempfile::TempDir,
    registry: Arc<Registry>,
    admission: RegistryAdmission,
}

impl Desk {
    async fn open(anonymous: bool) -> Self {
        let dir = tempfile::tempdir().unwrap();
        // Cheap hashes: what is tested is not their cost.
        let passwords = PasswordConfig { memory_kib: 64, passes: 1, ..PasswordConfig::default() };
        let registry = Registry::open_with(&dir.path().join("r.sqlite"), passwords).await.unwrap();
        let registry = Arc::new(registry);
        let admission = RegistryAdmission::new(
            Arc::clone(&registry),
            anonymous,
            CertificateIdentity::Cn,
            &AdmissionConfig::default(),
        )
        .unwrap();
        Self { _dir: dir, registry, admission }
    }

    async fn login(&self, username: &str, password: Option<&str>) -> Result<Principal, Denied> {
        let credentials = Credentials {
            client_id: "c",
            username: Some(username),
            password: password.map(str::as_bytes),
            certificate: None,
            remote: Some(([203, 0, 113, 9], 5).into()),
            purpose: Purpose::Connection,
        };
        self.admission.authenticate(credentials).await
    }

    async fn refusal(&self, username: &str, password: Option<&str>) -> Denied {
        self.login(username, password).await.unwrap_err()
    }
}

#[tokio::test]
async fn tokens_open_the_door() {
    for anonymous in [true, false] {
        let desk = Desk::open(anonymous).await;
        let token = NewToken { realm: DEFAULT_REALM, name: "boss", role: TokenRole::Admin, device_id: None };
        let (_, secret) = desk.registry.create_token(token).await.unwrap();
        let boss = desk.login("u", Some(&secret)).await.unwrap();
        assert_eq!((&*boss.name, boss.role), ("boss", Role::Admin));
        assert_eq!(desk.refusal("u", Some("ctm_wrong")).await, Denied::BadCredentials);
        match anonymous {
            true => assert_eq!(&*desk.login("u", None).await.unwrap().name, "anonymous"),
            false => assert_eq!(desk.refusal("u", None).await, Denied::BadCredentials),
        }
    }
}

#[tokio::test]
async fn a_password_is_compared_where_there_is_one() {
    let desk = Desk::open(true).await;
    desk.registry.create_device_in("main", "d", None).await.unwrap();
    assert_eq!(&*desk.login("nobody", Some("secret")).await.unwrap().name, "anonymous");
    assert_eq!(&*desk.login("d", Some("secret")).await.unwrap().name, "anonymous");
    let password = desk.registry.set_password("main", "d", None).await.unwrap();
    assert_eq!(desk.refusal("d", Some("secret")).await, Denied::BadCredentials);
    let device = desk.login("d", Some(&password)).await.unwrap();
    assert_eq!(device.role, Role::Device("d".into()));
    // What names another realm must not end up in this one.
    assert_eq!(desk.refusal("plant/d", Some("secret")).await, Denied::BadCredentials);
}

#[tokio::test]
async fn passwords_belong_to_one_device_of_one_realm() {
    let desk = Desk::open(false).await;
    desk.registry.put_realm("plant", RateLimits::default(), RateLimits::default()).await.unwrap();
    for realm in ["main", "plant"] {
        desk.registry.create_device_in(realm, "d", None).await.unwrap();
    }
    let password = desk.registry.set_password("plant", "d", None).await.unwrap();
    let principal = desk.login("plant/d", Some(&password)).await.unwrap();
    assert_eq!((&*principal.realm, principal.role.clone()), ("plant", Role::Device("d".into())));
    for username in ["d", "main/d", "plant/e", "other/d", ""] {
        assert_eq!(desk.refusal(username, Some(&password)).await, Denied::BadCredentials, "{username}");
    }
    // Changed: the old one opens nothing any more, and who came by it goes.
    let mut connected = principal;
    desk.admission.recheck(&mut connected, None).unwrap();
    desk.registry.set_password("plant", "d", Some("another-one")).await.unwrap();
    assert_eq!(desk.refusal("plant/d", Some(&password)).await, Denied::BadCredentials);
    assert_eq!(desk.admission.recheck(&mut connected, None), Err(Denied::BadCredentials));
    let mut connected = desk.login("plant/d", Some("another-one")).await.unwrap();
    desk.admission.recheck(&mut connected, None).unwrap();
    desk.registry.delete_device_in("plant", "d").await.unwrap();
    assert_eq!(desk.admission.recheck(&mut connected, None), Err(Denied::BadCredentials));
    assert_eq!(desk.refusal("plant/d", Some("another-one")).await, Denied::BadCredentials);
}

#[tokio::test]
async fn bans_and_limits_hold_at_once() {
    let desk = Desk::open(false).await;
    desk.registry.create_device("d", None).await.unwrap();
    desk.registry.set_password("main", "d", Some("good-password")).await.unwrap();
    let mut connected = desk.login("d", Some("good-password")).await.unwrap();
    for (kind, value) in [("device", "d"), ("client", "c"), ("address", "203.0.113.0/24")] {
        let ban = BanRecord {
            id: String::new(),
            realm: "main".into(),
            banned: Banned::parse(kind, value).unwrap(),
            reason: String::new(),
            until: None,
            created_at: Timestamp(0),
        };
        let ban = desk.registry.create_ban(ban).await.unwrap();
        assert!(matches!(desk.refusal("d", Some("good-password")).await, Denied::Banned { .. }), "{kind}");
        connected.client_id = Some("c".into());
        let remote = Some(([203, 0, 113, 9], 5).into());
        assert!(desk.admission.recheck(&mut connected, remote).is_err(), "{kind}");
        assert!(desk.registry.delete_ban(&ban.id).await.unwrap());
        assert_eq!(desk.admission.recheck(&mut connected, remote), Ok(()));
    }
    let limits = RateLimits { connects_per_s: 1, ..RateLimits::default() };
    desk.registry.put_realm("main", RateLimits::default(), limits).await.unwrap();
    desk.admission.recheck(&mut connected, None).unwrap();
    assert!(connected.limits.is_some());
    let mut refused = 0;
    for _ in 0..4 {
        match desk.login("d", Some("good-password")).await {
            Err(Denied::TooMany { retry_after }) => {
                refused += u32::from(retry_after <= Duration::from_secs(2))
            }
            other => drop(other.unwrap()),
        }
    }
    assert!(refused >= 1);
}

#[tokio::test]
async fn failed_logins_ban_their_address() {
    let desk = Desk::open(false).await;
    for _ in 0..30 {
        assert_eq!(desk.refusal("d", Some("wrong-password")).await, Denied::BadCredentials);
    }
    assert!(matches!(desk.refusal("d", Some("wrong-password")).await, Denied::Banned { .. }));
    assert!(!desk.admission.admits_address([203, 0, 113, 9].into()));
    let bans = desk.admission.automatic_bans();
    assert!(desk.admission.lift_automatic(&bans[0].id));
    assert!(desk.admission.admits_address([203, 0, 113, 9].into()));
}

/// The cost that the cache saves, and that it does: thousands of logins in the time of a few hashes.
#[tokio::test]
async fn a_known_password_costs_no_hash() {
    let dir = tempfile::tempdir().unwrap();
    let registry = Arc::new(Registry::open(&dir.path().join("r.sqlite")).await.unwrap());
    registry.create_device("d", None).await.unwrap();
    registry.set_password("main", "d", Some("good-password")).await.unwrap();
    let login = async || registry.verify_password("main", "d", b"good-password").await.unwrap();
    let start = Instant::now();
    assert!(login().await);
    let first = start.elapsed();
    let start = Instant::now();
    for _ in 0..10_000 {
        assert!(login().await);
    }
    let each = start.elapsed() / 10_000;
    println!("first login {first:?}, each of 10,000 further ones {each:?}");
    assert!(each * 100 < first, "first {first:?}, then {each:?}");
}
