//! Devices by their certificates: the CA gives the realm, the certificate the device.

use catchment_gateway::transport::PeerCertificate;
use catchment_gateway::{Denied, Principal, Role};
use catchment_types::check_device_id;

/// Who a client with this certificate is: `device_id` and nobody else.
///
/// # Errors
/// What the certificate has for an id cannot be one.
pub(super) fn principal(certificate: &PeerCertificate, device_id: &str) -> Result<Principal, Denied> {
    check_device_id(device_id).map_err(|bad| {
        Denied::NotAllowed(format!("the certificate {} names no device: {bad}", certificate.serial))
    })?;
    Ok(Principal::new(
        certificate.realm.clone(),
        format!("certificate {device_id}"),
        Role::Device(device_id.into()),
    ))
}
