//! Parts of URLs that name engines.

use percent_encoding::percent_decode_str;

/// Host and port of `host:port`, with the default port where there is none; IPv6 addresses stand in brackets. Nothing if it is
/// no host.
#[must_use]
pub fn host_and_port(text: &str, default: u16) -> Option<(&str, u16)> {
    let (host, port) = match text.rsplit_once(':') {
        // The last colon of a bare IPv6 address is no port's.
        Some((host, port)) if !port.contains(']') => (host, port.parse::<u16>().ok()?),
        _ => (text, default),
    };
    let is_address = host.starts_with('[') && host.ends_with(']');
    let is_name = !host.is_empty() && host.chars().all(|c| c.is_ascii_alphanumeric() || ".-_".contains(c));
    (is_address || is_name).then_some((host, port))
}

/// A part of a URL with its `%XX` undone; nothing if that is no UTF-8.
#[must_use]
pub fn url_decoded(text: &str) -> Option<String> {
    Some(percent_decode_str(text).decode_utf8().ok()?.into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_have_ports() {
        assert_eq!(host_and_port("a.example:9", 1), Some(("a.example", 9)));
        assert_eq!(host_and_port("a.example", 1), Some(("a.example", 1)));
        assert_eq!(host_and_port("[::1]", 1), Some(("[::1]", 1)));
        assert_eq!(host_and_port("[::1]:9", 1), Some(("[::1]", 9)));
        for wrong in ["", ":9", "a:b", "a b", "a:99999"] {
            assert_eq!(host_and_port(wrong, 1), None, "{wrong}");
        }
    }

    #[test]
    fn what_was_encoded_is_read() {
        assert_eq!(url_decoded("u%40x%C3%A9"), Some("u@xé".to_owned()));
        assert_eq!(url_decoded("100%"), Some("100%".to_owned()));
        assert_eq!(url_decoded("%FF"), None);
    }
}
