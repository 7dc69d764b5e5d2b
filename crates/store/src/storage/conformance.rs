//! What every place must do. The functions panic, with what was expected, when it does not.

use std::collections::BTreeSet;
use std::sync::Arc;

use arrow::array::{ArrayRef, Int64Array, RecordBatch, StringViewArray};
use bytes::Bytes;
use parquet::arrow::ArrowWriter;

use super::{Creation, Storage, Wanted};

/// Runs the whole suite in a place that is empty at first.
pub(crate) fn all(storage: &Arc<dyn Storage>) {
    small_files_come_and_go(&**storage);
    a_name_is_given_once(&**storage);
    one_of_many_makes_a_file(storage);
    lists_are_of_a_folder(&**storage);
    files_appear_when_they_are_finished(&**storage);
    large_files_are_whole(&**storage);
    parquet_comes_back(&**storage);
}

fn small_files_come_and_go(storage: &dyn Storage) {
    storage.make_folder("small").unwrap();
    assert_eq!(storage.read("small/a").unwrap(), None);
    storage.replace("small/a", Bytes::from_static(b"one")).unwrap();
    storage.replace("small/a", Bytes::from_static(b"two")).unwrap();
    assert_eq!(storage.read("small/a").unwrap(), Some(Bytes::from_static(b"two")));
    storage.replace("small/empty", Bytes::new()).unwrap();
    let all = storage.read_all(&["small/none", "small/a", "small/empty"].map(str::to_owned)).unwrap();
    assert_eq!(all, [None, Some(Bytes::from_static(b"two")), Some(Bytes::new())]);
    assert_eq!(storage.read("small/empty").unwrap(), Some(Bytes::new()));
    for _ in 0..2 {
        storage.delete("small/a").unwrap();
        assert_eq!(storage.read("small/a").unwrap(), None, "deleted");
    }
    assert!(storage.shown("small/a").display().to_string().ends_with("/small/a"));
}

fn a_name_is_given_once(storage: &dyn Storage) {
    storage.make_folder("once").unwrap();
    let create = |bytes: &'static [u8]| storage.create("once/a", Bytes::from_static(bytes)).unwrap();
    assert!(matches!(create(b"first"), Creation::Done));
    assert!(matches!(create(b"second"), Creation::Exists));
    assert!(matches!(create(b"first"), Creation::Exists));
    assert_eq!(storage.read("once/a").unwrap(), Some(Bytes::from_static(b"first")));
    assert_eq!(storage.list("once").unwrap(), ["a"], "nothing else is left");
    storage.delete("once/a").unwrap();
    storage.make_folder("once").unwrap();
    assert!(matches!(create(b"third"), Creation::Done));
}

fn one_of_many_makes_a_file(storage: &Arc<dyn Storage>) {
    storage.make_folder("race").unwrap();
    for round in 0..5 {
        let create = |number: usize| {
            let storage = Arc::clone(storage);
            move || {
                // Drafts of a local folder are told apart by the name that they are to have: one process owns it.
                let bytes = Bytes::from(format!("{number}"));
                matches!(storage.create(&format!("race/{round}"), bytes).unwrap(), Creation::Done)
            }
        };
        let threads = if storage.is_shared() { 8 } else { 1 };
        let racers: Vec<_> = (0..threads).map(|number| std::thread::spawn(create(number))).collect();
        let won: Vec<_> = racers.into_iter().map(|racer| racer.join().unwrap()).collect();
        assert_eq!(won.iter().filter(|won| **won).count(), 1, "round {round}: {won:?}");
        let winner = won.iter().position(|won| *won).unwrap().to_string();
        assert_eq!(storage.read(&format!("race/{round}")).unwrap(), Some(winner.into()));
    }
}

fn lists_are_of_a_folder(storage: &dyn Storage) {
    storage.make_folder("list/sub").unwrap();
    storage.make_folder("list-not").unwrap();
    for path in ["list/a", "list/sub/b=1.json", "list-not/c"] {
        storage.replace(path, Bytes::from_static(b"x")).unwrap();
    }
    let listed: BTreeSet<_> = storage.list("list").unwrap().into_iter().collect();
    assert_eq!(listed, BTreeSet::from(["a".to_owned(), "sub/b=1.json".to_owned()]));
    for number in 0..30 {
        storage.replace(&format!("list/sub/{number:020}.json"), Bytes::from_static(b"x")).unwrap();
    }
    assert_eq!(storage.list("list/sub").unwrap().len(), 31);
}

fn files_appear_when_they_are_finished(storage: &dyn Storage) {
    storage.make_folder("files").unwrap();
    let mut file = storage.write("files/day=1/a").unwrap();
    file.write_all(b"some").unwrap();
    drop(file);
    assert_eq!(storage.read("files/day=1/a").unwrap(), None, "it was not finished");
    let mut file = storage.write("files/day=1/b").unwrap();
    file.write_all(b"all").unwrap();
    assert_eq!(file.finish().unwrap(), 3);
    assert_eq!(storage.read("files/day=1/b").unwrap(), Some(Bytes::from_static(b"all")));

    for text in [b"old", b"new"] {
        let mut file = storage.rewrite("files/over.parquet").unwrap();
        file.write_all(text).unwrap();
        drop(file);
        let mut file = storage.rewrite("files/over.parquet").unwrap();
        file.write_all(text).unwrap();
        file.finish().unwrap();
        assert_eq!(storage.read("files/over.parquet").unwrap(), Some(Bytes::from_static(text)));
    }
    let mut left = storage.list("files").unwrap();
    left.sort();
    assert_eq!(left, ["day=1/b", "over.parquet"]);
}

fn large_files_are_whole(storage: &dyn Storage) {
    storage.make_folder("large").unwrap();
    let block: Vec<u8> = (0..1_000_003_u32).map(|number| (number % 251) as u8).collect();
    for blocks in [5, 11] {
        let path = format!("large/d=1/{blocks}");
        let mut file = storage.write(&path).unwrap();
        for _ in 0..blocks {
            file.write_all(&block).unwrap();
        }
        assert_eq!(file.finish().unwrap(), (blocks * block.len()) as u64);
        let read = storage.read(&path).unwrap().unwrap();
        assert!(read == block.repeat(blocks), "{blocks} blocks");
    }
    let mut file = storage.write("large/d=1/dropped").unwrap();
    for _ in 0..11 {
        file.write_all(&block).unwrap();
    }
    drop(file);
    assert_eq!(storage.read("large/d=1/dropped").unwrap(), None);
}

fn parquet_comes_back(storage: &dyn Storage) {
    storage.make_folder("parquet").unwrap();
    let rows = RecordBatch::try_from_iter([
        ("n", Arc::new(Int64Array::from_iter_values(0..5000)) as ArrayRef),
        ("text", Arc::new((0..5000).map(|n| Some(format!("text {n}"))).collect::<StringViewArray>())),
    ])
    .unwrap();
    let mut writer =
        ArrowWriter::try_new(storage.write("parquet/d=1/a").unwrap(), rows.schema(), None).unwrap();
    writer.write(&rows).unwrap();
    writer.into_inner().unwrap().finish().unwrap();

    let wanted = |columns| Wanted { schema: rows.schema(), columns, batch_rows: 1000 };
    assert!(storage.read_rows("parquet/d=1/none", wanted(&[])).unwrap().is_none());
    for (columns, count) in [(&[][..], 2), (&["text"][..], 1)] {
        let read = storage.read_rows("parquet/d=1/a", wanted(columns)).unwrap().unwrap();
        assert_eq!(read.metadata.file_metadata().num_rows(), 5000);
        let batches: Vec<_> = read.rows.map(Result::unwrap).collect();
        assert!(batches.len() >= 5 && batches.iter().all(|rows| rows.num_columns() == count));
        let read = arrow::compute::concat_batches(&batches[0].schema(), &batches).unwrap();
        assert_eq!(&read["text"], &rows["text"]);
    }
    storage.replace("parquet/broken", Bytes::from_static(b"no Parquet")).unwrap();
    assert!(storage.read_rows("parquet/broken", wanted(&[])).is_err());
}

#[test]
fn a_local_folder_conforms() {
    let folder = tempfile::tempdir().unwrap();
    let storage: Arc<dyn Storage> =
        Arc::new(super::local::LocalFolder::open(&folder.path().join("new")).unwrap());
    all(&storage);
}
