//! Threads that take jobs in turn, as many as there is to do up to a bound, and end when there is nothing for ten seconds.

use std::io;

use tokio::runtime::{Builder, Runtime};

use crate::{Urgency, step_back};

/// Threads for jobs of one kind.
#[derive(Debug)]
pub struct ThreadPool(Option<Runtime>);

impl ThreadPool {
    /// None of them is there until the first job is.
    #[must_use]
    pub fn new(name: &'static str, urgency: Urgency, threads_max: usize) -> Self {
        // Of a runtime only its threads for what blocks are wanted.
        let mut builder = Builder::new_current_thread();
        builder.thread_name(name).max_blocking_threads(threads_max.max(1));
        builder.on_thread_start(move || step_back(urgency));
        // Without sockets and timers it needs nothing of the system that could be refused.
        Self(builder.build().ok())
    }

    /// Does `work` there when it is its turn. It is done to its end even if nobody waits for it any more.
    ///
    /// # Errors
    /// It has panicked, or the pool is being dropped.
    pub async fn run<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> io::Result<T> {
        let runtime = self.0.as_ref().ok_or_else(|| io::Error::other("there are no threads for it"))?;
        runtime.spawn_blocking(work).await.map_err(io::Error::other)
    }
}

impl Drop for ThreadPool {
    fn drop(&mut self) {
        // Not waited for: we may be on a thread that must not wait.
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::{Arc, Barrier};
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn jobs_are_done_beside_each_other_up_to_the_bound() {
        let pool = Arc::new(ThreadPool::new("jobs", Urgency::Soon, 2));
        let meet = Arc::new(Barrier::new(2));
        let both = (0..2).map(|_| {
            let (pool, meet) = (Arc::clone(&pool), Arc::clone(&meet));
            // Two that wait for each other.
            tokio::spawn(async move { pool.run(move || meet.wait().is_leader()).await.unwrap() })
        });
        let mut leaders = 0;
        for one in both.collect::<Vec<_>>() {
            leaders += usize::from(one.await.unwrap());
        }
        assert_eq!(leaders, 1);
        let (running, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let many = (0..8).map(|_| {
            let (pool, running, most) = (Arc::clone(&pool), Arc::clone(&running), Arc::clone(&most));
            tokio::spawn(async move {
                let work = move || {
                    most.fetch_max(running.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                    std::thread::sleep(Duration::from_millis(5));
                    running.fetch_sub(1, Ordering::SeqCst);
                };
                pool.run(work).await.unwrap();
            })
        });
        for one in many.collect::<Vec<_>>() {
            one.await.unwrap();
        }
        assert_eq!(most.load(Ordering::SeqCst), 2);
    }

    #[tokio::test]
    async fn a_job_that_panics_is_told_of_and_ends_no_other() {
        let pool = ThreadPool::new("jobs", Urgency::Now, 1);
        assert!(pool.run(|| panic!("on purpose")).await.is_err());
        assert_eq!(pool.run(|| 3).await.unwrap(), 3);
    }
}
