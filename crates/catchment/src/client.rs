//! The commands that talk to a running platform, over its REST interface like anybody else.

mod access;
mod admin;
mod decoders;
mod devices;
mod query;
mod routes;
mod socket;
mod tail;

use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use ureq::http::request::Builder;
use ureq::http::{Request, Response, StatusCode};
use ureq::{Agent, Body};

use crate::cli::ClientArgs;
use crate::folder;
use crate::trust::Roots;

pub(crate) use access::{acl, ban, realm};
pub(crate) use admin::token;
pub(crate) use decoders::decoder;
pub(crate) use devices::device;
pub(crate) use query::query;
pub(crate) use routes::route;
pub(crate) use socket::{is_timeout, open_websocket};
pub(crate) use tail::tail;

const CONNECT_MAX: Duration = Duration::from_secs(5);
/// Where `serve` and `demo` keep things unless told otherwise: the token of a local platform is looked for there.
const DATA_FOLDERS: [&str; 2] = ["catchment-data", "catchment-demo"];

/// A platform and who we are to it.
#[derive(Debug, Clone)]
pub(crate) struct Client {
    agent: Agent,
    base: String,
    token: Option<String>,
    /// Where the address is `https://`: who vouches for the platform.
    roots: Option<Roots>,
}

/// Why the platform did not answer, as it says it.
#[derive(Debug, Deserialize)]
struct Problem {
    message: String,
    position: Option<Position>,
    hint: Option<String>,
}

/// Where in a query, from 1.
#[derive(Debug, Clone, Copy, Deserialize)]
struct Position {
    line: u64,
    column: u64,
}

impl Client {
    /// A client by the command line's arguments.
    ///
    /// # Errors
    /// The address is not one, or `--data` has no token.
    pub(crate) fn new(args: &ClientArgs) -> anyhow::Result<Self> {
        let base = args.url.trim_end_matches('/').to_owned();
        let roots = match base.split_once("://") {
            Some(("http", _)) => None,
            Some(("https", _)) => Some(Roots::read(args.ca.as_deref())?),
            _ => bail!("{base} is not an address; write for instance http://127.0.0.1:8080"),
        };
        let token = match (&args.token, &args.data) {
            (Some(token), _) => token.clone(),
            (None, Some(data)) => folder::read_admin_token(data)?,
            (None, None) => return Ok(Self::build(base, None, roots).with_token_at_hand()),
        };
        Ok(Self::build(base, Some(token), roots))
    }

    /// The same with a token that lies here, if this platform takes it: it may be that of another, a demo's for instance, and
    /// what needs no token would be refused for a wrong one.
    fn with_token_at_hand(self) -> Self {
        for token in DATA_FOLDERS.iter().filter_map(|data| folder::read_admin_token(Path::new(data)).ok()) {
            let known = Self { token: Some(token), ..self.clone() };
            // If nobody answers, that is told by what comes next.
            let answer = known.exchange("GET", "/api/v1/devices?limit=1", "*/*", None);
            if !matches!(answer, Ok(Err((StatusCode::UNAUTHORIZED, _)))) {
                return known;
            }
        }
        self
    }

    /// A client of this address, without TLS.
    pub(crate) fn with_token(base: String, token: Option<String>) -> Self {
        Self::build(base, token, None)
    }

    fn build(base: String, token: Option<String>, roots: Option<Roots>) -> Self {
        let tls = roots.as_ref().map(Roots::for_http).unwrap_or_default();
        let config = Agent::config_builder()
            .tls_config(tls)
            .http_status_as_error(false)
            .timeout_connect(Some(CONNECT_MAX))
            .user_agent(concat!("catchment/", env!("CARGO_PKG_VERSION")))
            .build();
        Self { agent: config.into(), base, token, roots }
    }

    /// Host and port of the platform.
    fn address(&self) -> (&str, u16) {
        let (scheme, rest) = self.base.split_once("://").unwrap_or(("http", &self.base));
        let address = rest.split('/').next().unwrap_or_default();
        let default = if scheme == "https" { 443 } else { 80 };
        // The colons of an IPv6 address stand in brackets.
        match address.rsplit_once(':') {
            Some((host, port)) if !port.contains(']') => (host, port.parse().unwrap_or(default)),
            _ => (address, default),
        }
    }

    /// Makes a request; an answer that is not a success is an error that tells what the platform said.
    ///
    /// # Errors
    /// No connection, or the platform refused.
    fn send(
        &self,
        method: &str,
        path: &str,
        accept: &str,
        body: Option<&Value>,
    ) -> anyhow::Result<Response<Body>> {
        match self.exchange(method, path, accept, body)? {
            Ok(response) => Ok(response),
            Err((status, problem)) => Err(refusal(status, &problem)),
        }
    }

    fn exchange(
        &self,
        method: &str,
        path: &str,
        accept: &str,
        body: Option<&Value>,
    ) -> anyhow::Result<Result<Response<Body>, (StatusCode, Problem)>> {
        let request =
            self.request(method, path).header("accept", accept).header("content-type", "application/json");
        self.run(request, body.map(Value::to_string).unwrap_or_default().into_bytes())
    }

    fn request(&self, method: &str, path: &str) -> Builder {
        let request = Request::builder().method(method).uri(format!("{}{path}", self.base));
        match &self.token {
            Some(token) => request.header("authorization", format!("Bearer {token}")),
            None => request,
        }
    }

    fn run(
        &self,
        request: Builder,
        body: Vec<u8>,
    ) -> anyhow::Result<Result<Response<Body>, (StatusCode, Problem)>> {
        let request = request.body(body).context("the request cannot be made")?;
        let mut response = self.agent.run(request).map_err(|error| {
            anyhow!(
                "no answer from {}: {error}; is `catchment serve` running there? --url names another address",
                self.base
            )
        })?;
        let status = response.status();
        if status.is_success() {
            return Ok(Ok(response));
        }
        let text = response.body_mut().read_to_string().unwrap_or_default();
        let problem = serde_json::from_str(&text).unwrap_or_else(|_| Problem {
            message: if text.is_empty() { status.to_string() } else { text.trim().to_owned() },
            position: None,
            hint: None,
        });
        Ok(Err((status, problem)))
    }

    /// The token that requests show.
    pub(crate) fn bearer(&self) -> Option<&str> {
        self.token.as_deref()
    }

    /// Whether the platform says that it is ready.
    pub(crate) fn is_ready(&self) -> bool {
        self.send("GET", "/readyz", "*/*", None).is_ok()
    }

    /// GET, read as text.
    ///
    /// # Errors
    /// As [`Client::send`]; or the answer is cut off.
    pub(crate) fn text(&self, path: &str) -> anyhow::Result<String> {
        let mut response = self.send("GET", path, "*/*", None)?;
        response.body_mut().read_to_string().context("the answer was cut off")
    }

    /// GET, read as JSON.
    ///
    /// # Errors
    /// As [`Client::send`]; or the answer has another shape.
    pub(crate) fn get<T: DeserializeOwned>(&self, path: &str) -> anyhow::Result<T> {
        read(self.send("GET", path, "application/json", None)?)
    }

    /// A request with a JSON body, the answer read as JSON; an empty answer is null.
    ///
    /// # Errors
    /// As [`Client::get`].
    pub(crate) fn call<T: DeserializeOwned>(
        &self,
        method: &str,
        path: &str,
        body: Option<&Value>,
    ) -> anyhow::Result<T> {
        read(self.send(method, path, "application/json", body)?)
    }

    /// Sends a payload as a device would, to be decoded and forgotten.
    fn test_decoder<T: DeserializeOwned>(
        &self,
        path: &str,
        payload: Vec<u8>,
        rule: Option<&Value>,
    ) -> anyhow::Result<T> {
        let mut request = self.request("POST", path);
        if let Some(rule) = rule {
            request = request.header("x-decoder-rule", rule.to_string());
        }
        match self.run(request, payload)? {
            Ok(response) => read(response),
            Err((status, problem)) => Err(refusal(status, &problem)),
        }
    }

    /// Runs a statement that gives one row of one number.
    ///
    /// # Errors
    /// As [`Client::send`]; or it gives something else.
    pub(crate) fn number(&self, sql: &str) -> anyhow::Result<f64> {
        let body = serde_json::json!({ "query": sql });
        let mut response = self.send("POST", "/api/v1/sql", "application/x-ndjson", Some(&body))?;
        let text = response.body_mut().read_to_string().context("the answer was cut off")?;
        let row: serde_json::Map<String, Value> =
            serde_json::from_str(text.trim()).with_context(|| format!("not one row: {text:?}"))?;
        row.values().next().map_or(Ok(0.0), |value| match value {
            Value::Null => Ok(0.0),
            value => value.as_f64().with_context(|| format!("not a number: {value}")),
        })
    }
}

fn read<T: DeserializeOwned>(mut response: Response<Body>) -> anyhow::Result<T> {
    let text = response.body_mut().read_to_string().context("the answer was cut off")?;
    let text = if text.trim().is_empty() { "null" } else { &text };
    serde_json::from_str(text).context("the answer is not of the shape that this version knows")
}

fn refusal(status: StatusCode, problem: &Problem) -> anyhow::Error {
    let hint = problem.hint.as_ref().map(|hint| format!("\n  hint: {hint}")).unwrap_or_default();
    let extra = match status {
        StatusCode::UNAUTHORIZED if problem.hint.is_none() => {
            "\n  hint: pass --token, or --data with the platform's data folder"
        }
        _ => "",
    };
    anyhow!("{}{hint}{extra}", problem.message)
}

/// A segment of a path, percent-encoded.
fn segment(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                encoded.push(char::from(byte))
            }
            _ => encoded.push_str(&format!("%{byte:02X}")),
        }
    }
    encoded
}

/// The content of a file, or of standard input for "-".
fn read_input(path: &PathBuf) -> anyhow::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    if path.as_os_str() == "-" {
        std::io::stdin().read_to_end(&mut bytes).context("standard input cannot be read")?;
        return Ok(bytes);
    }
    std::fs::read(path).with_context(|| format!("{} cannot be read", path.display()))
}

/// Prints to standard output. A reader that has seen enough (`| head`) ends the command without a word.
fn print(text: &str) -> anyhow::Result<()> {
    match std::io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => std::process::exit(0),
        result => result.context("standard output cannot be written"),
    }
}

/// Columns with aligned cells, for people.
fn print_table(head: &[&str], rows: &[Vec<String>]) -> anyhow::Result<()> {
    print(&crate::table::render(head, rows))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_have_a_port() {
        let address = |base: &str| {
            let client = Client::with_token(base.to_owned(), None);
            let (host, port) = client.address();
            format!("{host} {port}")
        };
        assert_eq!(address("http://127.0.0.1:8080"), "127.0.0.1 8080");
        assert_eq!(address("https://gateway.example/base"), "gateway.example 443");
        assert_eq!(address("https://[::1]:8443"), "[::1] 8443");
        assert_eq!(address("http://[::1]"), "[::1] 80");
    }

    #[test]
    fn segments_are_encoded() {
        assert_eq!(segment("truck-7"), "truck-7");
        assert_eq!(segment("a b/ü"), "a%20b%2F%C3%BC");
    }
}
