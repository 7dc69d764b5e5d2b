//! A file of the journal: a head, then records back to back.
//!
//! ```text
//! head    magic (8) | nonce (4) | crc32c of the nonce (4)
//! record  length of the body (4) | crc32c of nonce and body (4) | crc32c of nonce and these 8 bytes (4) | body
//! ```
//!
//! The nonce is random for each file, so that nothing that a client writes into a message can pass for a record. A record
//! whose checksums do not match is left out; the next one that matches is searched for, so that damage costs what it hit
//! and no more. What follows the last good record is a torn tail, which a crash leaves, and is cut.

const MAGIC: &[u8; 8] = b"CTGATE01";
/// Size of a file's head.
pub(crate) const HEAD_BYTES: usize = 16;
/// Size of what stands before a record's body.
pub(crate) const RECORD_HEAD_BYTES: usize = 12;

/// The head of a new file.
pub(crate) fn head(nonce: u32) -> [u8; HEAD_BYTES] {
    let mut head = [0; HEAD_BYTES];
    head[..8].copy_from_slice(MAGIC);
    head[8..12].copy_from_slice(&nonce.to_le_bytes());
    head[12..].copy_from_slice(&crc32c::crc32c(&nonce.to_le_bytes()).to_le_bytes());
    head
}

/// Appends a record whose checksums [`seal`] fills in.
pub(crate) fn push(bytes: &mut Vec<u8>, encode: impl FnOnce(&mut Vec<u8>)) {
    let start = bytes.len();
    bytes.extend_from_slice(&[0; RECORD_HEAD_BYTES]);
    encode(bytes);
    let length = (bytes.len() - start - RECORD_HEAD_BYTES) as u32;
    bytes[start..start + 4].copy_from_slice(&length.to_le_bytes());
}

/// Fills in the checksums of records that were pushed.
pub(crate) fn seal(mut bytes: &mut [u8], nonce: u32) {
    while let Some((head, rest)) = bytes.split_first_chunk_mut::<RECORD_HEAD_BYTES>() {
        let length = u32_at(head, 0) as usize;
        let (body, rest) = rest.split_at_mut(length);
        head[4..8].copy_from_slice(&crc(nonce, body).to_le_bytes());
        let check = crc(nonce, &head[..8]);
        head[8..].copy_from_slice(&check.to_le_bytes());
        bytes = rest;
    }
}

/// What reading a file found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Scan {
    pub(crate) nonce: u32,
    /// End of the last good record.
    pub(crate) end: usize,
    /// Places where records were damaged.
    pub(crate) damaged: u64,
}

/// Gives each good record of a file. `None`: it does not begin as a journal.
pub(crate) fn scan<'a>(file: &'a [u8], mut each: impl FnMut(&'a [u8])) -> Option<Scan> {
    let nonce = file.get(..HEAD_BYTES).map(|found| u32_at(found, 8))?;
    if file[..HEAD_BYTES] != head(nonce) {
        return None;
    }
    let mut scan = Scan { nonce, end: HEAD_BYTES, damaged: 0 };
    let mut at = HEAD_BYTES;
    // Whether the place is one where a record may begin, and not one where a record must.
    let mut is_searched = false;
    while at < file.len() {
        match record(&file[at..], nonce) {
            Found::Good(body) => {
                scan.damaged += u64::from(scan.end < at);
                each(body);
                at += RECORD_HEAD_BYTES + body.len();
                scan.end = at;
                is_searched = false;
            }
            Found::BadBody(length) if !is_searched => at += RECORD_HEAD_BYTES + length,
            // What looks like a head within a body says nothing about where the next record is.
            Found::BadBody(_) | Found::BadHead => {
                is_searched = true;
                at += 1;
            }
        }
    }
    Some(scan)
}

enum Found<'a> {
    Good(&'a [u8]),
    BadBody(usize),
    BadHead,
}

fn record(bytes: &[u8], nonce: u32) -> Found<'_> {
    let Some((head, rest)) = bytes.split_first_chunk::<RECORD_HEAD_BYTES>() else { return Found::BadHead };
    if u32_at(head, 8) != crc(nonce, &head[..8]) {
        return Found::BadHead;
    }
    let length = u32_at(head, 0) as usize;
    match rest.get(..length) {
        Some(body) if u32_at(head, 4) == crc(nonce, body) => Found::Good(body),
        _ => Found::BadBody(length),
    }
}

fn crc(nonce: u32, bytes: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&nonce.to_le_bytes()), bytes)
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..).and_then(|bytes| bytes.first_chunk()).map_or(0, |bytes| u32::from_le_bytes(*bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    const NONCE: u32 = 7;

    fn file(bodies: &[&[u8]]) -> Vec<u8> {
        let mut bytes = Vec::new();
        bodies.iter().for_each(|body| push(&mut bytes, |into| into.extend_from_slice(body)));
        seal(&mut bytes, NONCE);
        [&head(NONCE)[..], &bytes].concat()
    }

    fn read(file: &[u8]) -> (Vec<&[u8]>, Scan) {
        let mut bodies = Vec::new();
        let scan = scan(file, |body| bodies.push(body)).unwrap();
        (bodies, scan)
    }

    #[test]
    fn every_torn_tail_is_told() {
        let whole = file(&[b"one", b"", b"three"]);
        let first_end = HEAD_BYTES + RECORD_HEAD_BYTES + 3;
        let second_end = first_end + RECORD_HEAD_BYTES;
        for length in HEAD_BYTES..=whole.len() {
            let (bodies, scan) = read(&whole[..length]);
            let count = usize::from(length >= first_end)
                + usize::from(length >= second_end)
                + usize::from(length == whole.len());
            assert_eq!((bodies.len(), scan.damaged), (count, 0), "cut at {length}");
            assert!(scan.end <= length);
        }
        // Zeros, as a file system leaves them behind an end that was not written.
        let zeros = [&whole[..], &[0; 100]].concat();
        assert_eq!(read(&zeros).1, Scan { nonce: NONCE, end: whole.len(), damaged: 0 });
    }

    #[test]
    fn one_flipped_bit_costs_one_record() {
        let whole = file(&[b"one", b"two", b"three"]);
        for bit in HEAD_BYTES * 8..whole.len() * 8 {
            let mut broken = whole.clone();
            broken[bit / 8] ^= 1 << (bit % 8);
            let (bodies, scan) = read(&broken);
            assert_eq!(bodies.len(), 2, "bit {bit}");
            let in_last = bit / 8 >= whole.len() - RECORD_HEAD_BYTES - 5;
            assert_eq!(scan.damaged, u64::from(!in_last), "bit {bit}");
        }
    }

    #[test]
    fn a_head_within_a_damaged_record_costs_no_other() {
        // By chance, or by somebody who knows the nonce: a head that is right, of a body that is not there.
        let mut forged = Vec::new();
        push(&mut forged, |into| into.extend_from_slice(&[7; 60]));
        seal(&mut forged, NONCE);
        let mut broken = file(&[&forged[..RECORD_HEAD_BYTES], b"two", b"three"]);
        broken[HEAD_BYTES] ^= 1;
        assert_eq!(read(&broken).0, [&b"two"[..], b"three"]);
    }

    #[test]
    fn a_payload_cannot_pass_for_a_record() {
        // Somebody who knows the format, but not the nonce, writes a record into a message that is then damaged.
        let mut forged = Vec::new();
        push(&mut forged, |into| into.extend_from_slice(b"forged"));
        seal(&mut forged, NONCE + 1);
        let mut broken = file(&[&forged, b"two"]);
        broken[HEAD_BYTES] ^= 1;
        assert_eq!(read(&broken).0, [b"two"]);
        assert_eq!(scan(b"something else, longer than a head", |_| {}), None);
    }
}
