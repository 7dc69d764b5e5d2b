use std::net::TcpStream;

use serde_json::json;
use tungstenite::{Message, WebSocket};

use super::*;

/// A blocking client, as browsers and tools are: not the server's own library.
struct Client(WebSocket<TcpStream>);

impl Client {
    fn connect(address: std::net::SocketAddr, path: &str) -> Self {
        let stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(std::time::Duration::from_secs(10))).unwrap();
        Self(tungstenite::client(format!("ws://{address}{path}"), stream).unwrap().0)
    }

    fn send(&mut self, message: Value) {
        self.0.send(Message::text(message.to_string())).unwrap();
    }

    /// The next message that is not a ping.
    fn next(&mut self) -> Value {
        loop {
            match self.0.read().unwrap() {
                Message::Text(text) => return serde_json::from_str(&text).unwrap(),
                Message::Ping(_) => {}
                other => panic!("{other:?}"),
            }
        }
    }
}

async fn listen(server: &Server) -> std::net::SocketAddr {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let router = server.router.clone();
    tokio::spawn(async move { axum::serve(listener, router).await });
    address
}

#[tokio::test(flavor = "multi_thread")]
async fn readings_are_pushed_by_subscription() {
    let server = Server::start().await;
    let address = listen(&server).await;
    server.publish("truck-1", "state", TIME, br#"{"speed":79,"fuel":5}"#);
    tokio::task::block_in_place(|| {
        let mut client = Client::connect(address, "/api/v1/live?device=truck-*&metric=speed&snapshot=true");
        assert_eq!(client.next(), json!({"subscribed": ""}));
        assert_eq!(
            client.next(),
            json!([{"id": "", "device_id": "truck-1", "timestamp": "2022-02-19T11:33:21.250000Z",
                "received_at": "2022-02-19T11:33:21.250000Z", "metric": "speed", "value": 79.0, "snapshot": true}])
        );
        client.send(json!({"op": "subscribe", "id": "b", "device": ["boat"], "type": "state"}));
        assert_eq!(client.next(), json!({"subscribed": "b"}));
        server.publish("truck-1", "state", TIME + 1, br#"{"speed":80,"fuel":5}"#);
        assert_eq!(
            client.next(),
            json!([{"id": "", "device_id": "truck-1", "type": "state", "timestamp": "2022-02-19T11:33:21.250001Z",
                "received_at": "2022-02-19T11:33:21.250001Z", "metric": "speed", "value": 80.0}])
        );
        server.publish("boat", "other", TIME, br#"{"a":1}"#);
        server.publish("boat", "state", TIME, br#"{"on":true,"name":"x"}"#);
        let pushed = client.next();
        assert_eq!(
            (&pushed[0]["id"], &pushed[0]["value"], &pushed[1]["value"]),
            (&json!("b"), &json!(true), &json!("x"))
        );

        client.send(json!({"op": "unsubscribe", "id": "b"}));
        assert_eq!(client.next(), json!({"unsubscribed": "b"}));
        server.publish("boat", "state", TIME, br#"{"on":false}"#);
        server.publish("truck-2", "state", TIME, br#"{"speed":1}"#);
        assert_eq!(client.next()[0]["device_id"], "truck-2");

        for (message, word) in [
            (json!({"op": "subscribe", "id": ""}), "already"),
            (json!({"op": "unsubscribe", "id": "zzz"}), "no subscription"),
            (json!({"op": "dance"}), "unknown variant"),
            (json!("x"), "not a message"),
        ] {
            client.send(message);
            let answer = client.next();
            assert!(
                answer["error"] == "bad_request" && answer["message"].as_str().unwrap().contains(word),
                "{answer}"
            );
        }
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn the_tail_is_of_events() {
    let server = Server::start().await;
    let address = listen(&server).await;
    tokio::task::block_in_place(|| {
        let mut client = Client::connect(address, "/api/v1/tail?type=state");
        assert_eq!(client.next(), json!({"subscribed": ""}));
        server.publish("a", "other", TIME, b"1");
        server.publish("a", "state", TIME, b"not json");
        assert_eq!(
            client.next(),
            json!([{"id": "", "device_id": "a", "type": "state", "topic": "devices/a/state",
                "received_at": "2022-02-19T11:33:21.250000Z", "payload": "not json", "payload_encoding": "text"}])
        );
        server.publish("a", "state", TIME, b"\xff");
        assert_eq!((&client.next()[0]["payload"]), (&json!("/w==")));
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn subscriptions_end_with_their_connection_and_with_the_server() {
    let server = Server::start().await;
    let address = listen(&server).await;
    let live = &server.state.live;
    tokio::task::block_in_place(|| {
        let mut idle = Client::connect(address, "/api/v1/live");
        let mut client = Client::connect(address, "/api/v1/live?device=a");
        assert_eq!(client.next(), json!({"subscribed": ""}));
        assert_eq!(live.subscribers(), 1);
        drop(client);
        for _ in 0..500 {
            if live.subscribers() == 0 {
                break;
            }
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        assert_eq!(live.subscribers(), 0);

        idle.send(json!({"op": "subscribe", "id": "x"}));
        assert_eq!(idle.next(), json!({"subscribed": "x"}));
        live.close();
        assert!(
            matches!(idle.0.read(), Ok(Message::Close(Some(frame))) if frame.reason == "the server is stopping")
        );
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn subscriptions_of_a_connection_are_bounded() {
    let server = Server::start().await;
    let address = listen(&server).await;
    let max = server.state.config.subscriptions_max;
    tokio::task::block_in_place(|| {
        let mut client = Client::connect(address, "/api/v1/live");
        for id in 0..=max {
            client.send(json!({"op": "subscribe", "id": id.to_string(), "device": "a"}));
        }
        let answers: Vec<_> = (0..=max).map(|_| client.next()).collect();
        assert!(answers[..max].iter().all(|answer| answer["subscribed"].is_string()));
        assert!(answers[max]["message"].as_str().unwrap().contains("already"), "{}", answers[max]);
    });
}
