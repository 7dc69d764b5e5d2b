//! Request bodies: bounded one by one and all together, unpacked when they are compressed (gzip, zstd, deflate).

use std::io::Read;
use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::{HeaderMap, StatusCode, header};
use flate2::read::{DeflateDecoder, MultiGzDecoder, ZlibDecoder};
use futures::StreamExt;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::HttpError;
use crate::gateway::Gateway;

/// What one permit of the memory for bodies stands for.
pub(crate) const BODY_PERMIT_BYTES: usize = 1024;
/// Step in which memory is asked for while a body is unpacked.
const UNPACK_BYTES: usize = 256 << 10;
/// The window of zstd that everybody must be able to read (RFC 8878): 8 MiB. A larger one is a way to take memory.
const ZSTD_WINDOW_LOG_MAX: u32 = 23;
/// Bounds of what is read of a body that is not wanted.
const DISCARD_BYTES_MAX: usize = 1 << 20;
const DISCARD_TIME_MAX: Duration = Duration::from_secs(2);

/// A body, and its share of the memory for bodies until it is dropped.
pub(super) struct Collected {
    bytes: Bytes,
    _share: Share,
}

impl Collected {
    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes
    }
}

/// A share of the memory for bodies.
struct Share {
    memory: Arc<Semaphore>,
    permit: Option<OwnedSemaphorePermit>,
}

impl Share {
    /// Takes more.
    fn grow(&mut self, bytes: usize) -> Result<(), HttpError> {
        let busy = || {
            HttpError::unavailable("busy", "the server has as many request bodies in memory as it may")
                .hint("send again in a moment, or fewer requests at a time")
        };
        let permits = u32::try_from(bytes.div_ceil(BODY_PERMIT_BYTES)).map_err(|_| busy())?;
        let more = Arc::clone(&self.memory).try_acquire_many_owned(permits).map_err(|_| busy())?;
        match &mut self.permit {
            Some(permit) => permit.merge(more),
            None => self.permit = Some(more),
        }
        Ok(())
    }
}

/// Reads a request's body, as it was before any `Content-Encoding`.
pub(super) async fn read(gateway: &Gateway, headers: &HeaderMap, body: Body) -> Result<Collected, HttpError> {
    let limits = &gateway.config.http;
    let coding = coding(headers)?;
    let announced = headers.get(header::CONTENT_LENGTH);
    let announced = announced.and_then(|value| value.to_str().ok()?.parse::<usize>().ok());
    if announced.is_some_and(|length| length > limits.body_bytes_max) {
        return Err(too_large(limits.body_bytes_max));
    }
    let mut share = Share { memory: Arc::clone(&gateway.http_memory), permit: None };
    let bytes = collect(body, announced.unwrap_or(0), limits.body_bytes_max, &mut share).await?;
    let Some(coding) = coding else { return Ok(Collected { bytes, _share: share }) };
    let bytes_max = limits.decompressed_bytes_max;
    let unpacked = tokio::task::spawn_blocking(move || unpack(coding, &bytes, bytes_max, share)).await;
    unpacked.unwrap_or_else(|_| {
        Err(HttpError::bad_request("content_encoding", "the body could not be decompressed"))
    })
}

/// Reads and forgets a body whose request is refused anyway, within bounds of size and time.
pub(super) async fn discard(body: Body) {
    let mut left = DISCARD_BYTES_MAX;
    let mut pieces = body.into_data_stream();
    let reading = async {
        while let Some(Ok(piece)) = pieces.next().await {
            match left.checked_sub(piece.len()) {
                Some(rest) => left = rest,
                None => return,
            }
        }
    };
    // What is left then is the client's loss: the connection closes under it.
    let _ = tokio::time::timeout(DISCARD_TIME_MAX, reading).await;
}

fn too_large(bytes_max: usize) -> HttpError {
    HttpError::too_large(format_args!("the body is larger than {bytes_max} bytes"))
        .hint("send fewer events at a time")
}

async fn collect(
    body: Body,
    announced: usize,
    bytes_max: usize,
    share: &mut Share,
) -> Result<Bytes, HttpError> {
    // The events are encoded from the body, so that it is in memory twice.
    share.grow(2 * announced)?;
    let mut collected = Vec::with_capacity(announced);
    let mut chunks = body.into_data_stream();
    while let Some(chunk) = chunks.next().await {
        let chunk = chunk.map_err(|_| HttpError::bad_request("body", "the body ended early"))?;
        if collected.len() + chunk.len() > bytes_max {
            return Err(too_large(bytes_max));
        }
        if collected.len() + chunk.len() > announced {
            share.grow(2 * chunk.len())?;
        }
        collected.extend_from_slice(&chunk);
    }
    Ok(collected.into())
}

fn unpack(coding: Coding, packed: &[u8], bytes_max: usize, mut share: Share) -> Result<Collected, HttpError> {
    let broken = |error: std::io::Error| {
        let message = format_args!("the body is not {}: {error}", coding.name());
        HttpError::bad_request("content_encoding", message)
    };
    let mut unpacked = Vec::new();
    let mut decoder = coding.decoder(packed).map_err(broken)?;
    loop {
        share.grow(2 * UNPACK_BYTES)?;
        let read = decoder.by_ref().take(UNPACK_BYTES as u64).read_to_end(&mut unpacked);
        let read = read.map_err(broken)?;
        if unpacked.len() > bytes_max {
            let message = format_args!("the decompressed body is larger than {bytes_max} bytes");
            return Err(HttpError::too_large(message).hint("send fewer events at a time"));
        }
        if read < UNPACK_BYTES {
            return Ok(Collected { bytes: unpacked.into(), _share: share });
        }
    }
}

/// How a body is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Coding {
    Gzip,
    Zstd,
    Deflate,
}

impl Coding {
    const fn name(self) -> &'static str {
        match self {
            Self::Gzip => "gzip",
            Self::Zstd => "zstd",
            Self::Deflate => "deflate",
        }
    }

    fn decoder<'a>(self, packed: &'a [u8]) -> std::io::Result<Box<dyn Read + 'a>> {
        Ok(match self {
            Self::Gzip => Box::new(MultiGzDecoder::new(packed)),
            Self::Zstd => {
                let mut decoder = zstd::stream::read::Decoder::new(packed)?;
                decoder.window_log_max(ZSTD_WINDOW_LOG_MAX)?;
                Box::new(decoder)
            }
            // The standard means zlib's format; some send the bare stream.
            Self::Deflate if is_zlib(packed) => Box::new(ZlibDecoder::new(packed)),
            Self::Deflate => Box::new(DeflateDecoder::new(packed)),
        })
    }
}

fn is_zlib(packed: &[u8]) -> bool {
    matches!(packed, [first, second, ..]
        if first & 0x0f == 8 && (u16::from(*first) << 8 | u16::from(*second)) % 31 == 0)
}

fn coding(headers: &HeaderMap) -> Result<Option<Coding>, HttpError> {
    let Some(value) = headers.get(header::CONTENT_ENCODING) else { return Ok(None) };
    match value.as_bytes().trim_ascii().to_ascii_lowercase().as_slice() {
        b"gzip" | b"x-gzip" => Ok(Some(Coding::Gzip)),
        b"zstd" => Ok(Some(Coding::Zstd)),
        b"deflate" => Ok(Some(Coding::Deflate)),
        b"identity" | b"" => Ok(None),
        _ => {
            let message = "the body's Content-Encoding is not understood";
            let error = HttpError::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "content_encoding", message);
            Err(error.hint("send it plain, or as gzip, zstd or deflate"))
        }
    }
}
