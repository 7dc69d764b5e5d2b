//! Clients that were not written here: Debian's mosquitto_pub and mosquitto_sub, and rumqttc in both versions.

#![allow(clippy::unwrap_used)]

mod support;

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use support::*;

/// A running client; killed when dropped. It is waited for on a blocking thread: Tokio's processes are a feature that the
/// product does not use, and everything behind Tokio would be built twice for it.
struct Client(Child);

impl Drop for Client {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Client {
    async fn succeeds(mut self) -> bool {
        tokio::task::spawn_blocking(move || self.0.wait()).await.unwrap().unwrap().success()
    }

    async fn lines(mut self, count: usize) -> Vec<String> {
        let reader = BufReader::new(self.0.stdout.take().unwrap()).lines();
        let lines = tokio::task::spawn_blocking(move || reader.take(count).collect::<Result<Vec<_>, _>>());
        tokio::time::timeout(PATIENCE, lines).await.expect("lines").unwrap().unwrap()
    }
}

/// mosquitto_pub or mosquitto_sub with the server's address; none where Debian's mosquitto-clients is not installed.
fn mosquitto(tool: &str, server: &Server, arguments: &[&str]) -> Option<Client> {
    let port = server.address.port().to_string();
    let child = Command::new(tool)
        .args(["-h", "127.0.0.1", "-p", &port])
        .args(arguments)
        .stdout(Stdio::piped())
        .spawn();
    match child {
        Ok(child) => Some(Client(child)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            eprintln!("skipped: {tool} is not installed (apt install mosquitto-clients)");
            None
        }
        Err(error) => panic!("{tool}: {error}"),
    }
}

#[tokio::test]
async fn mosquitto_both_ways() {
    for version in ["mqttv311", "mqttv5"] {
        let server = Server::start().await;
        let subscribe = ["-V", version, "-t", "devices/#", "-q", "2", "-v", "-i", "watcher"];
        let Some(watcher) = mosquitto("mosquitto_sub", &server, &subscribe) else { return };
        until("subscribed", || server.metric("catchment_gateway_subscriptions ") == 1.0).await;
        for qos in ["0", "1", "2"] {
            let publish =
                ["-V", version, "-t", "devices/m1/state", "-q", qos, "-m", &format!("{{\"qos\":{qos}}}")];
            assert!(mosquitto("mosquitto_pub", &server, &publish).unwrap().succeeds().await);
        }
        let wanted = ["{\"qos\":0}", "{\"qos\":1}", "{\"qos\":2}"];
        let got = watcher.lines(3).await;
        assert_eq!(got, wanted.map(|payload| format!("devices/m1/state {payload}")));
        until("kept", || server.log.payloads() == wanted).await;
        // Retained, and many lines through one connection.
        let retain = ["-V", version, "-t", "devices/m1/config", "-r", "-m", "kept"];
        assert!(mosquitto("mosquitto_pub", &server, &retain).unwrap().succeeds().await);
        let once = ["-V", version, "-t", "devices/+/config", "-C", "1"];
        let once = mosquitto("mosquitto_sub", &server, &once).unwrap();
        assert_eq!(once.lines(1).await, ["kept"]);
        let repeat = ["-V", version, "-t", "devices/m1/many", "-q", "1", "-m", "x", "--repeat", "500"];
        assert!(mosquitto("mosquitto_pub", &server, &repeat).unwrap().succeeds().await);
        assert_eq!(server.log.kept().len(), 3 + 1 + 500);
    }
}

#[tokio::test]
async fn rumqttc_version_3() {
    use rumqttc::{AsyncClient, Event, MqttOptions, Packet, QoS};
    let server = Server::start().await;
    let mut options = MqttOptions::new("r3", "127.0.0.1", server.address.port());
    options.set_keep_alive(Duration::from_secs(5)).set_inflight(200);
    let (client, mut events) = AsyncClient::new(options, 100);
    client.subscribe("devices/+/state", QoS::ExactlyOnce).await.unwrap();
    let publisher = tokio::spawn(async move {
        for number in 0..300u32 {
            let qos = [QoS::AtMostOnce, QoS::AtLeastOnce, QoS::ExactlyOnce][number as usize % 3];
            client.publish("devices/r/state", qos, false, number.to_string()).await.unwrap();
        }
        client
    });
    let mut got = Vec::new();
    while got.len() < 300 {
        let event = tokio::time::timeout(PATIENCE, events.poll()).await.expect("an event").unwrap();
        if let Event::Incoming(Packet::Publish(publish)) = event {
            got.push(String::from_utf8(publish.payload.to_vec()).unwrap());
        }
    }
    let wanted: Vec<String> = (0..300).map(|number| number.to_string()).collect();
    assert_eq!(got, wanted);
    assert_eq!(server.log.payloads(), wanted);
    publisher.await.unwrap().disconnect().await.unwrap();
}

#[tokio::test]
async fn rumqttc_version_5() {
    use rumqttc::v5::mqttbytes::QoS;
    use rumqttc::v5::mqttbytes::v5::Packet;
    use rumqttc::v5::{AsyncClient, Event, MqttOptions};
    let server = Server::start().await;
    let mut options = MqttOptions::new("r5", "127.0.0.1", server.address.port());
    options.set_keep_alive(Duration::from_secs(5));
    let (client, mut events) = AsyncClient::new(options, 100);
    client.subscribe("devices/+/state", QoS::AtLeastOnce).await.unwrap();
    let publisher = tokio::spawn(async move {
        for number in 0..300u32 {
            let qos = [QoS::AtMostOnce, QoS::AtLeastOnce, QoS::ExactlyOnce][number as usize % 3];
            client.publish("devices/r/state", qos, false, number.to_string()).await.unwrap();
        }
        client
    });
    let (mut got, mut acknowledged) = (0, 0);
    while got < 300 || acknowledged < 200 {
        let event = tokio::time::timeout(PATIENCE, events.poll()).await.expect("an event").unwrap();
        match event {
            Event::Incoming(Packet::Publish(publish)) => {
                assert_eq!(publish.payload, got.to_string().into_bytes());
                got += 1;
            }
            Event::Incoming(Packet::PubAck(_) | Packet::PubComp(_)) => acknowledged += 1,
            _ => {}
        }
    }
    assert_eq!(server.log.kept().len(), 300);
    publisher.await.unwrap().disconnect().await.unwrap();
}
