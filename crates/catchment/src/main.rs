//! Catchment: one binary that takes telemetry in, keeps it, and answers at once.
//!
//! `cli` says what can be asked for; `settings` what can be chosen; `app` puts the parts together. The other modules are one
//! command each.

mod admission;
mod app;
mod bench;
mod check;
mod cli;
mod client;
mod engines;
mod folder;
mod http;
mod logging;
mod migrate;
mod routes;
mod settings;
mod table;
mod trust;
mod tunnel;
mod worlds;

use std::process::ExitCode;

use clap::Parser;

use crate::cli::{Cli, Command};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// The folder of a demo, so that it never mixes with real data.
const DEMO_DATA: &str = "catchment-demo";

fn main() -> ExitCode {
    match run(Cli::parse()) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error}");
            // A cause that its parent quotes already is not told twice.
            let mut told = error.to_string();
            for cause in error.chain().skip(1).map(ToString::to_string) {
                if !told.contains(&cause) {
                    eprintln!("  because {cause}");
                    told = cause;
                }
            }
            ExitCode::FAILURE
        }
    }
}

fn run(cli: Cli) -> anyhow::Result<ExitCode> {
    let Cli { command, log_level, log_format } = cli;
    let platform = matches!(command, Command::Serve(_) | Command::Demo(_) | Command::Check(_));
    if !platform {
        logging::install(log_format.unwrap_or_default(), log_level.as_deref().unwrap_or("info"))?;
    }
    let settings = |args: &cli::ServeArgs, data: Option<&str>| {
        let mut overrides = args.overrides();
        if let (None, Some(data)) = (&args.data, data) {
            overrides.push(("data", data.to_owned()));
        }
        overrides.extend(log_level.clone().map(|level| ("log_level", level)));
        overrides.extend(log_format.map(|format| ("log_format", format.name().to_owned())));
        settings::load(args.config.as_deref(), std::env::vars(), &overrides)
    };
    match command {
        Command::Serve(args) => app::run(settings(&args, None)?, None)?,
        Command::Demo(args) => app::run(settings(&args.serve, Some(DEMO_DATA))?, Some(&args.world))?,
        Command::Check(args) => return check::check(settings(&args, None)),
        Command::Migrate(args) => return migrate::migrate(&args),
        Command::Simulate(args) => worlds::simulate(&args)?,
        Command::Query(args) => client::query(&args)?,
        Command::Tail(args) => client::tail(&args)?,
        Command::Device(command) => client::device(command)?,
        Command::Decoder(command) => client::decoder(command)?,
        Command::Route(command) => client::route(command)?,
        Command::Token(command) => client::token(command)?,
        Command::Realm(command) => client::realm(command)?,
        Command::Acl(command) => client::acl(command)?,
        Command::Ban(command) => client::ban(command)?,
        Command::Bench(command) => bench::bench(command)?,
    }
    Ok(ExitCode::SUCCESS)
}
