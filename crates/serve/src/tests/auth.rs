use serde_json::json;

use super::*;

/// Every operation of the OpenAPI document, with its path parameters filled in.
async fn operations(server: &Server) -> Vec<(String, String)> {
    let document = server.get("/api/v1/openapi.json").await.json();
    let paths = document["paths"].as_object().unwrap().clone();
    let operations = paths.iter().flat_map(|(path, methods)| {
        let path = path.replace("{device_id}", "x").replace("{type}", "x").replace("{id}", "1");
        let methods: Vec<_> = methods.as_object().unwrap().keys().cloned().collect();
        methods.into_iter().map(move |method| (method.to_uppercase(), path.clone()))
    });
    operations.collect()
}

async fn status(server: &Server, method: &str, path: &str, headers: &[(&str, &str)]) -> StatusCode {
    let mut request = Request::builder().method(method).uri(path);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    server.send(request.body(Body::empty()).unwrap()).await.status
}

/// Whether a caller got past the gate, whatever came of it then.
fn passed(status: StatusCode) -> bool {
    status != StatusCode::UNAUTHORIZED && status != StatusCode::FORBIDDEN
}

fn changes(method: &str, path: &str) -> bool {
    let reads = method == "GET" && path != "/api/v1/tokens" && !path.starts_with("/api/v1/access/");
    !reads && !path.ends_with("/sql") && !path.ends_with("/test")
}

#[tokio::test]
async fn the_matrix() {
    let server = Server::with(false, SqlConfig::default()).await;
    let registry = &server.state.registry;
    registry.create_device("d", None).await.unwrap();
    let token = async |role, device_id| {
        format!(
            "Bearer {}",
            registry
                .create_token(NewToken { realm: DEFAULT_REALM, name: "t", role, device_id })
                .await
                .unwrap()
                .1
        )
    };
    let (reader, device) = (token(Role::Reader, None).await, token(Role::Device, Some("d")).await);
    let admin = format!("Bearer {}", server.admin);
    let operations = operations(&server).await;
    assert!(operations.len() > 20, "{operations:?}");
    for (method, path) in &operations {
        let open = matches!(path.as_str(), "/healthz" | "/readyz");
        let with = async |token: &str| status(&server, method, path, &[("authorization", token)]).await;
        let place = format!("{method} {path}");
        let nobody = status(&server, method, path, &[("host", "localhost")]).await;
        assert!(if open { passed(nobody) } else { nobody == StatusCode::UNAUTHORIZED }, "{place}: {nobody}");
        assert!(open || with("Bearer ctm_wrong").await == StatusCode::UNAUTHORIZED, "{place}");
        assert!(open || with("Basic YTpi").await == StatusCode::UNAUTHORIZED, "{place}");
        assert!(open || with(&device).await == StatusCode::FORBIDDEN, "{place}");
        assert_eq!(passed(with(&reader).await), open || !changes(method, path), "{place}");
        assert!(passed(with(&admin).await), "{place}");
    }
}

#[tokio::test]
async fn anonymous_may_read_from_this_machine_only() {
    let server = Server::start().await;
    for (method, path) in operations(&server).await {
        let open = matches!(path.as_str(), "/healthz" | "/readyz");
        let with = async |headers: &[(&str, &str)]| status(&server, &method, &path, headers).await;
        let place = format!("{method} {path}");
        let allowed = open || !changes(&method, &path);
        for host in ["localhost:8080", "127.0.0.1", "[::1]:8080"] {
            assert_eq!(passed(with(&[("host", host)]).await), allowed, "{place}");
        }
        let own_page = [("host", "localhost"), ("origin", "http://localhost:3000")];
        assert_eq!(passed(with(&own_page).await), allowed, "{place}");
        // DNS rebinding, a foreign page, no host at all.
        assert_eq!(passed(with(&[("host", "evil.example")]).await), open, "{place}");
        assert_eq!(
            passed(with(&[("host", "localhost"), ("origin", "https://evil.example")]).await),
            open,
            "{place}"
        );
        assert_eq!(passed(with(&[]).await), open, "{place}");
        // A wrong token is refused, even where none is needed.
        assert_eq!(
            passed(with(&[("host", "localhost"), ("authorization", "Bearer x")]).await),
            open,
            "{place}"
        );
    }
}

#[tokio::test]
async fn refusals_say_what_to_do() {
    let server = Server::start().await;
    let answer = server
        .send(Request::post("/api/v1/tokens").header("host", "localhost").body(Body::empty()).unwrap())
        .await;
    assert_eq!(answer.status, StatusCode::UNAUTHORIZED);
    assert!(answer.headers.contains_key(header::WWW_AUTHENTICATE));
    let problem = answer.json();
    assert_eq!(problem["error"], "unauthorized");
    assert!(problem["hint"].as_str().unwrap().contains("catchment token show"), "{problem}");
}

#[tokio::test]
async fn tokens_work_at_once_and_end_at_once() {
    let server = Server::with(false, SqlConfig::default()).await;
    let made = server.admin("POST", "/api/v1/tokens", json!({"name": "grafana", "role": "reader"})).await;
    assert_eq!(made.status, StatusCode::CREATED, "{}", made.text());
    let made = made.json();
    let bearer = format!("Bearer {}", made["token"].as_str().unwrap());
    let with = [("authorization", bearer.as_str())];
    assert_eq!(status(&server, "GET", "/api/v1/status", &with).await, StatusCode::OK);
    let listed = server.admin("GET", "/api/v1/tokens", Value::Null).await;
    assert!(listed.text().contains("grafana") && !listed.text().contains("ctm_"), "{}", listed.text());
    let path = format!("/api/v1/tokens/{}", made["id"].as_str().unwrap());
    assert_eq!(server.admin("DELETE", &path, Value::Null).await.status, StatusCode::NO_CONTENT);
    assert_eq!(server.admin("DELETE", &path, Value::Null).await.status, StatusCode::NOT_FOUND);
    assert_eq!(status(&server, "GET", "/api/v1/status", &with).await, StatusCode::UNAUTHORIZED);

    let own = server.state.registry.tokens().await.unwrap();
    let last = server.admin("DELETE", &format!("/api/v1/tokens/{}", own[0].id), Value::Null).await;
    assert_eq!((last.status, last.json()["error"].as_str()), (StatusCode::CONFLICT, Some("last_admin")));
    let bad = server.admin("POST", "/api/v1/tokens", json!({"name": "x", "role": "root"})).await;
    assert!(bad.status.is_client_error() && bad.json()["message"].as_str().unwrap().contains("root"));
}

#[tokio::test]
async fn the_query_string_is_for_websockets_only() {
    let server = Server::with(false, SqlConfig::default()).await;
    let path = format!("/api/v1/status?token={}", server.admin);
    assert_eq!(status(&server, "GET", &path, &[]).await, StatusCode::UNAUTHORIZED);
    // Without a real connection the upgrade itself fails, but behind the gate.
    let live = format!("/api/v1/live?token={}", server.admin);
    let upgrade = [("upgrade", "websocket"), ("connection", "upgrade")];
    assert!(passed(status(&server, "GET", &live, &upgrade).await));
    assert_eq!(status(&server, "GET", "/api/v1/live?token=ctm_x", &upgrade).await, StatusCode::UNAUTHORIZED);
    assert_eq!(status(&server, "GET", "/api/v1/tail", &upgrade).await, StatusCode::UNAUTHORIZED);
}
