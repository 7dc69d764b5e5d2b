//! What a device needs to send, ready to paste.

use catchment_types::DEFAULT_REALM;
use serde::Serialize;
use utoipa::ToSchema;

use crate::status::Listener;

/// What a device shows.
#[derive(Debug, Clone, Copy)]
pub(super) enum Secret<'a> {
    /// Its token; the user name is for logs only.
    Token(&'a str),
    /// Its password, which goes with its user name.
    Password(&'a str),
}

impl<'a> Secret<'a> {
    const fn text(self) -> &'a str {
        match self {
            Self::Token(text) | Self::Password(text) => text,
        }
    }
}

/// Ready to paste into a client.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct ClientSettings {
    mqtt: Option<MqttSettings>,
    http: Option<HttpSettings>,
}

#[derive(Debug, Serialize, ToSchema)]
pub(super) struct MqttSettings {
    url: String,
    host: String,
    port: u16,
    client_id: String,
    username: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    password: Option<String>,
    topic: String,
    /// To try it from a shell.
    command: String,
    /// To try it from Python.
    python: String,
}

#[derive(Debug, Serialize, ToSchema)]
pub(super) struct HttpSettings {
    url: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    authorization: Option<String>,
    /// To try it from a shell.
    command: String,
}

const SAMPLE: &str = r#"{"temperature":21.5}"#;

impl ClientSettings {
    pub(super) fn new(
        realm: &str,
        device_id: &str,
        secret: Option<Secret<'_>>,
        listeners: &[Listener],
    ) -> Self {
        let url = |name: &str| {
            let listener = listeners.iter().find(|listener| listener.name == name);
            listener.map(|listener| listener.url.trim_end_matches('/').to_owned())
        };
        // The user name of a password says the realm, where it is not the main one.
        let username = match realm {
            DEFAULT_REALM => device_id.to_owned(),
            realm => format!("{realm}/{device_id}"),
        };
        let mqtt = url("mqtt").map(|url| MqttSettings::new(url, device_id, &username, secret));
        // Events of other realms are not taken by HTTP.
        let http = url("http").filter(|_| realm == DEFAULT_REALM);
        let http = http.map(|url| HttpSettings::new(&url, device_id, &username, secret));
        Self { mqtt, http }
    }
}

impl MqttSettings {
    fn new(url: String, device_id: &str, username: &str, secret: Option<Secret<'_>>) -> Self {
        let topic = format!("devices/{device_id}/state");
        let authority = url.rsplit("://").next().unwrap_or_default();
        let (host, port) = authority.rsplit_once(':').unwrap_or((authority, "1883"));
        let (host, port) = (host.trim_matches(['[', ']']).to_owned(), port.parse().unwrap_or(1883));
        let password = secret.map(|secret| secret.text().to_owned());
        let login =
            password.as_ref().map(|password| format!(" -u {} -P {}", quote(username), quote(password)));
        let command = format!(
            "mosquitto_pub -h {host} -p {port} -i {}{} -q 1 -t {} -m '{SAMPLE}'",
            quote(device_id),
            login.unwrap_or_default(),
            quote(&topic)
        );
        let text = |text: &str| serde_json::Value::from(text).to_string();
        let login = password.as_ref().map(|password| {
            format!(", auth={{\"username\": {}, \"password\": {}}}", text(username), text(password))
        });
        let python = format!(
            "import paho.mqtt.publish as mqtt\nmqtt.single({}, '{SAMPLE}', qos=1, hostname={}, port={port}, client_id={}{})",
            text(&topic),
            text(&host),
            text(device_id),
            login.unwrap_or_default(),
        );
        let (client_id, username) = (device_id.to_owned(), username.to_owned());
        Self { url, host, port, client_id, username, password, topic, command, python }
    }
}

impl HttpSettings {
    fn new(url: &str, device_id: &str, username: &str, secret: Option<Secret<'_>>) -> Self {
        let url = format!("{url}/api/v1/devices/{}/events/state", percent_encode(device_id));
        let (authorization, login) = match secret {
            Some(Secret::Token(token)) => {
                let authorization = format!("Bearer {token}");
                let login = format!(" -H 'Authorization: {authorization}'");
                (Some(authorization), login)
            }
            Some(Secret::Password(password)) => {
                (None, format!(" -u {}", quote(&format!("{username}:{password}"))))
            }
            None => (None, String::new()),
        };
        let command =
            format!("curl -X POST{login} -H 'Content-Type: application/json' -d '{SAMPLE}' {}", quote(&url));
        Self { url, authorization, command }
    }
}

/// A word for a POSIX shell.
fn quote(word: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_./:%".contains(c);
    match word.chars().all(is_plain) {
        true => word.to_owned(),
        false => format!("'{}'", word.replace('\'', r"'\''")),
    }
}

fn percent_encode(segment: &str) -> String {
    let encode = |byte: u8| match byte {
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => char::from(byte).to_string(),
        _ => format!("%{byte:02X}"),
    };
    segment.bytes().map(encode).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_survive_a_shell() {
        let listeners = [("mqtt", "mqtt://[::1]:1884"), ("http", "http://127.0.0.1:8080/")]
            .map(|(name, url)| Listener { name: name.to_owned(), url: url.to_owned() });
        let settings = ClientSettings::new("main", "it's 1", Some(Secret::Token("ctm_x")), &listeners);
        assert_eq!(
            settings.mqtt.unwrap().command,
            r#"mosquitto_pub -h ::1 -p 1884 -i 'it'\''s 1' -u 'it'\''s 1' -P ctm_x -q 1 -t 'devices/it'\''s 1/state' -m '{"temperature":21.5}'"#
        );
        let http = settings.http.unwrap();
        assert_eq!(http.url, "http://127.0.0.1:8080/api/v1/devices/it%27s%201/events/state");
        assert!(http.command.contains("-H 'Authorization: Bearer ctm_x'"));
        let other = ClientSettings::new("plant", "d", Some(Secret::Password("p")), &listeners);
        assert!(other.http.is_none() && other.mqtt.unwrap().username == "plant/d");
        assert!(ClientSettings::new("main", "x", None, &[]).mqtt.is_none());
    }
}
