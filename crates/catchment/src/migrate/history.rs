//! History by day and month: what is where, what has to be brought over, and that it is the same afterwards.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::bail;
use catchment_eventlog::EventLog;
use catchment_store::clickhouse::ClickHouseImport;
use catchment_store::export::{Export, is_expired};
use catchment_store::history::History;
use catchment_store::shard::Shard;
use catchment_store::tables::TableId;
use catchment_types::{Offset, PartitionId, Timestamp};

use super::side::Side;
use super::{Count, is_watched, tell};
use crate::app;
use crate::engines::{Engine, Seam};

/// How often a long period tells how far it is.
const TELL_EVERY: Duration = Duration::from_secs(2);

/// Rows of each table by period.
type Periods = BTreeMap<&'static str, BTreeMap<String, u64>>;

/// Where history is read.
pub(super) struct Source {
    log: Arc<dyn EventLog>,
    ends: Vec<Offset>,
    export: Export<dyn History>,
}

impl Source {
    /// Opens log and history of a configuration whose processes have stopped.
    ///
    /// # Errors
    /// They do not open, or the log has events that are not in history.
    pub(super) async fn open(side: &Side) -> anyhow::Result<Self> {
        let is_shared = matches!(side.engine(Seam::History), Engine::ClickHouse(_));
        let (log, identity, group) =
            app::log::open(side.engine(Seam::Log), &side.settings, is_shared).await?;
        let shards: Arc<[Arc<Shard>]> = (0..log.partitions()).map(Shard::new).collect();
        let of_log = app::history::Log { identity: &identity, group: &group };
        let folder = side.own_folder()?;
        let history = app::history::open(side.engines(), &side.settings, folder, of_log, &shards).await?;
        let mut ends = Vec::new();
        for partition in 0..log.partitions() {
            let (end, start) = (log.range(partition).end, history.take_over(partition).await?);
            if start.offset != end || start.repeat_to > end {
                bail!(not_stopped(partition, end.saturating_sub(start.offset)));
            }
            ends.push(end);
        }
        group.close().await;
        Ok(Self { log, ends, export: Export::new(history)? })
    }

    /// For each partition, where the log ends; everything below is in history.
    pub(super) fn ends(&self) -> &Vec<Offset> {
        &self.ends
    }

    async fn periods(&self) -> anyhow::Result<Periods> {
        let mut periods = Periods::new();
        for table in TableId::ALL {
            periods.insert(table.name(), self.export.periods(table).await?);
        }
        Ok(periods)
    }

    pub(super) async fn close(self) {
        self.log.close().await;
    }
}

fn not_stopped(partition: PartitionId, events: u64) -> String {
    format!(
        "partition {partition} of the source's log has {events} events that are not in its history yet; start the source once \
         more, let nothing come in, and stop it in order (SIGTERM, or Ctrl-C once)"
    )
}

/// Where history is brought to.
pub(super) struct Target(ClickHouseImport);

impl Target {
    /// Connects.
    ///
    /// # Errors
    /// It does not let us, or nothing can be brought into this engine.
    pub(super) async fn open(side: &Side) -> anyhow::Result<Self> {
        match side.engine(Seam::History) {
            Engine::ClickHouse(target) => {
                Ok(Self(ClickHouseImport::open(target, &side.settings.history).await?))
            }
            tables @ (Engine::Embedded(_) | Engine::S3(_)) => bail!(
                "history can be moved into ClickHouse, but not into Delta tables ({tables}); to move the registry only, name a \
                 target whose log and history are those of the source"
            ),
            other => bail!("{other} is no history of this build"),
        }
    }

    async fn periods(&self) -> anyhow::Result<Periods> {
        let mut periods = Periods::new();
        for table in TableId::ALL {
            periods.insert(table.name(), self.0.periods(table).await?);
        }
        Ok(periods)
    }
}

/// What is to be brought over.
pub(super) struct Plan {
    /// What the source has and the target keeps.
    wanted: Periods,
    /// What the target has of it already.
    found: Periods,
}

/// Compares both sides.
///
/// # Errors
/// The target has rows that are not the source's.
pub(super) async fn plan(source: &Source, target: &Target, to: &Side) -> anyhow::Result<Plan> {
    let (mut wanted, found) = (source.periods().await?, target.periods().await?);
    for table in TableId::ALL {
        let (days, now) = (to.settings.history.retention_days(table), Timestamp::now());
        let periods = wanted.entry(table.name()).or_default();
        let expired: u64 = periods
            .extract_if(.., |period, _| is_expired(table, period, days, now))
            .map(|(_, rows)| rows)
            .sum();
        if expired > 0 {
            tell(&format!(
                "{}: {expired} rows are older than the target keeps them, and stay behind",
                table.name()
            ));
        }
        for (period, rows) in &found[table.name()] {
            let expected = periods.get(period).copied().unwrap_or_default();
            if *rows != expected && !is_expired(table, period, days, now) {
                bail!(
                    "the target's {} has {rows} rows of {period}, the source {expected}: it has other data, or went on after it \
                     was moved; name an empty database",
                    table.name()
                );
            }
        }
    }
    Ok(Plan { wanted, found })
}

/// Brings over what the target has not, oldest first; then counts again.
///
/// # Errors
/// The target or the source fails. What was brought over stays, and is found by the next call.
pub(super) async fn copy(source: &Source, target: &Target, plan: Plan) -> anyhow::Result<Vec<Count>> {
    for table in TableId::ALL {
        for (period, &rows) in &plan.wanted[table.name()] {
            if plan.found[table.name()].contains_key(period) {
                tell(&format!("{} {period}: there already", table.name()));
                continue;
            }
            let started = Instant::now();
            let mut told = Instant::now();
            let stream = source.export.rows(table, period).await?;
            let sent = |sent: u64| {
                if is_watched() && told.elapsed() >= TELL_EVERY {
                    told = Instant::now();
                    tell(&format!("{} {period}: {sent} of {rows} rows", table.name()));
                }
            };
            target.0.replace(table, period, stream, sent).await?;
            tell(&format!(
                "{} {period}: {rows} rows in {:.1} s",
                table.name(),
                started.elapsed().as_secs_f64()
            ));
        }
    }
    let found = target.periods().await?;
    let count = |table: TableId| {
        let wanted = &plan.wanted[table.name()];
        let found = &found[table.name()];
        // Rows of other periods would be a fault, too, but for those that have expired.
        let target = wanted.keys().filter_map(|period| found.get(period)).sum();
        Count { what: format!("history {}", table.name()), source: wanted.values().sum(), target }
    };
    Ok(TableId::ALL.into_iter().map(count).collect())
}
