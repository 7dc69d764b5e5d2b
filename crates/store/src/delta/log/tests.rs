use std::collections::{BTreeMap, BTreeSet};

use arrow::datatypes::Field;

use std::fs;
use std::path::Path;

use super::*;
use crate::storage::StorageError;
use crate::storage::local::LocalFolder;
use crate::tables::TableId;

const TABLE: &str = "t";

fn definition() -> TableDefinition {
    TableDefinition {
        name: "raw_events".to_owned(),
        columns: TableId::RawEvents.schema().as_ref().clone(),
        partition_column: ("date".to_owned(), DataType::Date32),
        configuration: vec![("delta.checkpointInterval".to_owned(), "50".to_owned())],
    }
}

fn open(folder: &Path) -> DeltaLog {
    try_open(folder, &definition()).unwrap()
}

fn try_open(folder: &Path, definition: &TableDefinition) -> Result<DeltaLog, DeltaError> {
    DeltaLog::open(&storage(folder), TABLE, definition)
}

fn storage(folder: &Path) -> Arc<dyn Storage> {
    Arc::new(LocalFolder::open(folder).unwrap())
}

fn log_folder(folder: &Path) -> PathBuf {
    folder.join(TABLE).join(LOG_FOLDER)
}

fn add(path: &str) -> Add {
    Add {
        path: path.to_owned(),
        partition_values: BTreeMap::from([("date".to_owned(), Some("2026-11-23".to_owned()))]),
        size: 7,
        modification_time: 1_700_000_000_000,
        data_change: true,
        stats: Some(r#"{"numRecords":3}"#.to_owned()),
        tags: Some(BTreeMap::from([("a".to_owned(), Some("b".to_owned()))])),
    }
}

fn txn(app_id: &str, version: i64) -> Action {
    Action::Txn(Transaction { app_id: app_id.to_owned(), version, last_updated: Some(5) })
}

fn paths(log: &DeltaLog) -> BTreeSet<String> {
    log.files().map(|add| add.path.clone()).collect()
}

fn names(folder: &Path) -> BTreeSet<String> {
    let entries = fs::read_dir(log_folder(folder)).unwrap();
    entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

#[test]
fn commits_are_there_after_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let mut log = open(folder.path());
    assert_eq!(log.version(), 0);
    let first = log.commit("WRITE", vec![Action::Add(add("a")), txn("x/0", 10), txn("x/1", 4)]).unwrap();
    assert_eq!(first, 1);
    log.commit("WRITE", vec![Action::Add(add("b")), txn("x/0", 11)]).unwrap();
    log.commit("OPTIMIZE", vec![Action::Remove(add("a").remove(9, false)), Action::Add(add("c"))]).unwrap();

    for log in [log, open(folder.path())] {
        assert_eq!(log.version(), 3);
        assert_eq!(paths(&log), BTreeSet::from(["b".to_owned(), "c".to_owned()]));
        assert_eq!(log.file("b"), Some(&add("b")));
        assert_eq!(log.removed().collect::<Vec<_>>(), [&add("a").remove(9, false)]);
        assert_eq!(
            (log.transaction("x/0"), log.transaction("x/1"), log.transaction("y")),
            (Some(11), Some(4), None)
        );
    }
}

#[test]
fn a_checkpoint_replaces_older_commits() {
    let folder = tempfile::tempdir().unwrap();
    let mut log = open(folder.path());
    let mut expected = BTreeSet::new();
    for round in 0..3 {
        for number in 0..10 {
            let path = format!("{round}-{number}");
            log.commit("WRITE", vec![Action::Add(add(&path)), txn("x", round * 10 + number)]).unwrap();
            expected.insert(path);
        }
        log.commit("DELETE", vec![Action::Remove(add(&format!("{round}-0")).remove(8, true))]).unwrap();
        expected.remove(&format!("{round}-0"));
        assert_eq!(log.commits_since_checkpoint(), if round == 0 { 12 } else { 11 });
        log.checkpoint().unwrap();
        assert_eq!(log.commits_since_checkpoint(), 0);
    }
    let names = names(folder.path());
    // The checkpoint before the last is still there, for those who are reading it.
    assert_eq!(
        names.iter().filter(|name| name.ends_with(".checkpoint.parquet")).collect::<Vec<_>>(),
        ["00000000000000000022.checkpoint.parquet", "00000000000000000033.checkpoint.parquet"]
    );
    assert_eq!(names.iter().filter(|name| name.ends_with(".json")).count(), 12, "{names:?}");

    log.commit("WRITE", vec![txn("x", 99)]).unwrap();
    let mut again = open(folder.path());
    assert_eq!(again.version(), 34);
    assert_eq!(paths(&again), expected);
    assert_eq!(again.file("1-1"), Some(&Add { data_change: false, ..add("1-1") }));
    assert_eq!(again.removed().count(), 3);
    assert_eq!(again.transaction("x"), Some(99));
    assert_eq!(again.metadata, log.metadata);

    // Readers that only know the hint find the same.
    let hint = fs::read_to_string(log_folder(folder.path()).join("_last_checkpoint")).unwrap();
    let hint: serde_json::Value = serde_json::from_str(&hint).unwrap();
    assert_eq!(hint["version"], 33);

    again.forget_removed("0-0");
    again.checkpoint().unwrap();
    assert_eq!(open(folder.path()).removed().count(), 2);
}

#[test]
fn another_programs_commit_is_not_overwritten() {
    let folder = tempfile::tempdir().unwrap();
    let mut log = open(folder.path());
    let mut other = open(folder.path());
    other.commit("WRITE", vec![Action::Add(add("theirs"))]).unwrap();
    let error = log.commit("WRITE", vec![Action::Add(add("ours"))]).unwrap_err();
    assert!(matches!(error, DeltaError::Conflict { version: 1, .. }), "{error}");
    assert!(!log.is_unsettled());
    assert_eq!(paths(&open(folder.path())), BTreeSet::from(["theirs".to_owned()]));
}

/// A folder whose next commit fails, after it was made or before.
#[derive(Debug)]
struct Unsure {
    folder: LocalFolder,
    fails: parking_lot::Mutex<Option<bool>>,
}

impl Storage for Unsure {
    fn create(&self, path: &str, bytes: Bytes) -> Result<Creation, StorageError> {
        let Some(is_made) = self.fails.lock().take() else { return self.folder.create(path, bytes) };
        if is_made {
            assert!(matches!(self.folder.create(path, bytes)?, Creation::Done));
        }
        let source = std::io::Error::other("no answer");
        Ok(Creation::Unknown(StorageError { what: "create", path: self.shown(path), source }))
    }

    fn shown(&self, path: &str) -> PathBuf {
        self.folder.shown(path)
    }

    fn is_shared(&self) -> bool {
        true
    }

    fn make_folder(&self, folder: &str) -> Result<(), StorageError> {
        self.folder.make_folder(folder)
    }

    fn replace(&self, path: &str, bytes: Bytes) -> Result<(), StorageError> {
        self.folder.replace(path, bytes)
    }

    fn read(&self, path: &str) -> Result<Option<Bytes>, StorageError> {
        self.folder.read(path)
    }

    fn list(&self, folder: &str) -> Result<Vec<String>, StorageError> {
        self.folder.list(folder)
    }

    fn delete(&self, path: &str) -> Result<(), StorageError> {
        self.folder.delete(path)
    }

    fn write(&self, path: &str) -> Result<Box<dyn crate::storage::FileSink>, StorageError> {
        self.folder.write(path)
    }

    fn rewrite(&self, path: &str) -> Result<Box<dyn crate::storage::FileSink>, StorageError> {
        self.folder.rewrite(path)
    }

    fn read_rows(
        &self,
        path: &str,
        wanted: crate::storage::Wanted<'_>,
    ) -> Result<Option<crate::storage::ParquetRows>, parquet::errors::ParquetError> {
        self.folder.read_rows(path, wanted)
    }

    fn object_store(&self) -> Arc<dyn object_store::ObjectStore> {
        self.folder.object_store()
    }
}

#[test]
fn a_commit_with_open_outcome_counts_in_the_end() {
    let folder = tempfile::tempdir().unwrap();
    for is_made in [false, true] {
        let unsure = Arc::new(Unsure {
            folder: LocalFolder::open(folder.path()).unwrap(),
            fails: parking_lot::Mutex::default(),
        });
        let storage = Arc::clone(&unsure) as Arc<dyn Storage>;
        let mut log = DeltaLog::open(&storage, TABLE, &definition()).unwrap();
        let next = log.version() + 1;
        let path = format!("made-{is_made}");
        *unsure.fails.lock() = Some(is_made);
        log.commit("WRITE", vec![Action::Add(add(&path))]).unwrap_err();
        assert!(log.is_unsettled() && log.file(&path).is_none());
        // Not given up with one more failure.
        *unsure.fails.lock() = Some(false);
        log.settle().unwrap_err();
        assert!(log.is_unsettled());
        assert_eq!(log.commit("WRITE", vec![txn("x", 1)]).unwrap(), next + 1);
        assert!(!log.is_unsettled());
        assert!(log.file(&path).is_some() && open(folder.path()).file(&path).is_some());
    }
}

#[test]
fn whoever_takes_a_table_over_ends_the_one_before() {
    let folder = tempfile::tempdir().unwrap();
    let mut first = DeltaLog::take_over(&storage(folder.path()), TABLE, &definition()).unwrap();
    first.commit("WRITE", vec![Action::Add(add("first"))]).unwrap();
    let mut second = DeltaLog::take_over(&storage(folder.path()), TABLE, &definition()).unwrap();
    for _ in 0..2 {
        let error = first.commit("WRITE", vec![Action::Add(add("late"))]).unwrap_err();
        assert!(matches!(error, DeltaError::Conflict { .. }), "{error}");
        assert!(first.is_lost() && !first.is_unsettled());
        assert!(first.checkpoint().is_err());
    }
    second.commit("WRITE", vec![Action::Add(add("second"))]).unwrap();
    assert_eq!(paths(&open(folder.path())), BTreeSet::from(["first".to_owned(), "second".to_owned()]));
}

#[test]
fn what_a_crash_leaves_does_not_count() {
    let folder = tempfile::tempdir().unwrap();
    open(folder.path()).commit("WRITE", vec![txn("x", 1)]).unwrap();
    let log_folder = log_folder(folder.path());
    fs::write(log_folder.join(".00000000000000000002.json.tmp"), r#"{"add":{"pa"#).unwrap();
    fs::write(log_folder.join(".00000000000000000001.checkpoint.parquet.tmp"), "PAR1").unwrap();
    fs::write(log_folder.join("_last_checkpoint"), "{").unwrap();
    let mut log = open(folder.path());
    assert_eq!(log.version(), 1);
    assert!(!names(folder.path()).iter().any(|name| name.ends_with(".tmp")));
    assert_eq!(log.commit("WRITE", vec![txn("x", 2)]).unwrap(), 2);
}

#[test]
fn damage_is_told_and_not_guessed_around() {
    let folder = tempfile::tempdir().unwrap();
    let mut log = open(folder.path());
    log.commit("WRITE", vec![txn("x", 1)]).unwrap();
    log.commit("WRITE", vec![txn("x", 2)]).unwrap();
    let log_folder = log_folder(folder.path());
    let path = log_folder.join("00000000000000000001.json");
    let text = fs::read_to_string(&path).unwrap();

    fs::write(&path, text.replace("\"version\":1", "\"version\":")).unwrap();
    let error = try_open(folder.path(), &definition()).unwrap_err().to_string();
    assert!(error.contains("00000000000000000001.json is damaged: line 2"), "{error}");

    fs::remove_file(&path).unwrap();
    let error = try_open(folder.path(), &definition()).unwrap_err().to_string();
    assert!(error.contains("00000000000000000001.json is damaged: the commit is missing"), "{error}");
}

#[test]
fn tables_of_others_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let mut log = open(folder.path());
    let mut other = definition();
    other.columns = Schema::new(vec![Field::new("x", DataType::Int64, true)]);
    let error = try_open(folder.path(), &other).unwrap_err();
    assert!(matches!(error, DeltaError::Schema { .. }), "{error}");

    let protocol = Protocol { min_reader_version: 3, min_writer_version: 7 };
    assert!(log.commit("UPGRADE", vec![Action::Protocol(protocol)]).is_err());
    let error = try_open(folder.path(), &definition()).unwrap_err();
    assert!(matches!(error, DeltaError::Protocol { reader: 3, writer: 7, .. }), "{error}");
}

#[test]
fn every_table_has_a_delta_schema() {
    for table in TableId::ALL {
        let schema = schema_string(&TableDefinition {
            columns: table.schema().as_ref().clone(),
            partition_column: (table.period().column().to_owned(), table.period().column_type()),
            ..definition()
        });
        let schema: serde_json::Value = serde_json::from_str(&schema).unwrap();
        assert_eq!(schema["fields"].as_array().unwrap().len(), table.schema().fields().len() + 1);
    }
}

#[test]
fn table_ids_are_uuids() {
    let id = random_uuid();
    let groups: Vec<_> = id.split('-').map(str::len).collect();
    assert_eq!(groups, [8, 4, 4, 4, 12]);
    assert_eq!(&id[14..15], "4");
    assert!("89ab".contains(&id[19..20]));
    assert_ne!(id, random_uuid());
}

#[test]
fn a_reader_follows_what_another_commits() {
    let folder = tempfile::tempdir().unwrap();
    let mut reader = DeltaLog::follow(&storage(folder.path()), TABLE).unwrap();
    assert_eq!(paths(&reader), BTreeSet::new());
    let mut writer = open(folder.path());
    // A commit that is under way is nobody's to delete.
    let temporary = log_folder(folder.path()).join(".1.tmp");
    fs::write(&temporary, "half").unwrap();
    for number in 0..3 {
        writer.commit("WRITE", vec![Action::Add(add(&format!("{number}.parquet")))]).unwrap();
    }
    reader.refresh().unwrap();
    assert_eq!((paths(&reader), reader.version()), (paths(&writer), writer.version()));
    assert!(temporary.exists());
    // It slept while checkpoints replaced what it has not seen.
    for number in 3..9 {
        let removed = add("0.parquet").remove(7, true);
        let added = Action::Add(add(&format!("{number}.parquet")));
        writer.commit("WRITE", vec![added, Action::Remove(removed)]).unwrap();
        writer.checkpoint().unwrap();
    }
    assert!(!log_folder(folder.path()).join(format!("{:020}.json", reader.version() + 1)).exists());
    reader.refresh().unwrap();
    assert_eq!((paths(&reader), reader.version()), (paths(&writer), writer.version()));
    assert!(!paths(&reader).contains("0.parquet"));
    // It never writes, so nothing of it is in the way.
    writer.commit("WRITE", vec![Action::Add(add("last.parquet"))]).unwrap();
    assert!(!writer.is_lost());
}
