//! Who works on which partition, and how far the work is.
//!
//! Partitions are worked on by the members of a consumer group, each by one member at a time. With one process that is all
//! of them, for ever ([`SoleMember`]); with Kafka, its group coordinator deals them out and moves them as members come and go.

use std::collections::BTreeSet;
use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use catchment_types::{Offset, PartitionId};
use thiserror::Error;
use tokio::sync::watch;

/// Partitions.
pub type Assigned = Arc<BTreeSet<PartitionId>>;

/// This process's membership in the group of those who bring the log's events into the store.
#[async_trait]
pub trait ConsumerGroup: Send + Sync + fmt::Debug + 'static {
    /// The partitions this process is to work on. When one disappears, it is taken from us: whoever works on it stops, and
    /// then says so by [`ConsumerGroup::left`]; another member has it only after that, or when we take too long.
    fn assigned(&self) -> watch::Receiver<Assigned>;

    /// Whether [`ConsumerGroup::assigned`] says what the group has said. Before it has taken us in, nothing is assigned.
    fn has_joined(&self) -> bool;

    /// Nothing is done for the partition any more. Whoever is about to [`ConsumerGroup::close`] says so before it is taken.
    fn left(&self, partition: PartitionId);

    /// The last claim of a partition, by whichever member; `0..0` when there was none.
    ///
    /// # Errors
    /// What keeps the claims does not answer.
    async fn claimed(&self, partition: PartitionId) -> Result<Range<Offset>, GroupError>;

    /// Says, durably, that the events of a range are about to be brought into a store that cannot keep offsets with its
    /// rows, and that everything below is in it.
    ///
    /// # Errors
    /// [`GroupError::Lost`] when the partition is another member's now.
    async fn claim(&self, partition: PartitionId, range: Range<Offset>) -> Result<(), GroupError>;

    /// Leaves the group, so that others need not wait until we are missed.
    async fn close(&self);
}

/// Why something about the group failed.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum GroupError {
    /// The partition is not ours.
    #[error("partition {0} is not this process's to work on")]
    Lost(PartitionId),
    /// It can be tried again.
    #[error("{place}: {message}")]
    Failed {
        /// File or address.
        place: String,
        /// What happened.
        message: String,
    },
}

/// The only member there is: has all partitions. Claims are files of its folder.
#[derive(Debug)]
pub struct SoleMember {
    folder: PathBuf,
    assigned: watch::Sender<Assigned>,
}

impl SoleMember {
    /// The group of a log with this many partitions; the folder is made with the first claim.
    #[must_use]
    pub fn new(folder: PathBuf, partitions: u32) -> Self {
        Self { folder, assigned: watch::Sender::new(Arc::new((0..partitions).collect())) }
    }

    fn path(&self, partition: PartitionId) -> PathBuf {
        self.folder.join(format!("p{partition:04}"))
    }
}

#[async_trait]
impl ConsumerGroup for SoleMember {
    fn assigned(&self) -> watch::Receiver<Assigned> {
        self.assigned.subscribe()
    }

    fn has_joined(&self) -> bool {
        true
    }

    fn left(&self, _: PartitionId) {}

    async fn claimed(&self, partition: PartitionId) -> Result<Range<Offset>, GroupError> {
        let path = self.path(partition);
        blocking(move || match std::fs::read_to_string(&path) {
            Ok(text) => {
                parse(&text).ok_or_else(|| failed(&path, "is no claim; it was changed by hand or damaged"))
            }
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(0..0),
            Err(error) => Err(failed(&path, error)),
        })
        .await
    }

    async fn claim(&self, partition: PartitionId, range: Range<Offset>) -> Result<(), GroupError> {
        let (folder, path) = (self.folder.clone(), self.path(partition));
        blocking(move || replace(&folder, &path, &range).map_err(|error| failed(&path, error))).await
    }

    async fn close(&self) {}
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, GroupError> + Send + 'static,
) -> Result<T, GroupError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}

fn parse(text: &str) -> Option<Range<Offset>> {
    let (start, end) = text.trim_end().split_once(' ')?;
    let range = start.parse().ok()?..end.parse().ok()?;
    (range.start <= range.end).then_some(range)
}

/// Puts a claim in the place of the last, whole or not at all.
fn replace(folder: &Path, path: &Path, range: &Range<Offset>) -> std::io::Result<()> {
    std::fs::create_dir_all(folder)?;
    let new = path.with_extension("new");
    let mut file = OpenOptions::new().create(true).write(true).truncate(true).open(&new)?;
    writeln!(file, "{} {}", range.start, range.end)?;
    file.sync_all()?;
    std::fs::rename(&new, path)?;
    File::open(folder)?.sync_all()
}

fn failed(path: &Path, message: impl fmt::Display) -> GroupError {
    GroupError::Failed { place: path.display().to_string(), message: message.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conformance::groups::{self, GroupSite};

    struct Folder(tempfile::TempDir);

    #[async_trait]
    impl GroupSite for Folder {
        async fn join(&self) -> Arc<dyn ConsumerGroup> {
            Arc::new(SoleMember::new(self.0.path().join("claims"), self.partitions()))
        }

        fn partitions(&self) -> u32 {
            2
        }
    }

    #[tokio::test]
    async fn the_sole_member_conforms() {
        groups::all(|| Box::new(Folder(tempfile::tempdir().unwrap()))).await;
    }

    #[tokio::test]
    async fn a_claim_is_found_again() {
        let folder = tempfile::tempdir().unwrap();
        let group = || SoleMember::new(folder.path().join("claims"), 2);
        assert_eq!(**group().assigned().borrow(), BTreeSet::from([0, 1]));
        assert_eq!(group().claimed(1).await, Ok(0..0));
        group().claim(1, 0..7).await.unwrap();
        group().claim(1, 7..20).await.unwrap();
        assert_eq!((group().claimed(1).await, group().claimed(0).await), (Ok(7..20), Ok(0..0)));
        std::fs::write(folder.path().join("claims/p0001"), "7").unwrap();
        let error = group().claimed(1).await.unwrap_err().to_string();
        assert!(error.contains("p0001: is no claim"), "{error}");
    }
}
