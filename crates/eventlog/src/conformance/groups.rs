//! What every group of those who work on a log must do, for one member alone. What several do is the engine's own to test.

use std::collections::BTreeSet;
use std::sync::Arc;

use async_trait::async_trait;
use catchment_types::PartitionId;
use tokio::sync::watch;

use super::soon;
use crate::{Assigned, ConsumerGroup};

/// A place for one group, without members or claims at first.
#[async_trait]
pub trait GroupSite: Send + Sync {
    /// A further member. There are at least two partitions.
    async fn join(&self) -> Arc<dyn ConsumerGroup>;

    /// How many partitions there are.
    fn partitions(&self) -> u32;
}

/// Runs the whole suite, each part on a site of its own.
pub async fn all(new_site: impl Fn() -> Box<dyn GroupSite>) {
    one_member_has_all(&*new_site()).await;
    the_last_claim_counts(&*new_site()).await;
    claims_outlive_members(&*new_site()).await;
}

/// Who is alone works on everything; and again, when it was there before.
pub async fn one_member_has_all(site: &dyn GroupSite) {
    for _ in 0..2 {
        let group = site.join().await;
        has(&mut group.assigned(), &all_of(site)).await;
        assert!(group.has_joined());
        close(site, &*group).await;
    }
}

/// A claim is there once it is made, until the next of the same partition.
pub async fn the_last_claim_counts(site: &dyn GroupSite) {
    let group = site.join().await;
    has(&mut group.assigned(), &all_of(site)).await;
    assert_eq!(group.claimed(1).await, Ok(0..0), "nobody has claimed anything");
    for range in [0..7, 7..7, 7..20, 7..20, 20..4_000_000_000_000] {
        group.claim(1, range.clone()).await.expect("a claim of one's own");
        assert_eq!(group.claimed(1).await, Ok(range));
    }
    assert_eq!(group.claimed(0).await, Ok(0..0), "partitions are apart");
    close(site, &*group).await;
}

/// Who comes later finds what others have claimed.
pub async fn claims_outlive_members(site: &dyn GroupSite) {
    let first = site.join().await;
    has(&mut first.assigned(), &all_of(site)).await;
    first.claim(0, 3..5).await.expect("a claim of one's own");
    close(site, &*first).await;
    drop(first);
    let second = site.join().await;
    assert_eq!(second.claimed(0).await, Ok(3..5));
    close(site, &*second).await;
}

/// Leaves all partitions, as those who work on them do, and closes, twice.
async fn close(site: &dyn GroupSite, group: &dyn ConsumerGroup) {
    let leaving = async {
        let mut assigned = group.assigned();
        while assigned.changed().await.is_ok() {
            for partition in all_of(site).difference(&assigned.borrow_and_update().clone()) {
                group.left(*partition);
            }
        }
        std::future::pending().await
    };
    tokio::select! {
        () = soon(group.close()) => {}
        () = leaving => {}
    }
    soon(group.close()).await;
}

/// Waits until a member works on exactly these partitions.
pub async fn has(assigned: &mut watch::Receiver<Assigned>, expected: &BTreeSet<PartitionId>) {
    soon(assigned.wait_for(|assigned| **assigned == *expected)).await.expect("the group is there");
}

fn all_of(site: &dyn GroupSite) -> BTreeSet<PartitionId> {
    (0..site.partitions()).collect()
}
