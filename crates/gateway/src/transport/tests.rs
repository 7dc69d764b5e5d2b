use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::CertificateError;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

use super::certificate::PeerCertificate;
use super::tls::{Tls, TlsError};
use super::*;

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src/transport/fixtures").join(name)
}

fn config() -> TlsConfig {
    TlsConfig {
        certificate: fixture("device.pem"),
        key: fixture("device.key"),
        client_ca: vec![ClientCa { realm: "north".into(), file: fixture("ca.pem"), crl: Vec::new() }],
        ..TlsConfig::default()
    }
}

fn der(name: &str) -> CertificateDer<'static> {
    CertificateDer::from_pem_file(fixture(name)).unwrap()
}

#[test]
fn a_certificate_says_who_its_client_is() {
    let certificate = PeerCertificate::read("north".into(), &der("device.pem")).unwrap();
    assert_eq!(certificate.common_name.as_deref(), Some("device-1"));
    assert_eq!(certificate.san_dns, ["device-1.example"]);
    assert_eq!(certificate.san_uri, ["urn:dev:1"]);
    assert_eq!(certificate.san_email, ["d1@example.com"]);
    assert_eq!(certificate.serial, "0a1b");
    assert_eq!(certificate.fingerprint.len(), 64);
    let id = |rule| certificate.device_id(rule);
    assert_eq!(id(CertificateIdentity::Cn), Some("device-1"));
    assert_eq!(id(CertificateIdentity::SanDns), Some("device-1.example"));
    assert_eq!(id(CertificateIdentity::SanUri), Some("urn:dev:1"));
    assert_eq!(id(CertificateIdentity::None), None);
}

#[test]
fn mistakes_in_files_are_told_apart() {
    let error = |change: &dyn Fn(&mut TlsConfig)| {
        let mut config = config();
        change(&mut config);
        Tls::check(&config).unwrap_err()
    };
    assert!(Tls::check(&config()).unwrap().server_end_s > 4_000_000_000);
    assert!(
        matches!(error(&|c| c.key = fixture("none.key")), TlsError::Read { path, .. } if path.ends_with("none.key"))
    );
    assert!(matches!(error(&|c| c.key = fixture("ca.pem")), TlsError::Missing { what: "private key", .. }));
    assert!(matches!(
        error(&|c| c.certificate = fixture("device.key")),
        TlsError::Missing { what: "certificate", .. }
    ));
    assert!(matches!(error(&|c| c.certificate = fixture("ca.pem")), TlsError::Mismatch { .. }));
    assert!(matches!(error(&|c| c.client_ca[0].crl = vec![fixture("ca.pem")]), TlsError::Missing { .. }));
    assert!(matches!(error(&|c| c.key = PathBuf::new()), TlsError::Settings(_)));
    let asks = error(&|c| {
        c.client_certificates = ClientCertificates::Required;
        c.client_ca.clear();
    });
    assert!(asks.to_string().contains("[[tls.client_ca]]"), "{asks}");
}

#[test]
fn revoked_certificates_are_cut_off_when_the_list_is_read() {
    let mut config = config();
    let tls = Tls::load(config.clone(), TransportMetrics::default()).unwrap();
    let (good, revoked) = ([der("device.pem")], [der("revoked.pem")]);
    let leashes = [tls.leashes.hold(&good), tls.leashes.hold(&revoked)];
    let realms = |tls: &Tls, chain: &[CertificateDer<'_>]| tls.material().realm_of(chain);
    assert_eq!(&*realms(&tls, &revoked).unwrap(), "north");
    config.client_ca[0].crl = vec![fixture("ca.crl")];
    let strict = Tls::load(config, TransportMetrics::default()).unwrap();
    assert_eq!(&*realms(&strict, &good).unwrap(), "north");
    let refused = rustls::Error::InvalidCertificate(CertificateError::Revoked);
    assert_eq!(realms(&strict, &revoked).unwrap_err(), refused);
    let cut = tls.leashes.cut_unless(|chain| realms(&strict, chain).is_ok());
    assert_eq!(cut, 1);
    let waker = futures::task::noop_waker();
    let cx = std::task::Context::from_waker(&waker);
    assert_eq!(leashes.each_ref().map(|leash| leash.is_cut(&cx)), [false, true]);
}

#[test]
fn a_listener_with_tls_needs_certificates() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let address = "127.0.0.1:0".parse().unwrap();
        let bind = async || tokio::net::TcpListener::bind(address).await.unwrap();
        let network = NetworkConfig::default();
        let mut config = ListenerConfig::new(Protocol::Mqtts, address);
        let bare = Transport::new(&network, None, TransportMetrics::default());
        assert!(bare.listener(bind().await, &config).is_err());
        let mut without_ca = self::config();
        without_ca.client_ca.clear();
        let tls = Tls::load(without_ca, TransportMetrics::default()).unwrap();
        let transport = Transport::new(&network, Some(Arc::clone(&tls)), TransportMetrics::default());
        assert!(transport.listener(bind().await, &config).is_ok());
        config.client_certificates = Some(ClientCertificates::Required);
        assert!(transport.listener(bind().await, &config).is_err());
    });
}
