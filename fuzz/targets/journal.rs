//! Files of the session journal: damaged ones, and records of any content whose checksums are right.
#![no_main]

use catchment_gateway::fuzzing::{journal_file, read_journal};
use libfuzzer_sys::fuzz_target;

const HEAD_BYTES: usize = 16;
const RECORD_HEAD_BYTES: usize = 12;
fuzz_target!(|bytes: &[u8]| {
    let Some((&kind, rest)) = bytes.split_first() else { return };
    if kind == 0xff {
        // As it is: mostly no journal at all.
        let _ = read_journal(rest);
        return;
    }
    // Each record has its length, of two bytes, in front.
    let (mut records, mut left) = (Vec::new(), rest);
    while let Some((length, after)) = left.split_first_chunk::<2>() {
        let (record, after) = after.split_at(after.len().min(usize::from(u16::from_le_bytes(*length))));
        records.push(record);
        left = after;
    }
    // Random for each file, as far as who writes records can tell: a fixed one would be found out, and records forged.
    let nonce =
        bytes.iter().fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193));
    let whole = journal_file(&records, nonce);
    let understood = read_journal(&whole).expect("it begins as a journal");
    assert!(understood <= records.len());
    if kind > 0 && whole.len() > HEAD_BYTES {
        // A bit that flipped costs at most the record that it is in.
        let mut flipped = whole.clone();
        let at = HEAD_BYTES + usize::from(kind) * 37 % (whole.len() - HEAD_BYTES);
        flipped[at] ^= 1 << (kind % 8);
        let left = read_journal(&flipped).expect("its head is whole");
        assert!(left + 1 >= understood, "one flipped bit cost {} records", understood - left);
        // A torn tail costs what it tore.
        let cut = usize::from(kind) * 41 % whole.len();
        if let Some(left) = read_journal(&whole[..cut.max(HEAD_BYTES)]) {
            let end_of = |count: usize| {
                HEAD_BYTES
                    + records[..count].iter().map(|record| RECORD_HEAD_BYTES + record.len()).sum::<usize>()
            };
            let whole_records = (0..=records.len()).rev().find(|&count| end_of(count) <= cut).unwrap_or(0);
            assert!(left <= whole_records);
        }
    }
});
