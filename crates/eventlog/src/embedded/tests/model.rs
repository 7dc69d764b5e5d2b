//! Random work against a plain list: what was acknowledged is there, in order, until it is released and dropped.

use proptest::prelude::*;

use super::*;

#[derive(Debug, Clone)]
enum Step {
    /// Submits batches without waiting between them, then waits for all.
    Append(Vec<Vec<usize>>),
    /// Reads from a share of the range on.
    Read { from_share: f64, bytes_max: usize },
    /// Releases a share of the range.
    Release(f64),
    /// Closes and opens.
    Reopen,
    /// Opens a copy of the files as they are while the log is in use: what a killed process leaves.
    Kill,
}

fn step() -> impl Strategy<Value = Step> {
    let batch = prop::collection::vec(prop_oneof![4 => 0..200_usize, 1 => 5_000..15_000_usize], 0..4);
    prop_oneof![
        6 => prop::collection::vec(batch, 1..6).prop_map(Step::Append),
        3 => (0.0..1.0, 1..50_000_usize)
            .prop_map(|(from_share, bytes_max)| Step::Read { from_share, bytes_max }),
        2 => (0.0..1.0).prop_map(Step::Release),
        1 => Just(Step::Reopen),
        1 => Just(Step::Kill),
    ]
}

fn config() -> impl Strategy<Value = LogConfig> {
    let sync = prop_oneof![Just(SyncPolicy::Fsync), Just(SyncPolicy::IntervalMs(1)), Just(SyncPolicy::Never)];
    let compression = prop_oneof![Just(Compression::Lz4), Just(Compression::None)];
    let cache = prop_oneof![Just(0), Just(10_000), Just(1 << 20)];
    let retention = (prop_oneof![Just(0), Just(24)], 2..6_u64);
    (sync, compression, cache, retention).prop_map(
        |(sync, compression, cache_bytes_max, (hours, segments))| {
            let retention_bytes = segments * small().segment_bytes;
            LogConfig {
                sync,
                compression,
                cache_bytes_max,
                retention_hours: hours,
                retention_bytes,
                ..small()
            }
        },
    )
}

/// The log under test, and what it should have.
struct Model {
    dir: TempDir,
    config: LogConfig,
    log: Arc<EmbeddedLog>,
    expected: Vec<String>,
    released: Offset,
}

impl Model {
    async fn apply(&mut self, step: Step) {
        match step {
            Step::Append(batches) => {
                let mut pending = Vec::new();
                for sizes in batches {
                    let seed = self.expected.len() as u64;
                    let texts: Vec<_> = sizes.iter().map(|&size| noise(size, seed)).collect();
                    pending.push((self.log.submit(0, batch(&texts)).await.unwrap(), self.expected.len()));
                    self.expected.extend(texts);
                }
                for (pending, first) in pending {
                    assert_eq!(pending.await.unwrap(), first as Offset);
                }
            }
            Step::Read { from_share, bytes_max } => {
                let range = self.log.range(0);
                let from = range.start + ((range.end - range.start) as f64 * from_share) as Offset;
                if from < range.end {
                    let read = self.log.read(0, from, bytes_max).await.unwrap();
                    let events = conformance::events_from(&read, from);
                    let texts = events.iter().map(|(_, text)| text);
                    assert!(texts.eq(&self.expected[from as usize..read.next as usize]));
                    assert!(!read.blocks.is_empty() && read.skipped.is_empty());
                }
            }
            Step::Release(share) => {
                let range = self.log.range(0);
                let before = range.start + ((range.end - range.start) as f64 * share) as Offset;
                self.released = self.released.max(before);
                self.log.release(0, before);
            }
            Step::Reopen => {
                self.log.close().await;
                self.reopen(None);
            }
            Step::Kill => {
                let copy = tempfile::tempdir().unwrap();
                copy_folder(self.dir.path(), copy.path());
                self.reopen(Some(copy));
            }
        }
        self.check().await;
    }

    /// Opens the same folder or another in its place. The first lock must be gone by then.
    fn reopen(&mut self, dir: Option<TempDir>) {
        let parked = tempfile::tempdir().unwrap();
        self.log = open(parked.path(), &self.config);
        if let Some(dir) = dir {
            self.dir = dir;
        }
        self.log = open(self.dir.path(), &self.config);
    }

    async fn check(&self) {
        let range = self.log.range(0);
        assert!(range.start <= self.released, "{range:?} keeps what is not released: {}", self.released);
        assert_eq!(range.end, self.expected.len() as Offset);
        let read = read_all(&*self.log, 0).await;
        assert!(read.iter().map(|&(offset, _)| offset).eq(range.clone()));
        assert!(read.iter().map(|(_, text)| text).eq(&self.expected[range.start as usize..]));
        assert_eq!(self.log.stats().corrupted_blocks, 0);
    }
}

fn copy_folder(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_folder(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn behaves_like_a_list(config in config(), steps in prop::collection::vec(step(), 1..40)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let dir = tempfile::tempdir().unwrap();
            let log = open(dir.path(), &config);
            let mut model = Model { dir, config, log, expected: Vec::new(), released: 0 };
            for step in steps {
                model.apply(step).await;
            }
        });
    }
}
