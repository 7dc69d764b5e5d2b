//! `catchment token …`.

use serde::Deserialize;
use serde_json::{Value, json};

use super::{Client, print, print_table, segment};
use crate::cli::TokenCommand;
use crate::folder;

const PATH: &str = "/api/v1/tokens";

#[derive(Debug, Deserialize)]
struct Token {
    id: String,
    name: String,
    role: String,
    device_id: Option<String>,
    created_at: String,
}

#[derive(Debug, Deserialize)]
struct NewToken {
    id: String,
    token: String,
}

/// Runs a command about tokens.
///
/// # Errors
/// The platform cannot be reached or refuses; the data folder has no token that may be read.
pub(crate) fn token(command: TokenCommand) -> anyhow::Result<()> {
    match command {
        TokenCommand::Show { data } => print(&format!("{}\n", folder::read_admin_token(&data)?)),
        TokenCommand::Create { name, role, device, realm, client } => {
            let body = json!({ "name": name, "role": role.as_str(), "device_id": device, "realm": realm });
            let made: NewToken = Client::new(&client)?.call("POST", PATH, Some(&body))?;
            print(&format!("token {} of {name}, shown this once:\n{}\n", made.id, made.token))
        }
        TokenCommand::List { client } => {
            let tokens: Vec<Token> = Client::new(&client)?.get(PATH)?;
            let row = |token: Token| {
                vec![token.id, token.name, token.role, token.device_id.unwrap_or_default(), token.created_at]
            };
            let rows: Vec<_> = tokens.into_iter().map(row).collect();
            print_table(&["id", "name", "role", "device", "created"], &rows)
        }
        TokenCommand::Revoke { id, client } => {
            Client::new(&client)?.call::<Value>("DELETE", &format!("{PATH}/{}", segment(&id)), None)?;
            print(&format!("token {id} is worth nothing any more\n"))
        }
    }
}
