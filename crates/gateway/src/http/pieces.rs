//! Request bodies that are taken as they come: piece by piece, unpacked on the way, with bounded memory whatever their size.

use std::io::{self, BufRead, Read};
use std::sync::Arc;
use std::time::Duration;

use axum::body::{BodyDataStream, Bytes};
use axum::http::StatusCode;
use futures::StreamExt;
use parking_lot::Mutex;

use super::HttpError;
use super::coding::Coding;

/// Largest piece of an unpacked body, in bytes.
const PIECE_BYTES: usize = 64 << 10;
/// What is needed of a packed body to tell how it is packed.
const HEAD_BYTES: usize = 2;

/// A body.
pub(super) struct Pieces {
    source: BodyDataStream,
    stall_max: Duration,
    coding: Option<Coding>,
    unpacking: Option<Unpacking>,
    has_ended: bool,
}

/// A packed body on its way.
struct Unpacking {
    coding: Coding,
    decoder: Box<dyn Read + Send>,
    feed: Arc<Mutex<Feed>>,
    buffer: Vec<u8>,
}

/// Between the network and the decoder.
#[derive(Default)]
struct Feed {
    next: Option<Bytes>,
    has_ended: bool,
}

/// The decoder's end of a [`Feed`].
struct FeedReader {
    feed: Arc<Mutex<Feed>>,
    current: Bytes,
}

impl Read for FeedReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.fill_buf()?.read(buffer)?;
        self.consume(read);
        Ok(read)
    }
}

impl BufRead for FeedReader {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.current.is_empty() {
            let mut feed = self.feed.lock();
            match feed.next.take() {
                Some(next) => self.current = next,
                None if feed.has_ended => {}
                None => return Err(io::ErrorKind::WouldBlock.into()),
            }
        }
        Ok(&self.current)
    }

    fn consume(&mut self, bytes: usize) {
        let _ = self.current.split_to(bytes.min(self.current.len()));
    }
}

impl Pieces {
    /// A body that nothing was read of. Nothing may come of it for at most `stall_max`.
    pub(super) fn new(source: BodyDataStream, coding: Option<Coding>, stall_max: Duration) -> Self {
        Self { source, stall_max, coding, unpacking: None, has_ended: false }
    }

    /// The next piece; nothing at the end.
    ///
    /// # Errors
    /// The body broke off, stalled, or is not packed as it says.
    pub(super) async fn next(&mut self) -> Result<Option<Bytes>, HttpError> {
        let Some(coding) = self.coding else { return self.receive().await };
        if self.unpacking.is_none() {
            self.unpacking = Some(self.begin(coding).await?);
        }
        loop {
            let Some(unpacking) = &mut self.unpacking else { return Ok(None) };
            match unpacking.decoder.read(&mut unpacking.buffer) {
                Ok(0) => {
                    // What stands behind the packed body means nothing, but has to come for the connection's sake.
                    while self.receive().await?.is_some() {}
                    return Ok(None);
                }
                Ok(read) => return Ok(Some(Bytes::copy_from_slice(&unpacking.buffer[..read]))),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    let received = self.receive().await?;
                    if let Some(unpacking) = &self.unpacking {
                        unpacking.feed.lock().put(received);
                    }
                }
                Err(error) => return Err(broken(unpacking.coding, &error)),
            }
        }
    }

    /// What is left of the body, as it comes.
    pub(super) fn into_rest(self) -> BodyDataStream {
        self.source
    }

    async fn begin(&mut self, coding: Coding) -> Result<Unpacking, HttpError> {
        let mut head = Bytes::new();
        while head.len() < HEAD_BYTES
            && let Some(more) = self.receive().await?
        {
            head = if head.is_empty() { more } else { [head, more].concat().into() };
        }
        let feed = Arc::new(Mutex::new(Feed { next: None, has_ended: self.has_ended }));
        let reader = FeedReader { feed: Arc::clone(&feed), current: head.clone() };
        let decoder = coding.decoder(&head, reader).map_err(|error| broken(coding, &error))?;
        Ok(Unpacking { coding, decoder, feed, buffer: vec![0; PIECE_BYTES] })
    }

    async fn receive(&mut self) -> Result<Option<Bytes>, HttpError> {
        if self.has_ended {
            return Ok(None);
        }
        loop {
            let received = tokio::time::timeout(self.stall_max, self.source.next()).await.map_err(|_| {
                let message = format_args!("nothing came for {} s", self.stall_max.as_secs());
                HttpError::new(StatusCode::REQUEST_TIMEOUT, "stalled", message)
            })?;
            match received {
                Some(Ok(piece)) if piece.is_empty() => {}
                Some(Ok(piece)) => return Ok(Some(piece)),
                Some(Err(_)) => return Err(HttpError::bad_request("body", "the body ended early")),
                None => {
                    self.has_ended = true;
                    return Ok(None);
                }
            }
        }
    }
}

impl Feed {
    fn put(&mut self, received: Option<Bytes>) {
        match received {
            Some(piece) => self.next = Some(piece),
            None => self.has_ended = true,
        }
    }
}

fn broken(coding: Coding, error: &io::Error) -> HttpError {
    let message = format_args!("the body is not {}: {error}", coding.name());
    HttpError::bad_request("content_encoding", message)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use axum::body::Body;

    use super::*;

    async fn read(coding: Option<Coding>, parts: Vec<&[u8]>) -> Result<Vec<u8>, HttpError> {
        let parts: Vec<_> = parts.into_iter().map(|part| Ok::<_, io::Error>(part.to_vec())).collect();
        let source = Body::from_stream(futures::stream::iter(parts)).into_data_stream();
        let mut pieces = Pieces::new(source, coding, Duration::from_secs(5));
        let mut all = Vec::new();
        while let Some(piece) = pieces.next().await? {
            assert!(coding.is_none() || piece.len() <= PIECE_BYTES);
            all.extend_from_slice(&piece);
        }
        Ok(all)
    }

    fn packed(coding: Coding, plain: &[u8]) -> Vec<u8> {
        let level = flate2::Compression::default();
        match coding {
            Coding::Gzip => {
                // Two members, as `cat a.gz b.gz` makes them.
                let (first, second) = plain.split_at(plain.len() / 3);
                let member = |part: &[u8]| {
                    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), level);
                    encoder.write_all(part).unwrap();
                    encoder.finish().unwrap()
                };
                [member(first), member(second)].concat()
            }
            Coding::Zstd => zstd::encode_all(plain, 3).unwrap(),
            Coding::Deflate => {
                let mut encoder = flate2::write::ZlibEncoder::new(Vec::new(), level);
                encoder.write_all(plain).unwrap();
                encoder.finish().unwrap()
            }
        }
    }

    #[tokio::test]
    async fn wherever_a_packed_body_is_cut_it_is_the_same() {
        let plain: Vec<u8> = (0..400u32).flat_map(|n| (n * n).to_string().into_bytes()).collect();
        assert_eq!(read(None, vec![&plain[..7], b"", &plain[7..]]).await.unwrap(), plain);
        for coding in [Coding::Gzip, Coding::Zstd, Coding::Deflate] {
            let packed = packed(coding, &plain);
            let bytes: Vec<&[u8]> = packed.chunks(1).collect();
            assert_eq!(read(Some(coding), bytes).await.unwrap(), plain, "{coding:?}");
            for at in 0..packed.len() {
                let (head, tail) = packed.split_at(at);
                assert_eq!(read(Some(coding), vec![head, tail]).await.unwrap(), plain, "{coding:?} at {at}");
            }
            assert!(read(Some(coding), vec![&packed[..packed.len() - 3]]).await.is_err(), "{coding:?} cut");
            assert!(read(Some(coding), vec![b"no such thing"]).await.is_err(), "{coding:?}");
        }
    }

    #[tokio::test]
    async fn a_bomb_comes_in_pieces() {
        let bomb = packed(Coding::Zstd, &vec![b' '; 100 << 20]);
        assert!(bomb.len() < 20_000);
        let read = read(Some(Coding::Zstd), vec![&bomb]).await.unwrap();
        assert_eq!(read.len(), 100 << 20);
    }
}
