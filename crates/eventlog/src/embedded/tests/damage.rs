//! What is on disk is torn, flipped or lost.

use std::ops::Range;

use super::super::scan::{Found, Scanner};
use super::super::segment::Segment;
use super::*;

/// A log that was written and closed, with the place of each block in its only segment.
struct Written {
    dir: TempDir,
    file: PathBuf,
    blocks: Vec<Range<usize>>,
}

/// Blocks of two events each.
async fn written(blocks: usize) -> Written {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path(), &small());
    for number in 0..blocks as u64 {
        append(&*log, 0, batch([format!("{number}"), noise(20, number)])).await;
    }
    drop(log);
    let file = segment_files(dir.path()).remove(0);
    let blocks = places(&file);
    Written { dir, file, blocks }
}

/// Where the blocks of a segment file are, without the padding.
fn places(path: &Path) -> Vec<Range<usize>> {
    let (base, nonce) = Segment::parse_name(path.file_name().unwrap().to_str().unwrap()).unwrap();
    let file = File::open(path).unwrap();
    let bytes = file.metadata().unwrap().len();
    let segment = Segment::new(base, nonce, path.to_owned(), file, bytes);
    let mut scanner = Scanner::new(&segment, 0, bytes);
    let mut places = Vec::new();
    while let Some(Found::Block { position, stored, .. }) = scanner.next(0).unwrap() {
        places.push(position as usize..position as usize + HEADER_BYTES + stored.len());
    }
    places
}

fn offsets(read: &[(Offset, String)]) -> Vec<Offset> {
    read.iter().map(|&(offset, _)| offset).collect()
}

/// Reads a partition, with what is told to be gone.
async fn read_with_gaps(log: &EmbeddedLog) -> (Vec<Offset>, Vec<Range<Offset>>) {
    let range = log.range(0);
    let (mut next, mut read, mut gaps) = (range.start, Vec::new(), Vec::new());
    while next < range.end {
        let batch = log.read(0, next, 100).await.unwrap();
        read.extend(offsets(&conformance::events_from(&batch, next)));
        gaps.extend(batch.skipped);
        next = batch.next;
    }
    (read, gaps)
}

#[tokio::test]
async fn a_tail_torn_at_any_byte_is_cut() {
    let log = written(6).await;
    let whole = fs::read(&log.file).unwrap();
    let end = log.blocks[5].end;
    for cut in log.blocks[4].start..=end {
        let kept = log.blocks.iter().filter(|block| block.end <= cut).count() as u64 * 2;
        let zeros = [&whole[..cut], &vec![0; whole.len() - cut]].concat();
        let stale = [&whole[..cut], &vec![0xa5; whole.len() - cut]].concat();
        for content in [&whole[..cut], &zeros, &stale] {
            fs::write(&log.file, content).unwrap();
            let reopened = open(log.dir.path(), &small());
            assert_eq!(reopened.range(0), 0..kept, "cut at {cut}");
            assert_eq!(append(&*reopened, 0, batch(["after"])).await, kept);
            drop(reopened);
            let reopened = open(log.dir.path(), &small());
            assert_eq!(read_with_gaps(&reopened).await, ((0..=kept).collect(), vec![]), "cut at {cut}");
            assert_eq!(reopened.stats().corrupted_blocks, 0);
        }
    }
}

#[tokio::test]
async fn any_flipped_byte_in_the_middle_costs_its_block_only() {
    let log = written(6).await;
    let whole = fs::read(&log.file).unwrap();
    for at in log.blocks[2].clone() {
        let mut bytes = whole.clone();
        bytes[at] ^= 0x10;
        fs::write(&log.file, &bytes).unwrap();
        let reopened = open(log.dir.path(), &small());
        assert_eq!(reopened.range(0), 0..12);
        let gap = 4..6;
        let rest = (0..12).filter(|offset| !gap.contains(offset)).collect();
        assert_eq!(read_with_gaps(&reopened).await, (rest, vec![gap]), "byte {at}");
        assert_eq!(reopened.stats().corrupted_blocks, 1, "byte {at}");
        assert_eq!(append(&*reopened, 0, batch(["goes on"])).await, 12);
    }
}

#[tokio::test]
async fn damage_is_found_while_open_and_told_once() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path(), &LogConfig { cache_bytes_max: 0, ..small() });
    for number in 0..10 {
        append(&*log, 0, batch([noise(100, number)])).await;
    }
    let file = segment_files(dir.path()).remove(0);
    let mut bytes = fs::read(&file).unwrap();
    let places = places(&file);
    // Two blocks side by side, and the last, which nothing follows.
    for block in [4, 5, 9] {
        bytes[places[block].end - 1] ^= 1;
    }
    fs::write(&file, &bytes).unwrap();
    let expected = (vec![0, 1, 2, 3, 6, 7, 8], vec![4..6]);
    for _ in 0..3 {
        let range = log.range(0);
        let (mut next, mut read, mut gaps) = (range.start, Vec::new(), Vec::new());
        while next < 9 {
            let batch = log.read(0, next, 100).await.unwrap();
            read.extend(offsets(&conformance::events_from(&batch, next)));
            gaps.extend(batch.skipped);
            next = batch.next;
        }
        assert_eq!((read, gaps), expected);
    }
    let waiting = tokio::spawn({
        let log = log.clone();
        async move { log.read(0, 9, 100).await }
    });
    append(&*log, 0, batch(["after the damaged end"])).await;
    let read = waiting.await.unwrap().unwrap();
    assert_eq!((read.skipped, read.next), (vec![9..10], 11));
    assert_eq!(log.stats().corrupted_blocks, 2, "side by side counts once");
}

#[tokio::test]
async fn lost_segments_and_lost_ends_are_gaps() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path(), &small());
    for number in 0..40 {
        append(&*log, 0, batch([noise(10_000, number)])).await;
    }
    drop(log);
    let files = segment_files(dir.path());
    assert!(files.len() > 5);
    let base = |path: &Path| Segment::parse_name(path.file_name().unwrap().to_str().unwrap()).unwrap().0;
    // One file is gone, another lost its end, a third everything.
    fs::remove_file(&files[1]).unwrap();
    let places = places(&files[3]);
    File::options().write(true).open(&files[3]).unwrap().set_len(places[2].start as u64 + 7).unwrap();
    fs::write(&files[4], []).unwrap();

    let log = open(dir.path(), &small());
    let (read, gaps) = read_with_gaps(&log).await;
    let expected = [base(&files[1])..base(&files[2]), base(&files[3]) + 2..base(&files[5])];
    // The reader may tell one gap in two pieces, at the border of two reads.
    let gone: Vec<Offset> = gaps.into_iter().flatten().collect();
    assert_eq!(gone, expected.clone().into_iter().flatten().collect::<Vec<_>>());
    assert!(read.iter().copied().eq((0..40).filter(|offset| !gone.contains(offset))));
    assert_eq!(log.range(0), 0..40);
    // From inside a gap, a read goes on after it.
    let from = expected[1].start + 1;
    let read = log.read(0, from, 1).await.unwrap();
    assert_eq!((read.skipped, read.blocks[0].first_offset), (vec![from..expected[1].end], expected[1].end));
}

#[tokio::test]
async fn foreign_files_are_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    drop(open(dir.path(), &small()));
    for name in ["README", "1-2.log", "00000000000000000007-0000000G.log"] {
        fs::write(dir.path().join("p0000").join(name), "mine").unwrap();
    }
    let log = open(dir.path(), &small());
    assert_eq!(append(&*log, 0, batch(["x"])).await, 0);
    assert_eq!(fs::read(dir.path().join("p0000/README")).unwrap(), b"mine");
}
