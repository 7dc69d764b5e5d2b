//! `catchment route …`.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::{Value, json};

use super::{Client, print, print_table, segment};
use crate::cli::RouteCommand;

const PATH: &str = "/api/v1/routes";

#[derive(Debug, Deserialize)]
struct Route {
    topic: String,
    #[serde(rename = "type")]
    event_type: Option<String>,
    device_id: Option<String>,
    #[serde(default)]
    tags: BTreeMap<String, String>,
    source: String,
}

#[derive(Debug, Deserialize)]
struct Tested {
    outcome: String,
    route: Option<String>,
    device_id: Option<String>,
    #[serde(rename = "type")]
    event_type: Option<String>,
    #[serde(default)]
    tags: BTreeMap<String, String>,
    reason: Option<String>,
}

/// Runs a command about routes.
///
/// # Errors
/// The platform cannot be reached or refuses.
pub(crate) fn route(command: RouteCommand) -> anyhow::Result<()> {
    match command {
        RouteCommand::List { client } => {
            let routes: Vec<Route> = Client::new(&client)?.get(PATH)?;
            let row = |route: Route| {
                let own = |name: Option<String>| name.unwrap_or_else(|| "(topic)".into());
                vec![
                    route.topic,
                    own(route.device_id),
                    own(route.event_type),
                    pairs(&route.tags),
                    route.source,
                ]
            };
            let rows: Vec<_> = routes.into_iter().map(row).collect();
            print_table(&["topic", "device", "type", "tags", "source"], &rows)
        }
        RouteCommand::Add { topic, event_type, device, tags, client } => {
            let tags: BTreeMap<_, _> = tags.into_iter().collect();
            let mut rule = json!({ "topic": topic, "tags": tags });
            for (key, value) in [("type", event_type), ("device_id", device)] {
                if let Some(value) = value {
                    rule[key] = value.into();
                }
            }
            Client::new(&client)?.call::<Value>("PUT", PATH, Some(&rule))?;
            print(&format!("messages of {topic} are events from now on\n"))
        }
        RouteCommand::Remove { topic, client } => {
            Client::new(&client)?.call::<Value>(
                "DELETE",
                &format!("{PATH}?topic={}", segment(&topic)),
                None,
            )?;
            print(&format!("the route {topic} is removed\n"))
        }
        RouteCommand::Test { topic, client } => {
            let tested: Tested =
                Client::new(&client)?.get(&format!("{PATH}/test?topic={}", segment(&topic)))?;
            let told = [
                ("outcome", Some(tested.outcome)),
                ("route", tested.route),
                ("device", tested.device_id),
                ("type", tested.event_type),
                ("tags", Some(pairs(&tested.tags)).filter(|tags| !tags.is_empty())),
                ("reason", tested.reason),
            ];
            let lines = told.into_iter().filter_map(|(name, value)| Some(format!("{name:<8} {}\n", value?)));
            print(&lines.collect::<String>())
        }
    }
}

fn pairs(tags: &BTreeMap<String, String>) -> String {
    let pairs: Vec<_> = tags.iter().map(|(name, value)| format!("{name}={value}")).collect();
    pairs.join(" ")
}
