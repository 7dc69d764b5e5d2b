//! `catchment realm`, `acl` and `ban`.

use clap::{Args, Subcommand};

use super::ClientArgs;

#[derive(Debug, Subcommand)]
pub(crate) enum RealmCommand {
    /// Lists realms and their limits.
    List {
        #[command(flatten)]
        client: ClientArgs,
    },
    /// Makes a realm, or sets the limits of one. Limits that are not given are taken away.
    #[command(after_help = "Examples:
  catchment realm set plant
  catchment realm set main --device-messages 10 --device-connects 1 --messages 50000

What devices of other realms than main publish is brokered in their realm, but not kept yet.")]
    Set {
        /// Its name: lower-case letters, digits, '-' and '_'.
        name: String,
        #[command(flatten)]
        limits: LimitArgs,
        #[command(flatten)]
        client: ClientArgs,
    },
}

/// How much may be sent; 0: as much as they like.
#[derive(Debug, Args)]
pub(crate) struct LimitArgs {
    /// Messages a second of all its devices together.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) messages: u32,
    /// Bytes a second of all its devices together.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) bytes: u64,
    /// Connections a second of all its devices together.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) connects: u32,
    /// Messages a second of each device.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) device_messages: u32,
    /// Bytes a second of each device.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) device_bytes: u64,
    /// Connections a second of each device.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) device_connects: u32,
    /// How many seconds' worth may come at once.
    #[arg(long, value_name = "SECONDS", default_value_t = 1)]
    pub(crate) burst: u32,
}

#[derive(Debug, Subcommand)]
pub(crate) enum AclCommand {
    /// Lists the rules.
    List {
        #[command(flatten)]
        client: ClientArgs,
    },
    /// Adds a rule.
    #[command(after_help = "Examples:
  catchment acl add allow subscribe devices 'site/{device_id}/#'
  catchment acl add deny any device:truck-7 'devices/truck-7/firmware'

A rule that denies is stronger than any that allows. What no rule speaks of is decided by the role: a device has
devices/ID/…, a reader may subscribe to everything, an administrator is bound by no rule. A device never publishes as
another one, whatever is allowed.")]
    Add {
        /// allow or deny.
        effect: String,
        /// publish, subscribe or any.
        action: String,
        /// all, readers, devices or device:ID.
        subject: String,
        /// MQTT filter; whole levels may be {device_id}, {client_id}, {username} and {realm}.
        filter: String,
        /// The realm that it is of.
        #[arg(long, default_value = "main")]
        realm: String,
        #[command(flatten)]
        client: ClientArgs,
    },
    /// Removes a rule.
    Remove {
        /// Its id, as listed.
        id: String,
        #[command(flatten)]
        client: ClientArgs,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum BanCommand {
    /// Lists who is kept out, by hand or since too many logins failed.
    List {
        #[command(flatten)]
        client: ClientArgs,
    },
    /// Keeps somebody out; who is connected is sent away.
    #[command(after_help = "Examples:
  catchment ban add device truck-7 --reason stolen
  catchment ban add address 203.0.113.0/24 --for 3600")]
    Add {
        /// device, client (an MQTT client id) or address (one, or a network).
        kind: String,
        /// Who.
        value: String,
        /// For how many seconds; until it is lifted, if not given.
        #[arg(long = "for", value_name = "SECONDS")]
        seconds: Option<u32>,
        /// Why, for people.
        #[arg(long, default_value = "")]
        reason: String,
        /// The realm of the device or client id.
        #[arg(long, default_value = "main")]
        realm: String,
        #[command(flatten)]
        client: ClientArgs,
    },
    /// Lifts a ban.
    Remove {
        /// Its id, as listed.
        id: String,
        #[command(flatten)]
        client: ClientArgs,
    },
}
