//! Bytes to a tape, in memory that is used again.

use std::ops::Range;

use simd_json::{Buffers, ErrorType, INPUT_PADDING, Tape};

/// Memory beyond these sizes is given back after the event that needed it.
const KEPT_BYTES_MAX: usize = 1024 * 1024;
const KEPT_NODES_MAX: usize = 64 * 1024;
/// Numbers too large for a float that are told one by one; a document with more is refused whole.
const INFINITE_MAX: usize = 8;

/// A parser with its memory.
pub(crate) struct Parser {
    depth_max: usize,
    buffers: Buffers,
    /// The document, changed by the parser where it has escapes, and padding.
    input: Vec<u8>,
    tape: Tape<'static>,
}

impl Parser {
    pub(crate) fn new(depth_max: u32) -> Self {
        let depth_max = depth_max as usize;
        let buffers = Buffers::with_max_depth(KEPT_BYTES_MAX / 256, depth_max);
        Self { depth_max, buffers, input: Vec::new(), tape: Tape(Vec::new()) }
    }

    /// Parses and calls `f` with the tape and the numbers that are too large for a float: these are `null` in the tape.
    pub(crate) fn with_tape<T>(
        &mut self,
        json: &[u8],
        f: impl FnOnce(&Tape<'_>, &[Range<usize>]) -> T,
    ) -> Result<T, simd_json::Error> {
        let mut tape = std::mem::replace(&mut self.tape, Tape(Vec::new())).reset();
        fill(&mut self.input, json, &[]);
        let result = match parse(&mut self.input, json.len(), &mut self.buffers, &mut tape) {
            Ok(()) => Ok(f(&tape, &[])),
            Err(error) => {
                tape = tape.reset();
                self.without_infinite(json, error).and_then(|infinite| {
                    fill(&mut self.input, json, &infinite);
                    parse(&mut self.input, json.len(), &mut self.buffers, &mut tape)?;
                    Ok(f(&tape, &infinite))
                })
            }
        };
        self.tape = tape.reset();
        if json.len() > KEPT_BYTES_MAX {
            self.input = Vec::new();
            self.buffers = Buffers::with_max_depth(KEPT_BYTES_MAX / 256, self.depth_max);
        }
        if self.tape.0.capacity() > KEPT_NODES_MAX {
            self.tape.0 = Vec::new();
        }
        result
    }

    /// Finds the numbers without which the document parses, if these are all that is wrong with it.
    #[cold]
    fn without_infinite(
        &mut self,
        json: &[u8],
        mut error: simd_json::Error,
    ) -> Result<Vec<Range<usize>>, simd_json::Error> {
        let mut infinite = Vec::new();
        loop {
            let start = error.index();
            let length = match error.error() {
                ErrorType::InvalidNumber if infinite.len() < INFINITE_MAX => infinite_number(json, start),
                _ => None,
            };
            let Some(length) = length else { return Err(error) };
            infinite.push(start..start + length);
            fill(&mut self.input, json, &infinite);
            let mut tape = Tape(Vec::new());
            match parse(&mut self.input, json.len(), &mut self.buffers, &mut tape) {
                Ok(()) => return Ok(infinite),
                Err(next) => error = next,
            }
        }
    }
}

fn parse<'de>(
    input: &'de mut [u8],
    length: usize,
    buffers: &mut Buffers,
    tape: &mut Tape<'de>,
) -> Result<(), simd_json::Error> {
    simd_json::fill_tape_padded(input, length, buffers, tape)
}

/// Copies the document with its padding, `null` in place of some numbers.
fn fill(input: &mut Vec<u8>, json: &[u8], nulled: &[Range<usize>]) {
    input.clear();
    input.extend_from_slice(json);
    for range in nulled {
        input[range.clone()].fill(b' ');
        input[range.start..][..4].copy_from_slice(b"null");
    }
    input.resize(json.len() + INPUT_PADDING, 0);
}

/// The length of the number at `start`, if it is one by the grammar and only too large. Such a number has at least the
/// four bytes of `null`.
fn infinite_number(json: &[u8], start: usize) -> Option<usize> {
    let rest = json.get(start..)?;
    let length =
        rest.iter().take_while(|b| matches!(b, b'0'..=b'9' | b'+' | b'-' | b'.' | b'e' | b'E')).count();
    let text = std::str::from_utf8(&rest[..length]).ok()?;
    // Rust's grammar of floats is wider than JSON's where it matters here: a leading `+` or `.`, zeros, a trailing `.`.
    let digits = text.strip_prefix('-').unwrap_or(text);
    let whole = digits.split(['.', 'e', 'E']).next()?;
    let json_like = !whole.is_empty()
        && whole.bytes().all(|b| b.is_ascii_digit())
        && (whole.len() == 1 || !whole.starts_with('0'))
        && !digits.contains(".e")
        && !digits.contains(".E")
        && !digits.ends_with('.');
    (json_like && length >= 4 && text.parse::<f64>().is_ok_and(f64::is_infinite)).then_some(length)
}
