//! Settings of admission: section `[admission]`.

use std::net::IpAddr;
use std::path::PathBuf;

use anyhow::ensure;
use catchment_store::registry::{Banned, PasswordConfig};
use serde::{Deserialize, Serialize};

/// Who comes in, and by what.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct AdmissionConfig {
    /// Passwords of devices.
    pub(crate) passwords: PasswordConfig,
    /// Bans that come of failed logins.
    pub(crate) bans: BanConfig,
    /// JSON web tokens.
    pub(crate) jwt: JwtConfig,
}

/// When an address is kept out by itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct BanConfig {
    /// Failed logins of one address (of one /64 with IPv6) within the window; 0: no bans by themselves.
    pub(crate) failures_max: u32,
    /// The window, in seconds.
    pub(crate) window_s: u64,
    /// How long the ban lasts, in seconds.
    pub(crate) ban_s: u64,
    /// Addresses and networks that are never banned by themselves: balancers, for instance.
    pub(crate) exempt: Vec<String>,
}

impl Default for BanConfig {
    fn default() -> Self {
        let exempt = ["127.0.0.0/8", "::1"].map(str::to_owned).to_vec();
        Self { failures_max: 30, window_s: 60, ban_s: 300, exempt }
    }
}

/// JSON web tokens, off unless there is a key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct JwtConfig {
    /// A file with a public key (PEM) or a secret of at least 32 bytes.
    pub(crate) key_file: Option<PathBuf>,
    /// Where a JSON web key set is, by `https://` or `http://`; read again in the background.
    pub(crate) jwks_url: Option<String>,
    /// CAs that vouch for an `https://` key set, in a PEM file that is read again with it; those of the system, if not given.
    pub(crate) ca: Option<PathBuf>,
    /// Seconds between two readings. A token of an unknown key asks for one, too.
    pub(crate) refresh_s: u64,
    /// Algorithms that are taken.
    pub(crate) algorithms: Vec<String>,
    /// What `iss` must be; any, if not given.
    pub(crate) issuer: Option<String>,
    /// What `aud` must be or hold; any, if not given.
    pub(crate) audience: Option<String>,
    /// How far clocks may be apart, in seconds.
    pub(crate) leeway_s: u64,
    /// The claim with the device id.
    pub(crate) device_claim: String,
    /// The claim with the realm; without it, `main`.
    pub(crate) realm_claim: String,
    /// The claim with the role (admin, reader, device); without it, device.
    pub(crate) role_claim: String,
}

impl Default for JwtConfig {
    fn default() -> Self {
        let algorithms = ["RS256", "PS256", "ES256", "ES384", "EdDSA", "HS256"];
        Self {
            key_file: None,
            jwks_url: None,
            ca: None,
            refresh_s: 300,
            algorithms: algorithms.map(str::to_owned).to_vec(),
            issuer: None,
            audience: None,
            leeway_s: 30,
            device_claim: "sub".to_owned(),
            realm_claim: "realm".to_owned(),
            role_claim: "role".to_owned(),
        }
    }
}

impl AdmissionConfig {
    /// Checks what can be checked without the machine.
    ///
    /// # Errors
    /// Names the setting and what it may be.
    pub(crate) fn check(&self) -> anyhow::Result<()> {
        self.passwords.check()?;
        self.bans.exempt()?;
        ensure!(
            self.bans.window_s > 0 && self.bans.ban_s > 0,
            "admission.bans: window_s and ban_s must be at least 1; failures_max = 0 turns these bans off"
        );
        let JwtConfig { key_file, jwks_url, ca, refresh_s, .. } = &self.jwt;
        ensure!(
            key_file.is_none() || jwks_url.is_none(),
            "admission.jwt has both key_file and jwks_url; the keys come from one place"
        );
        let scheme = jwks_url.as_ref().map(|url| url.split("://").next().unwrap_or_default());
        ensure!(
            scheme.is_none_or(|scheme| ["http", "https"].contains(&scheme)),
            "admission.jwt.jwks_url begins with neither https:// nor http://"
        );
        ensure!(
            ca.is_none() || scheme == Some("https"),
            "admission.jwt.ca vouches for a key set; it needs a jwks_url that begins with https://"
        );
        ensure!(*refresh_s > 0, "admission.jwt.refresh_s is 0; it must be at least 1");
        Ok(())
    }
}

impl BanConfig {
    /// Who is never banned by himself.
    pub(super) fn exempt(&self) -> anyhow::Result<Vec<Banned>> {
        let parse = |text: &String| {
            Banned::parse("address", text).map_err(|error| anyhow::anyhow!("admission.bans.exempt: {error}"))
        };
        self.exempt.iter().map(parse).collect()
    }
}

/// The part of an address that one client has to itself: an IPv6 network of 64 bits is one client.
pub(super) fn client_part(address: IpAddr) -> (IpAddr, u8) {
    match address.to_canonical() {
        IpAddr::V4(address) => (address.into(), 32),
        IpAddr::V6(address) => {
            let network = address.to_bits() & !u128::from(u64::MAX);
            (std::net::Ipv6Addr::from_bits(network).into(), 64)
        }
    }
}
