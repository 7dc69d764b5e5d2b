//! `catchment realm`, `acl` and `ban`.

use serde::Deserialize;
use serde_json::{Value, json};

use super::{Client, print, print_table, segment};
use crate::cli::{AclCommand, BanCommand, LimitArgs, RealmCommand};

const REALMS: &str = "/api/v1/access/realms";
const ACL: &str = "/api/v1/access/acl";
const BANS: &str = "/api/v1/access/bans";

#[derive(Debug, Deserialize)]
struct Realm {
    name: String,
    limits: Limits,
    device_limits: Limits,
}

#[derive(Debug, Deserialize)]
struct Limits {
    messages_per_s: u64,
    bytes_per_s: u64,
    connects_per_s: u64,
}

#[derive(Debug, Deserialize)]
struct Rule {
    id: String,
    realm: String,
    subject: String,
    action: String,
    effect: String,
    filter: String,
}

#[derive(Debug, Deserialize)]
struct Ban {
    id: String,
    realm: String,
    kind: String,
    value: String,
    reason: String,
    until: Option<String>,
    automatic: bool,
}

impl Limits {
    fn cell(&self) -> String {
        let rates = [
            (self.messages_per_s, "messages/s"),
            (self.bytes_per_s, "bytes/s"),
            (self.connects_per_s, "connects/s"),
        ];
        let set = rates.iter().filter(|(rate, _)| *rate > 0).map(|(rate, unit)| format!("{rate} {unit}"));
        set.collect::<Vec<_>>().join(", ")
    }
}

/// Runs a command about realms.
///
/// # Errors
/// The platform cannot be reached or refuses.
pub(crate) fn realm(command: RealmCommand) -> anyhow::Result<()> {
    match command {
        RealmCommand::List { client } => {
            let realms: Vec<Realm> = Client::new(&client)?.get(REALMS)?;
            let row = |realm: Realm| vec![realm.name, realm.limits.cell(), realm.device_limits.cell()];
            print_table(
                &["realm", "together", "each device"],
                &realms.into_iter().map(row).collect::<Vec<_>>(),
            )
        }
        RealmCommand::Set { name, limits, client } => {
            let LimitArgs {
                messages,
                bytes,
                connects,
                device_messages,
                device_bytes,
                device_connects,
                burst,
            } = limits;
            let limits = |messages: u32, bytes: u64, connects: u32| json!({ "messages_per_s": messages, "bytes_per_s": bytes, "connects_per_s": connects, "burst_s": burst });
            let body = json!({
                "limits": limits(messages, bytes, connects),
                "device_limits": limits(device_messages, device_bytes, device_connects),
            });
            let path = format!("{REALMS}/{}", segment(&name));
            Client::new(&client)?.call::<Value>("PUT", &path, Some(&body))?;
            print(&format!("realm {name} is set\n"))
        }
    }
}

/// Runs a command about rules.
///
/// # Errors
/// The platform cannot be reached or refuses.
pub(crate) fn acl(command: AclCommand) -> anyhow::Result<()> {
    match command {
        AclCommand::List { client } => {
            let rules: Vec<Rule> = Client::new(&client)?.get(ACL)?;
            let row =
                |rule: Rule| vec![rule.id, rule.realm, rule.effect, rule.action, rule.subject, rule.filter];
            let rows: Vec<_> = rules.into_iter().map(row).collect();
            print_table(&["id", "realm", "effect", "action", "subject", "filter"], &rows)
        }
        AclCommand::Add { effect, action, subject, filter, realm, client } => {
            let body = json!({ "realm": realm, "effect": effect, "action": action, "subject": subject, "filter": filter });
            let rule: Rule = Client::new(&client)?.call("POST", ACL, Some(&body))?;
            print(&format!("rule {} is in force\n", rule.id))
        }
        AclCommand::Remove { id, client } => {
            Client::new(&client)?.call::<Value>("DELETE", &format!("{ACL}/{}", segment(&id)), None)?;
            print(&format!("rule {id} is gone\n"))
        }
    }
}

/// Runs a command about bans.
///
/// # Errors
/// The platform cannot be reached or refuses.
pub(crate) fn ban(command: BanCommand) -> anyhow::Result<()> {
    match command {
        BanCommand::List { client } => {
            let bans: Vec<Ban> = Client::new(&client)?.get(BANS)?;
            let row = |ban: Ban| {
                let by = if ban.automatic { "failed logins" } else { "hand" };
                let until = ban.until.unwrap_or_else(|| "lifted".to_owned());
                vec![ban.id, ban.realm, ban.kind, ban.value, until, by.to_owned(), ban.reason]
            };
            let rows: Vec<_> = bans.into_iter().map(row).collect();
            print_table(&["id", "realm", "kind", "who", "until", "by", "reason"], &rows)
        }
        BanCommand::Add { kind, value, seconds, reason, realm, client } => {
            let body =
                json!({ "realm": realm, "kind": kind, "value": value, "seconds": seconds, "reason": reason });
            let ban: Ban = Client::new(&client)?.call("POST", BANS, Some(&body))?;
            print(&format!("ban {} is in force\n", ban.id))
        }
        BanCommand::Remove { id, client } => {
            Client::new(&client)?.call::<Value>("DELETE", &format!("{BANS}/{}", segment(&id)), None)?;
            print(&format!("ban {id} is lifted\n"))
        }
    }
}
