//! Bodies cut into lines, whatever pieces they come in.

/// Bytes that a line may have above the largest event: white space around it.
const SLACK_BYTES: usize = 4 << 10;

/// A line of a body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Line<'a> {
    /// Its bytes, without the end of the line.
    Whole(&'a [u8]),
    /// So many bytes, too many to be kept.
    TooLong(usize),
}

/// Cuts a body into lines. Keeps the line whose end has not come, up to a limit.
#[derive(Debug)]
pub(super) struct Lines {
    begun: Vec<u8>,
    /// Bytes of that line, those that were not kept too.
    length: usize,
    bytes_max: usize,
}

impl Lines {
    /// Keeps lines of events of at most this size.
    pub(super) fn new(event_bytes_max: usize) -> Self {
        Self { begun: Vec::new(), length: 0, bytes_max: event_bytes_max + SLACK_BYTES }
    }

    /// Hands on every line that ends in this piece.
    ///
    /// # Errors
    /// What `each` gives; lines behind that one are lost.
    pub(super) fn take<E>(
        &mut self,
        piece: &[u8],
        mut each: impl FnMut(Line<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut rest = piece;
        while let Some(at) = rest.iter().position(|&byte| byte == b'\n') {
            let (end, after) = (&rest[..at], &rest[at + 1..]);
            rest = after;
            if self.length == 0 {
                // The common case: the line need not be copied.
                each(self.line(end.len(), end))?;
                continue;
            }
            self.keep(end);
            self.finish(&mut each)?;
        }
        self.keep(rest);
        Ok(())
    }

    /// Hands on what stands behind the last end of a line.
    ///
    /// # Errors
    /// What `each` gives.
    pub(super) fn end<E>(&mut self, mut each: impl FnMut(Line<'_>) -> Result<(), E>) -> Result<(), E> {
        if self.length == 0 { Ok(()) } else { self.finish(&mut each) }
    }

    /// Bytes that are kept of a line whose end has not come.
    pub(super) fn kept_bytes(&self) -> usize {
        self.begun.capacity()
    }

    fn finish<E>(&mut self, each: &mut impl FnMut(Line<'_>) -> Result<(), E>) -> Result<(), E> {
        let mut begun = std::mem::take(&mut self.begun);
        let ended = each(self.line(self.length, &begun));
        begun.clear();
        (self.begun, self.length) = (begun, 0);
        ended
    }

    fn line<'a>(&self, length: usize, bytes: &'a [u8]) -> Line<'a> {
        if length > self.bytes_max { Line::TooLong(length) } else { Line::Whole(bytes) }
    }

    fn keep(&mut self, bytes: &[u8]) {
        self.length += bytes.len();
        if self.length <= self.bytes_max {
            self.begun.extend_from_slice(bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cut(body: &[u8], piece_bytes: usize) -> Vec<Result<Vec<u8>, usize>> {
        let (mut lines, mut found) = (Lines::new(0), Vec::new());
        let mut each = |line: Line<'_>| {
            found.push(match line {
                Line::Whole(bytes) => Ok(bytes.to_vec()),
                Line::TooLong(length) => Err(length),
            });
            Ok::<_, ()>(())
        };
        for piece in body.chunks(piece_bytes) {
            lines.take(piece, &mut each).unwrap();
        }
        lines.end(&mut each).unwrap();
        assert!(lines.kept_bytes() <= 2 * SLACK_BYTES);
        found
    }

    #[test]
    fn lines_are_the_same_in_whatever_pieces() {
        let long = "x".repeat(3 * SLACK_BYTES);
        let body = format!("one\n\ntwo \r\n{long}\nthree\n{long}");
        let line = |text: &str| Ok(text.as_bytes().to_vec());
        let wanted = [
            line("one"),
            line(""),
            line("two \r"),
            Err(3 * SLACK_BYTES),
            line("three"),
            Err(3 * SLACK_BYTES),
        ];
        for piece_bytes in [1, 2, 3, 5, 7, 1000, SLACK_BYTES, usize::MAX] {
            assert_eq!(cut(body.as_bytes(), piece_bytes), wanted, "{piece_bytes}");
        }
        assert_eq!(cut(b"", 1), []);
        assert_eq!(cut(b"\n", 1), [line("")]);
        assert_eq!(cut(b"a", 1), [line("a")]);
    }
}
