//! JSON web tokens: signed by somebody else, checked here.
//!
//! A token is taken when its algorithm is one of those allowed and fits the kind of the key (so that a public key never
//! serves as a secret, and `none` is none), its signature holds, it has not expired (`exp` must be there), has begun
//! (`nbf`), and `iss` and `aud` are as set. The keys come from a file or a JSON web key set; the set is read again in the
//! background, at intervals and when a token names a key that is not in it, and stays as it was when that fails. Over
//! `https://` its server is verified, and no redirection leads away from HTTPS.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use jsonwebtoken::jwk::{AlgorithmParameters, JwkSet};
use jsonwebtoken::{Algorithm, DecodingKey, Validation, decode, decode_header};
use parking_lot::RwLock;
use serde_json::{Map, Value};
use tokio::sync::Notify;
use ureq::Agent;

use super::config::JwtConfig;
use crate::trust::Roots;

/// A secret below this can be guessed.
const SECRET_BYTES_MIN: usize = 32;
/// Longest token that is looked at.
const TOKEN_BYTES_MAX: usize = 8 << 10;
/// Largest key set.
const KEYS_BYTES_MAX: u64 = 1 << 20;
const FETCH_MAX: Duration = Duration::from_secs(10);
/// Least time between two readings of the key set, whoever asks for them.
const REFRESH_REST: Duration = Duration::from_secs(2);

struct Key {
    id: Option<String>,
    key: DecodingKey,
}

/// Who a token speaks of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Claims {
    pub(super) realm: Option<String>,
    pub(super) role: Option<String>,
    pub(super) device_id: Option<String>,
    pub(super) subject: String,
    pub(super) expires_at: Instant,
}

/// Checks tokens.
pub(super) struct Jwt {
    config: JwtConfig,
    algorithms: Vec<Algorithm>,
    keys: RwLock<Arc<Vec<Key>>>,
    unknown_key: Notify,
}

impl Jwt {
    /// A checker, if there is a key. With a key set, a task reads it until the checker is dropped.
    ///
    /// # Errors
    /// The key file cannot be used, there is no CA for a key set over HTTPS, or an algorithm is not known.
    pub(super) fn new(config: JwtConfig) -> anyhow::Result<Option<Arc<Self>>> {
        let Some((algorithms, keys)) = load(&config)? else { return Ok(None) };
        let keys = RwLock::new(Arc::new(keys));
        let jwt = Arc::new(Self { config, algorithms, keys, unknown_key: Notify::new() });
        if let Some(url) = jwt.config.jwks_url.clone() {
            tokio::spawn(refresh(Arc::clone(&jwt), url));
        }
        Ok(Some(jwt))
    }

    /// Checks what can be checked without asking for the key set.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub(super) fn check(config: &JwtConfig) -> anyhow::Result<()> {
        load(config).map(drop)
    }

    /// Whether a secret may be such a token: the first part of each is JSON in base64.
    pub(super) fn is_one(secret: &str) -> bool {
        secret.starts_with("eyJ") && secret.bytes().filter(|&byte| byte == b'.').count() == 2
    }

    /// What a token says, if it holds.
    pub(super) fn verify(&self, token: &str) -> Option<Claims> {
        if token.len() > TOKEN_BYTES_MAX {
            return None;
        }
        let header = decode_header(token).ok()?;
        if !self.algorithms.contains(&header.alg) {
            return None;
        }
        let keys = Arc::clone(&self.keys.read());
        let named = |key: &&Key| key.id.is_none() || header.kid.is_none() || key.id == header.kid;
        let mut candidates = keys.iter().filter(named).peekable();
        if candidates.peek().is_none() {
            self.unknown_key.notify_one();
            return None;
        }
        let validation = self.validation(header.alg);
        let claims =
            candidates.find_map(|key| decode::<Map<String, Value>>(token, &key.key, &validation).ok());
        self.claims(&claims?.claims)
    }

    fn validation(&self, algorithm: Algorithm) -> Validation {
        let mut validation = Validation::new(algorithm);
        validation.leeway = self.config.leeway_s;
        validation.validate_nbf = true;
        let mut required = vec!["exp"];
        if let Some(issuer) = &self.config.issuer {
            validation.set_issuer(&[issuer]);
            required.push("iss");
        }
        match &self.config.audience {
            Some(audience) => {
                validation.set_audience(&[audience]);
                required.push("aud");
            }
            None => validation.validate_aud = false,
        }
        validation.set_required_spec_claims(&required);
        validation
    }

    fn claims(&self, claims: &Map<String, Value>) -> Option<Claims> {
        let text = |name: &str| claims.get(name).and_then(Value::as_str).map(str::to_owned);
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).ok()?;
        let expires = Duration::try_from_secs_f64(claims.get("exp")?.as_f64()?).ok()?;
        // A connection lasts as long as the token would still be taken.
        let left = (expires + Duration::from_secs(self.config.leeway_s)).checked_sub(now)?;
        Some(Claims {
            realm: text(&self.config.realm_claim),
            role: text(&self.config.role_claim),
            device_id: text(&self.config.device_claim),
            subject: text("sub").unwrap_or_default(),
            // Instants end somewhere; a century is as good as never.
            expires_at: Instant::now() + left.min(Duration::from_secs(100 * 365 * 86_400)),
        })
    }
}

/// The algorithms that are taken, and the keys as far as they are known; nothing where no token is taken.
fn load(config: &JwtConfig) -> anyhow::Result<Option<(Vec<Algorithm>, Vec<Key>)>> {
    let keys = match (&config.key_file, &config.jwks_url) {
        (None, None) => return Ok(None),
        (Some(path), _) => {
            let bytes = std::fs::read(path)
                .with_context(|| format!("admission.jwt.key_file {} cannot be read", path.display()))?;
            let key = read_key(&bytes)
                .with_context(|| format!("admission.jwt.key_file {} is no key", path.display()))?;
            vec![Key { id: None, key }]
        }
        (None, Some(url)) => {
            // Whether there is any CA is known now; a key set that cannot be had now may come later.
            agent(config, url)?;
            Vec::new()
        }
    };
    let parse = |name: &String| {
        name.parse::<Algorithm>()
            .with_context(|| format!("admission.jwt.algorithms: {name:?} is none that is known"))
    };
    let algorithms = config.algorithms.iter().map(parse).collect::<anyhow::Result<_>>()?;
    Ok(Some((algorithms, keys)))
}

/// A public key in PEM, or a secret.
fn read_key(bytes: &[u8]) -> anyhow::Result<DecodingKey> {
    if bytes.starts_with(b"-----BEGIN") {
        let readers = [DecodingKey::from_rsa_pem, DecodingKey::from_ec_pem, DecodingKey::from_ed_pem];
        return readers
            .iter()
            .find_map(|read| read(bytes).ok())
            .context("it is neither an RSA, an EC nor an Ed25519 public key in PEM (BEGIN PUBLIC KEY)");
    }
    let secret = bytes.trim_ascii();
    ensure!(secret.len() >= SECRET_BYTES_MIN, "a secret has at least {SECRET_BYTES_MIN} bytes");
    Ok(DecodingKey::from_secret(secret))
}

fn read_set(text: &str) -> anyhow::Result<Vec<Key>> {
    let set: JwkSet = serde_json::from_str(text).context("it is no JSON web key set")?;
    // A secret that anybody can fetch is none; keys of kinds that are not known are for others.
    let is_public =
        |key: &&jsonwebtoken::jwk::Jwk| !matches!(key.algorithm, AlgorithmParameters::OctetKey(_));
    let read = |key: &jsonwebtoken::jwk::Jwk| {
        let id = key.common.key_id.clone();
        DecodingKey::from_jwk(key).ok().map(|key| Key { id, key })
    };
    let keys: Vec<_> = set.keys.iter().filter(is_public).filter_map(read).collect();
    if keys.is_empty() {
        bail!("it holds no key that can be used");
    }
    Ok(keys)
}

async fn refresh(jwt: Arc<Jwt>, url: String) {
    let (config, weak) = (jwt.config.clone(), Arc::downgrade(&jwt));
    let interval = Duration::from_secs(config.refresh_s);
    drop(jwt);
    loop {
        let (config, from) = (config.clone(), url.clone());
        let fetched = tokio::task::spawn_blocking(move || fetch(&config, &from)).await;
        let Some(jwt) = weak.upgrade() else { return };
        match fetched.context("the reading was broken off").and_then(|fetched| fetched) {
            Ok(keys) => {
                tracing::debug!(url, keys = keys.len(), "the key set was read");
                *jwt.keys.write() = Arc::new(keys);
            }
            Err(error) => tracing::warn!(
                url,
                error = format!("{error:#}"),
                "the key set was not read; keys stay as they are"
            ),
        }
        tokio::time::sleep(REFRESH_REST).await;
        tokio::select! {
            () = jwt.unknown_key.notified() => {}
            () = tokio::time::sleep(interval) => {}
        }
    }
}

/// What reads the key set; the CAs are read anew with each.
fn agent(config: &JwtConfig, url: &str) -> anyhow::Result<Agent> {
    let builder = Agent::config_builder().timeout_global(Some(FETCH_MAX));
    if !url.starts_with("https://") {
        return Ok(builder.build().into());
    }
    let roots = Roots::read(config.ca.as_deref()).context("admission.jwt.ca")?;
    Ok(builder.https_only(true).tls_config(roots.for_http()).build().into())
}

fn fetch(config: &JwtConfig, url: &str) -> anyhow::Result<Vec<Key>> {
    let mut response = agent(config, url)?.get(url).call().map_err(untrusted)?;
    let text = response.body_mut().with_config().limit(KEYS_BYTES_MAX).read_to_string()?;
    read_set(&text)
}

/// Says of a certificate that does not hold what to do about it.
fn untrusted(error: ureq::Error) -> anyhow::Error {
    let tls = match &error {
        ureq::Error::Io(error) => error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()),
        ureq::Error::Rustls(error) => Some(error),
        _ => None,
    };
    let is_refused = matches!(tls, Some(rustls::Error::InvalidCertificate(_)));
    let error = anyhow::Error::from(error);
    match is_refused {
        true => error.context(
            "the server's certificate is refused; admission.jwt.ca names the file of the CA that vouches for it",
        ),
        false => error,
    }
}

#[cfg(test)]
mod tests {
    use jsonwebtoken::{EncodingKey, Header, encode};
    use serde_json::json;

    use super::*;

    const SECRET: &[u8] = b"0123456789abcdef0123456789abcdef";

    fn jwt(config: JwtConfig) -> Arc<Jwt> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), SECRET).unwrap();
        Jwt::new(JwtConfig { key_file: Some(file.path().to_owned()), ..config }).unwrap().unwrap()
    }

    fn signed(algorithm: Algorithm, claims: &Value) -> String {
        encode(&Header::new(algorithm), claims, &EncodingKey::from_secret(SECRET)).unwrap()
    }

    fn in_s(seconds: i64) -> i64 {
        catchment_types::Timestamp::now().as_micros() / 1_000_000 + seconds
    }

    #[test]
    fn claims_are_checked() {
        let jwt =
            jwt(JwtConfig { issuer: Some("me".into()), audience: Some("us".into()), ..JwtConfig::default() });
        let good = json!({"sub": "d", "iss": "me", "aud": ["us", "them"], "exp": in_s(60), "realm": "r", "role": "reader"});
        let claims = jwt.verify(&signed(Algorithm::HS256, &good)).unwrap();
        assert_eq!((claims.device_id.as_deref(), claims.realm.as_deref()), (Some("d"), Some("r")));
        assert_eq!(claims.role.as_deref(), Some("reader"));
        let bad = [
            ("exp", json!(in_s(-60))),
            ("exp", json!(null)),
            ("nbf", json!(in_s(600))),
            ("iss", json!("x")),
            ("iss", json!(null)),
            ("aud", json!("x")),
            ("aud", json!(null)),
        ];
        for (name, value) in bad {
            let mut claims = good.clone();
            match value {
                Value::Null => drop(claims.as_object_mut().unwrap().remove(name)),
                value => claims[name] = value,
            }
            assert_eq!(jwt.verify(&signed(Algorithm::HS256, &claims)), None, "{claims}");
        }
        assert_eq!(jwt.verify(&signed(Algorithm::HS512, &good)), None, "an algorithm that is not allowed");
        let forged = signed(Algorithm::HS256, &good);
        assert_eq!(jwt.verify(&format!("{}x", &forged[..forged.len() - 1])), None);
    }

    #[test]
    fn none_is_no_algorithm() {
        use base64::Engine as _;
        let encode = |text: String| base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(text);
        let claims = json!({"sub": "d", "exp": in_s(60)}).to_string();
        let token = format!("{}.{}.", encode(r#"{"alg":"none"}"#.into()), encode(claims));
        assert!(Jwt::is_one(&token));
        assert_eq!(jwt(JwtConfig::default()).verify(&token), None);
    }

    #[test]
    fn keys_that_are_none_are_refused() {
        assert!(read_key(b"short").is_err());
        assert!(read_key(b"-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n").is_err());
        let secret = r#"{"keys": [{"kty": "oct", "k": "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY", "alg": "HS256"}]}"#;
        assert!(read_set(secret).is_err(), "a secret that anybody can fetch");
        assert!(read_set("{}").is_err());
    }
}
