//! `catchment decoder …`.

use anyhow::Context;
use serde::Deserialize;
use serde_json::Value;

use super::{Client, print, print_table, read_input, segment};
use crate::cli::DecoderCommand;

const PATH: &str = "/api/v1/decoders";

#[derive(Debug, Deserialize)]
struct Decoder {
    #[serde(rename = "type")]
    event_type: String,
    rule: Value,
    updated_at: String,
}

#[derive(Debug, Deserialize)]
struct Decoded {
    event_time: String,
    readings: Vec<Reading>,
    rejects: Vec<Reject>,
}

#[derive(Debug, Deserialize)]
struct Reading {
    timestamp: String,
    metric: String,
    value: Value,
}

#[derive(Debug, Deserialize)]
struct Reject {
    reason: String,
    detail: String,
}

/// Runs a command about decoders.
///
/// # Errors
/// The platform cannot be reached or refuses; a file cannot be read or is no rule.
pub(crate) fn decoder(command: DecoderCommand) -> anyhow::Result<()> {
    match command {
        DecoderCommand::List { client } => {
            let decoders: Vec<Decoder> = Client::new(&client)?.get(PATH)?;
            let row =
                |decoder: Decoder| vec![decoder.event_type, decoder.updated_at, decoder.rule.to_string()];
            let rows: Vec<_> = decoders.into_iter().map(row).collect();
            print_table(&["type", "updated", "rule"], &rows)
        }
        DecoderCommand::Show { event_type, client } => {
            let decoder: Decoder = Client::new(&client)?.get(&path(&event_type))?;
            print(&format!("{}\n", serde_json::to_string_pretty(&decoder.rule)?))
        }
        DecoderCommand::Set { event_type, rule, client } => {
            let rule = read_rule(&read_input(&rule)?)?;
            Client::new(&client)?.call::<Value>("PUT", &path(&event_type), Some(&rule))?;
            print(&format!("{event_type} is decoded by this rule from now on\n"))
        }
        DecoderCommand::Remove { event_type, client } => {
            Client::new(&client)?.call::<Value>("DELETE", &path(&event_type), None)?;
            print(&format!("the rule of {event_type} is removed; the default applies\n"))
        }
        DecoderCommand::Test { event_type, payload, rule, client } => {
            let payload = read_input(&payload)?;
            let rule = rule.map(|rule| read_rule(&read_input(&rule)?)).transpose()?;
            let decoded: Decoded = Client::new(&client)?.test_decoder(
                &format!("{}/test", path(&event_type)),
                payload,
                rule.as_ref(),
            )?;
            show(&decoded)
        }
    }
}

fn path(event_type: &str) -> String {
    format!("{PATH}/{}", segment(event_type))
}

fn read_rule(bytes: &[u8]) -> anyhow::Result<Value> {
    serde_json::from_slice(bytes).context("the rule is not JSON")
}

fn show(decoded: &Decoded) -> anyhow::Result<()> {
    print(&format!("event time {}\n\n", decoded.event_time))?;
    let value = |value: &Value| value.as_str().map_or_else(|| value.to_string(), |text| format!("{text:?}"));
    let row =
        |reading: &Reading| vec![reading.metric.clone(), value(&reading.value), reading.timestamp.clone()];
    let rows: Vec<_> = decoded.readings.iter().map(row).collect();
    print_table(&["metric", "value", "timestamp"], &rows)?;
    if !decoded.rejects.is_empty() {
        print("\n")?;
        let row = |reject: &Reject| vec![reject.reason.clone(), reject.detail.clone()];
        print_table(&["reject", "detail"], &decoded.rejects.iter().map(row).collect::<Vec<_>>())?;
    }
    Ok(())
}
