//! The command line. Help texts are for people who have never seen Catchment.

use std::net::SocketAddr;
use std::path::PathBuf;

use catchment_sim::MqttTarget;
use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::logging::LogFormat;
use crate::settings::Overrides;

mod access;
mod bench;

pub(crate) use access::{AclCommand, BanCommand, LimitArgs, RealmCommand};
pub(crate) use bench::{BenchCommand, GatewayArgs, IngestArgs, LoadTopics, Scenario};

/// One binary that takes the telemetry of a fleet, a city or a machine park in, keeps it, and answers at once.
#[derive(Debug, Parser)]
#[command(name = "catchment", version, propagate_version = true, max_term_width = 100)]
#[command(after_help = "Examples:
  catchment demo                                    the platform with simulated worlds; needs nothing else
  catchment serve --data /var/lib/catchment         the platform on its own
  catchment query \"SELECT * FROM devices\"           ask it
  catchment tail city-*                             watch what comes in

Every command explains itself: catchment help COMMAND")]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
    /// What to log: error, warn, info, debug, trace, or a filter such as info,catchment_store=debug.
    #[arg(long, global = true, value_name = "LEVEL", help_heading = "Logging")]
    pub(crate) log_level: Option<String>,
    /// How log lines look: auto is human on a terminal and plain otherwise.
    #[arg(long, global = true, value_name = "FORMAT", help_heading = "Logging")]
    pub(crate) log_format: Option<LogFormat>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Runs the platform.
    #[command(after_help = "Examples:
  catchment serve
  catchment serve --data /var/lib/catchment --http 0.0.0.0:8080 --mqtt 0.0.0.0:1883
  catchment serve --source 'mqtt://broker.example/city/#'
  catchment serve --source 'kafka://broker.example:9092/demo?type=quote&device=name'
  CATCHMENT_HISTORY__FLUSH_INTERVAL_MS=10000 catchment serve --config /etc/catchment.toml

Settings come from, the later the stronger: built-in defaults, catchment.toml (--config, or in the working
directory), environment variables CATCHMENT_…, flags. The first start makes an administrator's token.
Ctrl-C drains and stops; a second Ctrl-C stops at once.")]
    Serve(ServeArgs),
    /// Runs the platform with simulated worlds that talk to it over the real protocols.
    #[command(after_help = "Examples:
  catchment demo
  catchment demo --load-devices 1000 --load-rate 10

The data folder is ./catchment-demo unless --data names another; it is kept, so that the next demo goes on from there.")]
    Demo(DemoArgs),
    /// Publishes a simulated world to any MQTT server, until Ctrl-C.
    #[command(after_help = "Examples:
  catchment simulate city --to mqtt://127.0.0.1:1883
  catchment simulate load --load-devices 500 --load-rate 2 --to mqtt://device:TOKEN@gateway.example:1883")]
    Simulate(SimulateArgs),
    /// Runs one SQL statement and prints its rows.
    #[command(after_help = "Examples:
  catchment query \"SELECT device_id, metric_name, metric_value FROM snapshot LIMIT 10\"
  catchment query --format csv \"SELECT * FROM aggregated_metrics\" > minutes.csv
  echo \"SELECT count(*) FROM raw_events\" | catchment query

Tables: raw_events, raw_metrics, aggregated_metrics, metric_rollups, snapshot, devices, rejects.")]
    Query(QueryArgs),
    /// Follows events live, as they come in.
    #[command(after_help = "Examples:
  catchment tail                      everything
  catchment tail 'traffic-*'          devices whose id fits
  catchment tail --type demo          one type
  catchment tail | grep BTC           each event is one line")]
    Tail(TailArgs),
    /// Registers devices, and shows what is known of them.
    #[command(subcommand)]
    Device(DeviceCommand),
    /// Decoders: the rules that turn the payloads of a type into readings. Changes take effect without a restart.
    #[command(subcommand)]
    Decoder(DecoderCommand),
    /// Routes: which topics become events, of which device and type. Changes take effect without a restart.
    #[command(subcommand)]
    Route(RouteCommand),
    /// Tokens: who may do what.
    #[command(subcommand)]
    Token(TokenCommand),
    /// Realms: spaces of topics and devices of their own, and how much may be sent in them.
    #[command(subcommand)]
    Realm(RealmCommand),
    /// Rules about topics: who may publish and subscribe where.
    #[command(subcommand)]
    Acl(AclCommand),
    /// Bans: devices, client ids and addresses that are kept out.
    #[command(subcommand)]
    Ban(BanCommand),
    /// Measures.
    #[command(subcommand)]
    Bench(BenchCommand),
    /// Says whether a configuration is sound, what each engine resolves to, and what the machine gives.
    #[command(after_help = "Examples:
  catchment check
  catchment check --config /etc/catchment.toml

Exit code 0: sound. Exit code 1: not; the table says what and why.")]
    Check(ServeArgs),
    /// Moves registry and history from the engines of one configuration to those of another.
    #[command(after_help = "Examples:
  catchment migrate --from file:/var/lib/catchment --to /etc/catchment.toml
  catchment migrate --from /etc/one.toml --to /etc/other.toml

Each side is a settings file, or file:FOLDER, a data folder with the embedded engines in it. All processes of both sides have to
be stopped, the source's in order, so that everything in its log is in its history. A new log begins empty. A call that was
broken off is repeated; a target that has other data is refused. Sessions of MQTT clients stay in the data folder.

Exit code 0: the target has what the source has; the table says how much. Exit code 1: not.")]
    Migrate(MigrateArgs),
}

/// From where to where.
#[derive(Debug, Args)]
pub(crate) struct MigrateArgs {
    /// Whose data is moved: a settings file, or file:FOLDER.
    #[arg(long, value_name = "CONFIGURATION")]
    pub(crate) from: String,
    /// Where to: a settings file, or file:FOLDER.
    #[arg(long, value_name = "CONFIGURATION")]
    pub(crate) to: String,
}

/// Where the platform keeps things and listens.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct ServeArgs {
    /// Folder of everything that is kept [default: ./catchment-data].
    #[arg(long, value_name = "DIR")]
    pub(crate) data: Option<PathBuf>,
    /// File of settings [default: ./catchment.toml if there is one].
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// Where REST, WebSocket and MQTT over WebSocket listen [default: 127.0.0.1:8080].
    #[arg(long, value_name = "ADDR:PORT", help_heading = "Listeners")]
    pub(crate) http: Option<SocketAddr>,
    /// Where MQTT listens [default: 127.0.0.1:1883].
    #[arg(long, value_name = "ADDR:PORT", help_heading = "Listeners")]
    pub(crate) mqtt: Option<SocketAddr>,
    /// Where MQTT over TLS listens, usually on port 8883; needs the section tls of the settings [default: nowhere].
    #[arg(long, value_name = "ADDR:PORT", help_heading = "Listeners")]
    pub(crate) mqtts: Option<SocketAddr>,
    /// Where REST and WebSocket over TLS listen, usually on port 8443; needs the section tls of the settings [default: nowhere].
    #[arg(long, value_name = "ADDR:PORT", help_heading = "Listeners")]
    pub(crate) https: Option<SocketAddr>,
    /// PEM file with the server's certificate and those that lead to its CA.
    #[arg(long, value_name = "FILE", requires = "tls_key", help_heading = "Listeners")]
    pub(crate) tls_certificate: Option<PathBuf>,
    /// PEM file with the certificate's key.
    #[arg(long, value_name = "FILE", requires = "tls_certificate", help_heading = "Listeners")]
    pub(crate) tls_key: Option<PathBuf>,
    /// Where the PostgreSQL protocol listens [default: 127.0.0.1:5433].
    #[arg(long, value_name = "ADDR:PORT", help_heading = "Listeners")]
    pub(crate) pg: Option<SocketAddr>,
    /// Another broker to take messages from: mqtt://USER:PASSWORD@HOST:PORT/FILTER, mqtts:// with TLS; or a topic of Kafka:
    /// kafka://HOST:PORT/TOPIC?type=TYPE&device=FIELD; may be repeated. The list of processes shows it: passwords are better
    /// kept in CATCHMENT_SOURCES or in the settings.
    #[arg(long = "source", value_name = "URL", help_heading = "Bridges")]
    pub(crate) sources: Vec<String>,
    /// Engine of the event log: kafka://HOST:PORT/TOPIC, or file:PATH [default: embedded].
    #[arg(long, value_name = "URL", help_heading = "Engines")]
    pub(crate) log: Option<String>,
    /// Engine of the history [default: embedded]; s3://bucket/prefix keeps its tables in S3.
    #[arg(long, value_name = "URL", help_heading = "Engines")]
    pub(crate) history: Option<String>,
    /// Engine of snapshot and live: redis://HOST:PORT/DB, rediss:// with TLS [default: embedded].
    #[arg(long, value_name = "URL", help_heading = "Engines")]
    pub(crate) snapshot: Option<String>,
    /// Engine of the registry [default: embedded].
    #[arg(long, value_name = "URL", help_heading = "Engines")]
    pub(crate) registry: Option<String>,
    /// Where raw data goes after its hot days [default: nowhere]: file:PATH, s3://bucket/prefix.
    #[arg(long, value_name = "URL", help_heading = "Engines")]
    pub(crate) archive: Option<String>,
    /// Publishes decoded readings and rejects to topics beside the log's, TOPIC.readings and TOPIC.rejects.
    #[arg(long)]
    pub(crate) publish_readings: bool,
    /// What this process does: gateway, distributor, api [default: all].
    #[arg(long, value_name = "ROLE,…")]
    pub(crate) roles: Option<String>,
}

impl ServeArgs {
    /// The flags that were given, as settings.
    pub(crate) fn overrides(&self) -> Overrides {
        let text = |address: Option<SocketAddr>| address.map(|address| address.to_string());
        let file = |path: &Option<PathBuf>| path.as_ref().map(|path| path.display().to_string());
        let given = [
            ("data", file(&self.data)),
            ("http", text(self.http)),
            ("mqtt", text(self.mqtt)),
            ("pg", text(self.pg)),
            ("mqtts", text(self.mqtts)),
            ("https", text(self.https)),
            ("tls.certificate", file(&self.tls_certificate)),
            ("tls.key", file(&self.tls_key)),
            ("sources", Some(self.sources.join(" ")).filter(|sources| !sources.is_empty())),
            ("engines.log", self.log.clone()),
            ("engines.history", self.history.clone()),
            ("engines.snapshot", self.snapshot.clone()),
            ("engines.registry", self.registry.clone()),
            ("engines.archive", self.archive.clone()),
            ("roles", self.roles.clone()),
            ("engines.kafka.publish_readings", self.publish_readings.then(|| "true".to_owned())),
        ];
        given.into_iter().filter_map(|(key, value)| Some((key, value?))).collect()
    }
}

/// The platform and its worlds.
#[derive(Debug, Args)]
pub(crate) struct DemoArgs {
    #[command(flatten)]
    pub(crate) serve: ServeArgs,
    #[command(flatten)]
    pub(crate) world: WorldArgs,
}

/// How worlds behave.
#[derive(Debug, Clone, Args)]
pub(crate) struct WorldArgs {
    /// Devices under load; 0 leaves the load out.
    #[arg(long, value_name = "N", default_value_t = 0, help_heading = "Worlds",
        value_parser = clap::value_parser!(u32).range(..=1_000_000))]
    pub(crate) load_devices: u32,
    /// Events a second of each device under load.
    #[arg(long, value_name = "R", default_value_t = 1.0, value_parser = positive, help_heading = "Worlds")]
    pub(crate) load_rate: f64,
    /// Of the random numbers: the same seed is the same weather.
    #[arg(long, value_name = "SEED", default_value_t = 1, help_heading = "Worlds")]
    pub(crate) seed: u64,
}

/// One world, elsewhere.
#[derive(Debug, Args)]
pub(crate) struct SimulateArgs {
    /// Which world.
    pub(crate) world: WorldName,
    /// The MQTT server: `mqtt://USER:PASSWORD@HOST:PORT` or `mqtts://…`; user, password and port may be left out.
    #[arg(long, value_name = "URL", default_value = "mqtt://127.0.0.1:1883")]
    pub(crate) to: MqttTarget,
    /// PEM file of the CA that an mqtts:// server is verified by. Without one, those that the system trusts.
    #[arg(long, env = "CATCHMENT_CA", value_name = "FILE")]
    pub(crate) ca: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) options: WorldArgs,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum WorldName {
    /// Ten sensors of six kinds in Martinique, one observation a second each.
    City,
    /// The prices of four coins, one a second each.
    Market,
    /// Many devices with about 1 KB of JSON an event (--load-devices, --load-rate).
    Load,
}

/// How to reach a running platform.
#[derive(Debug, Clone, Args)]
pub(crate) struct ClientArgs {
    /// Address of the platform.
    #[arg(
        long,
        env = "CATCHMENT_URL",
        value_name = "URL",
        default_value = "http://127.0.0.1:8080",
        help_heading = "Connection"
    )]
    pub(crate) url: String,
    /// Token to show. Without one, the administrator's is read from the data folder, where it is readable.
    #[arg(
        long,
        env = "CATCHMENT_TOKEN",
        hide_env_values = true,
        value_name = "TOKEN",
        help_heading = "Connection"
    )]
    pub(crate) token: Option<String>,
    /// Data folder to read the administrator's token from.
    #[arg(long, value_name = "DIR", help_heading = "Connection")]
    pub(crate) data: Option<PathBuf>,
    /// PEM file of the CA that an https:// address is verified by. Without one, those that the system trusts.
    #[arg(long, env = "CATCHMENT_CA", value_name = "FILE", help_heading = "Connection")]
    pub(crate) ca: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct QueryArgs {
    /// The statement; read from standard input when absent or "-".
    pub(crate) sql: Option<String>,
    /// How rows are printed.
    #[arg(long, value_enum, default_value_t = QueryFormat::Table)]
    pub(crate) format: QueryFormat,
    /// Whose SQL it is.
    #[arg(long, value_enum, default_value_t = QueryDialect::Postgresql)]
    pub(crate) dialect: QueryDialect,
    #[command(flatten)]
    pub(crate) client: ClientArgs,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum QueryFormat {
    /// For people.
    Table,
    /// One document.
    Json,
    /// One object a line.
    Ndjson,
    /// With a header line.
    Csv,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum QueryDialect {
    /// Catchment's own, over all tables.
    Postgresql,
    /// ClickHouse's, where history is on it.
    Clickhouse,
}

#[derive(Debug, Args)]
pub(crate) struct TailArgs {
    /// Devices to follow: an id, with * for any characters.
    pub(crate) filter: Option<String>,
    /// Types to follow, with * for any characters.
    #[arg(long = "type", value_name = "TYPE")]
    pub(crate) event_type: Option<String>,
    #[command(flatten)]
    pub(crate) client: ClientArgs,
}

#[derive(Debug, Subcommand)]
pub(crate) enum DeviceCommand {
    /// Registers a device and makes its token, with which it, and no other, may publish.
    #[command(after_help = "Example:
  catchment device add truck-7 --label site=lyon --label line=3")]
    Add {
        /// Its id: what stands in the topic devices/ID/TYPE.
        id: String,
        /// A label; may be repeated.
        #[arg(long = "label", value_name = "KEY=VALUE", value_parser = key_value)]
        labels: Vec<(String, String)>,
        /// Makes a password instead of a token.
        #[arg(long, conflicts_with = "no_token")]
        password: bool,
        /// Makes no token: the device comes in without one, which only works from this machine, or by a JSON web token.
        #[arg(long)]
        no_token: bool,
        /// The realm that it belongs to.
        #[arg(long, default_value = "main")]
        realm: String,
        #[command(flatten)]
        client: ClientArgs,
    },
    /// Lists devices, registered or only seen.
    List {
        #[command(flatten)]
        client: ClientArgs,
    },
    /// Shows a device and its latest values.
    Show {
        /// Its id.
        id: String,
        #[command(flatten)]
        client: ClientArgs,
    },
    /// Gives a device a new password, made here or read from standard input. Whoever is connected by the old one is sent away.
    Password {
        /// Its id.
        id: String,
        /// Reads the password from the first line of standard input.
        #[arg(long, conflicts_with = "remove")]
        stdin: bool,
        /// Takes its password away.
        #[arg(long)]
        remove: bool,
        /// The realm that it belongs to.
        #[arg(long, default_value = "main")]
        realm: String,
        #[command(flatten)]
        client: ClientArgs,
    },
    /// Takes a device out of the registry, with its tokens and its password; what it sent stays. It is sent away at once.
    Remove {
        /// Its id.
        id: String,
        /// The realm that it belongs to.
        #[arg(long, default_value = "main")]
        realm: String,
        #[command(flatten)]
        client: ClientArgs,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum DecoderCommand {
    /// Lists the rules.
    List {
        #[command(flatten)]
        client: ClientArgs,
    },
    /// Shows the rule of a type, or the default that applies to it.
    Show {
        /// The type.
        event_type: String,
        #[command(flatten)]
        client: ClientArgs,
    },
    /// Sets the rule of a type.
    #[command(after_help = "Example:
  echo '{\"include\": [\"metrics.*\"]}' | catchment decoder set telemetry -")]
    Set {
        /// The type.
        event_type: String,
        /// File with the rule as JSON; "-" is standard input.
        rule: PathBuf,
        #[command(flatten)]
        client: ClientArgs,
    },
    /// Removes the rule of a type; the default applies again.
    Remove {
        /// The type.
        event_type: String,
        #[command(flatten)]
        client: ClientArgs,
    },
    /// Decodes a payload with a rule and shows readings and rejects; nothing is kept.
    #[command(after_help = "Example:
  echo '{\"ts\": 1700000000, \"rpm\": 900}' | catchment decoder test engine -")]
    Test {
        /// The type.
        event_type: String,
        /// File with the payload; "-" is standard input.
        payload: PathBuf,
        /// File with a rule to try instead of the one in force.
        #[arg(long, value_name = "FILE")]
        rule: Option<PathBuf>,
        #[command(flatten)]
        client: ClientArgs,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum RouteCommand {
    /// Lists the routes in force.
    List {
        #[command(flatten)]
        client: ClientArgs,
    },
    /// Adds a route, or replaces the one with the same topic.
    #[command(after_help = "Examples:
  catchment route add 'city/{area}/traffic/{device_id}' --type traffic
  catchment route add 'tele/{device_id}/{type}' --tag source=tasmota
  catchment route add 'logs/{path...}' --device broker --type log

Levels: a word; {device_id}; {type}; {NAME} gives a tag; {NAME...} at the end takes all that follows; + and # fit anything.
Of several routes that fit the most specific counts.")]
    Add {
        /// The topics' shape.
        topic: String,
        /// The type, where the topic does not tell it.
        #[arg(long = "type", value_name = "TYPE")]
        event_type: Option<String>,
        /// The device, where the topic does not tell it.
        #[arg(long, value_name = "ID")]
        device: Option<String>,
        /// A tag that all events of the route get; may be repeated.
        #[arg(long = "tag", value_name = "KEY=VALUE", value_parser = key_value)]
        tags: Vec<(String, String)>,
        #[command(flatten)]
        client: ClientArgs,
    },
    /// Removes a route that was added; what it led to stays.
    Remove {
        /// Its topic, as listed.
        topic: String,
        #[command(flatten)]
        client: ClientArgs,
    },
    /// Says where a topic leads.
    Test {
        /// A topic, for instance city/nord/traffic/t1.
        topic: String,
        #[command(flatten)]
        client: ClientArgs,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum TokenCommand {
    /// Prints the administrator's token of a data folder, alone on the last line.
    Show {
        /// The data folder.
        #[arg(long, value_name = "DIR", default_value = "catchment-data")]
        data: PathBuf,
    },
    /// Makes a token and prints it, alone on the last line. It cannot be shown again.
    Create {
        /// What it is for.
        name: String,
        /// What it may do.
        #[arg(long, value_enum, default_value_t = RoleName::Reader)]
        role: RoleName,
        /// The only device it may publish as (role device).
        #[arg(long, value_name = "ID", required_if_eq("role", "device"))]
        device: Option<String>,
        /// The realm that it is for.
        #[arg(long, default_value = "main")]
        realm: String,
        #[command(flatten)]
        client: ClientArgs,
    },
    /// Lists tokens; their secrets are not kept.
    List {
        #[command(flatten)]
        client: ClientArgs,
    },
    /// Makes a token worthless.
    Revoke {
        /// Its id, as listed.
        id: String,
        #[command(flatten)]
        client: ClientArgs,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum RoleName {
    /// Everything.
    Admin,
    /// Reading: SQL, snapshots, live.
    Reader,
    /// Publishing as one device.
    Device,
}

impl RoleName {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Admin => "admin",
            Self::Reader => "reader",
            Self::Device => "device",
        }
    }
}

fn positive(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(number) if number > 0.0 && number <= 1e6 => Ok(number),
        _ => Err("a number above 0, at most 1000000, is needed".into()),
    }
}

fn key_value(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("write KEY=VALUE".into()),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn labels_are_pairs() {
        assert_eq!(key_value("a=b=c"), Ok(("a".into(), "b=c".into())));
        assert!(key_value("ab").is_err() && key_value("=b").is_err());
    }
}
