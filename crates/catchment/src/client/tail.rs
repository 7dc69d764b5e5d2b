//! `catchment tail`: events as they come in, one line each.

use std::io::IsTerminal;

use anyhow::{Context, bail};
use serde::Deserialize;
use serde_json::Value;
use tungstenite::{Error, Message};

use super::{Client, open_websocket, print, segment};
use crate::cli::TailArgs;

/// An event as it is pushed.
#[derive(Debug, Deserialize)]
struct Event {
    received_at: String,
    device_id: String,
    #[serde(rename = "type")]
    event_type: String,
    payload: String,
    /// `text`, or how bytes that are none are written.
    payload_encoding: String,
}

/// Follows events until Ctrl-C or the platform stops.
///
/// # Errors
/// The platform cannot be reached or refuses.
pub(crate) fn tail(args: &TailArgs) -> anyhow::Result<()> {
    let client = Client::new(&args.client)?;
    let filters = [("device", &args.filter), ("type", &args.event_type)];
    let given: Vec<String> = filters
        .iter()
        .filter_map(|(name, pattern)| pattern.as_ref().map(|pattern| format!("{name}={}", segment(pattern))))
        .collect();
    let mut socket = open_websocket(&client, &format!("/api/v1/tail?{}", given.join("&")), None)?;
    if std::io::stdout().is_terminal() {
        eprintln!("following; Ctrl-C ends");
    }
    loop {
        match socket.read() {
            Ok(Message::Text(text)) => show(&text)?,
            Ok(Message::Close(frame)) => {
                let reason = frame.map(|frame| frame.reason.to_string()).unwrap_or_default();
                eprintln!("the platform ends the connection: {reason}");
                return Ok(());
            }
            Ok(_) => {}
            Err(Error::ConnectionClosed | Error::AlreadyClosed) => return Ok(()),
            Err(error) => return Err(error).context("the connection to the platform broke"),
        }
    }
}

/// An array is events, an object is about the connection.
fn show(text: &str) -> anyhow::Result<()> {
    match serde_json::from_str(text).context("the platform sent something that this version does not know")? {
        Value::Array(events) => {
            let mut lines = String::new();
            for event in events {
                lines.push_str(&line(
                    &serde_json::from_value(event).context("the platform sent an unknown event")?,
                ));
            }
            print(&lines)
        }
        Value::Object(control) => {
            if let Some(lagged) = control.get("lagged") {
                eprintln!("… {lagged} events were left out: they come faster than they are read here");
            }
            match control.get("message").and_then(Value::as_str) {
                Some(message) => bail!("the platform refuses: {message}"),
                None => Ok(()),
            }
        }
        _ => Ok(()),
    }
}

/// One line, whatever the payload: control characters would play with the terminal.
fn line(event: &Event) -> String {
    let is_text = event.payload_encoding == "text";
    let payload: String =
        event.payload.trim_end().chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    let marker = if is_text { "" } else { "base64:" };
    format!("{}  {}  {}  {marker}{payload}\n", event.received_at, event.device_id, event.event_type)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_one_line() {
        let event = |payload: &str, encoding: &str| Event {
            received_at: "T".into(),
            device_id: "d".into(),
            event_type: "t".into(),
            payload: payload.into(),
            payload_encoding: encoding.into(),
        };
        assert_eq!(line(&event("{\n\"a\": 1\u{1b}}\n", "text")), "T  d  t  { \"a\": 1 }\n");
        assert_eq!(line(&event("AAE=", "base64")), "T  d  t  base64:AAE=\n");
    }
}
