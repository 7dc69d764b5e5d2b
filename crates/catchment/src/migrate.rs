//! `catchment migrate`: registry and history from the engines of one configuration to those of another.
//!
//! ```text
//! lock both data folders → everything in the log is in history? → registry → history, by day → how far the log is → counts
//! ```
//!
//! Each step finds what an earlier call has done and does not do it again, so a call that was broken off is simply repeated.
//! Nothing of the source is changed, and nothing in the target that the source does not have.

mod history;
mod side;

use std::io::IsTerminal;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, bail};
use catchment_store::registry;

use self::side::Side;
use crate::cli::MigrateArgs;
use crate::engines::{Engine, Seam};
use crate::folder::read_admin_token;
use crate::{app, table};

/// How long other members of the consumer group may take to leave it.
const ALONE_MAX: Duration = Duration::from_secs(60);

/// One line of what is told at the end.
pub(super) struct Count {
    pub(super) what: String,
    pub(super) source: u64,
    pub(super) target: u64,
}

/// Moves what differs; success when both sides have the same afterwards.
///
/// # Errors
/// Says what stands in the way, and what to do.
pub(crate) fn migrate(args: &MigrateArgs) -> anyhow::Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let counts = runtime.block_on(async {
        tokio::select! {
            counts = run(args) => counts,
            _ = tokio::signal::ctrl_c() => bail!("interrupted; the same call again goes on from here"),
        }
    })?;
    let rows: Vec<Vec<String>> = counts
        .iter()
        .map(|count| {
            let verdict = if count.source == count.target { "ok" } else { "NOT OK: not the same" };
            vec![count.what.clone(), count.source.to_string(), count.target.to_string(), verdict.to_owned()]
        })
        .collect();
    print!("{}", table::render(&["what", "source", "target", "verdict"], &rows));
    if counts.iter().any(|count| count.source != count.target) {
        println!("\nthe target is not the same: do not start it");
        return Ok(ExitCode::FAILURE);
    }
    println!("\nall is there; start the target, and keep the source until you have looked at it");
    Ok(ExitCode::SUCCESS)
}

async fn run(args: &MigrateArgs) -> anyhow::Result<Vec<Count>> {
    let from = Side::open(&args.from, None).with_context(|| format!("--from {}", args.from))?;
    let to = Side::open(&args.to, Some(&from)).with_context(|| format!("--to {}", args.to))?;
    let moves = |seam| from.engine(seam) != to.engine(seam);
    if !moves(Seam::Registry) && !moves(Seam::History) {
        bail!("both have the same registry and the same history; there is nothing to move");
    }
    for seam in [Seam::Log, Seam::Registry, Seam::History] {
        tell(&format!("{:<9} {}  →  {}", seam.name(), from.engine(seam), to.engine(seam)));
    }
    if !moves(Seam::History) && moves(Seam::Log) {
        bail!(
            "the history stays, but its offsets are of the log {}: that has to stay, too",
            from.engine(Seam::Log)
        );
    }
    from.has_been_used()?;
    let mut counts = Vec::new();
    let mut ends = Vec::new();
    if moves(Seam::History) {
        // First of all: nothing is begun that could not be done.
        let target = history::Target::open(&to).await?;
        let source = history::Source::open(&from).await?;
        ends.clone_from(source.ends());
        let plan = history::plan(&source, &target, &to).await?;
        if moves(Seam::Registry) {
            copy_registry(&from, &to, &mut counts).await?;
        }
        counts.extend(history::copy(&source, &target, plan).await?);
        source.close().await;
    } else {
        copy_registry(&from, &to, &mut counts).await?;
    }
    let is_same = counts.iter().all(|count| count.source == count.target);
    if is_same && moves(Seam::History) && !moves(Seam::Log) {
        go_on_from(&to, &ends).await?;
    }
    if is_same && from.folder_path() != to.folder_path() && read_admin_token(to.folder_path()).is_err() {
        // The token itself is in the registry: only its hash.
        if let (true, Ok(token)) = (moves(Seam::Registry), read_admin_token(from.folder_path())) {
            let path = to.folder(&from).write_admin_token(&token)?;
            tell(&format!("the administrator's token is in {} now, too", path.display()));
        }
    }
    Ok(counts)
}

async fn copy_registry(from: &Side, to: &Side, counts: &mut Vec<Count>) -> anyhow::Result<()> {
    let copied = registry::copy(&from.registry()?, &to.registry()?).await?;
    let rows: u64 = copied.iter().map(|table| table.target).sum();
    tell(&format!("registry: {rows} rows"));
    counts.extend(copied.into_iter().map(|copied| Count {
        what: format!("registry {}", copied.table),
        source: copied.source,
        target: copied.target,
    }));
    Ok(())
}

/// Has the target go on in the same log where the source has stopped.
async fn go_on_from(to: &Side, ends: &[u64]) -> anyhow::Result<()> {
    if matches!(to.engine(Seam::History), Engine::Embedded(_) | Engine::S3(_)) {
        return Ok(());
    }
    let (log, _, group) = app::log::open(to.engine(Seam::Log), &to.settings, true).await?;
    let mut assigned = group.assigned();
    let all = assigned.wait_for(|assigned| assigned.len() == ends.len());
    if !matches!(tokio::time::timeout(ALONE_MAX, all).await, Ok(Ok(_))) {
        bail!("other processes work on the log's partitions; stop them, and call this again");
    }
    for (partition, &end) in (0..).zip(ends) {
        group.claim(partition, end..end).await?;
    }
    group.close().await;
    log.close().await;
    Ok(())
}

/// Progress, which is not the result.
pub(super) fn tell(line: &str) {
    eprintln!("{line}");
}

/// Whether lines may be written over.
pub(super) fn is_watched() -> bool {
    std::io::stderr().is_terminal()
}
