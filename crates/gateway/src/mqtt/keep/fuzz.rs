//! A journal's file read for its own sake, for fuzzing: nothing in it may do harm, and writing it anew loses nothing.

use std::collections::BTreeSet;

use super::image::Image;
use super::segment;

/// A file of these records.
pub(crate) fn file(records: &[&[u8]], nonce: u32) -> Vec<u8> {
    let mut bytes = Vec::new();
    records.iter().for_each(|record| segment::push(&mut bytes, |into| into.extend_from_slice(record)));
    segment::seal(&mut bytes, nonce);
    [&segment::head(nonce)[..], &bytes].concat()
}

/// What a file adds up to, and the number of its records that are understood. None: it is no journal.
pub(crate) fn read(file: &[u8]) -> Option<(Image, usize)> {
    let (mut image, mut understood) = (Image::default(), 0);
    let scan = segment::scan(file, |record| understood += usize::from(image.take(record)))?;
    assert!(scan.end <= file.len(), "the end is within the file");
    let records = told(&image);
    let mut anew = Image::default();
    for record in &records {
        assert!(anew.take(record), "what is written anew is understood: {record:?}");
    }
    // Which sessions a message waits for may be told in another order.
    let told_again: BTreeSet<Vec<u8>> = told(&anew).into_iter().collect();
    assert_eq!(told_again.len(), records.iter().collect::<BTreeSet<_>>().len());
    assert_eq!(anew.sessions.len(), image.sessions.len());
    assert_eq!(anew.retained, image.retained);
    assert_eq!((anew.at_ms, anew.last_session), (image.at_ms, image.last_session));
    for (id, kept) in &image.sessions {
        let again = &anew.sessions[id];
        assert_eq!(again.filters, kept.filters);
        assert_eq!(again.next_seq, kept.next_seq);
        assert!(again.queue.keys().eq(kept.queue.keys()));
        assert!(again.received.keys().eq(kept.received.keys()));
        assert_eq!(again.link, kept.link);
        assert_eq!(again.will, kept.will);
    }
    Some((image, understood))
}

fn told(image: &Image) -> Vec<Vec<u8>> {
    let mut records = Vec::new();
    image.records(|record| {
        let mut bytes = Vec::new();
        record.encode(&mut bytes);
        records.push(bytes);
    });
    records
}
