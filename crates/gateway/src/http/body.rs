//! Request bodies that are taken as a whole: bounded one by one and all together, unpacked when they are compressed.

use std::io::Read;
use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, BodyDataStream, Bytes};
use axum::http::{HeaderMap, header};
use futures::StreamExt;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::HttpError;
use super::coding::{Coding, coding};
use super::pieces::Pieces;
use crate::gateway::Gateway;

/// What one permit of the memory for bodies stands for.
pub(crate) const BODY_PERMIT_BYTES: usize = 1024;
/// Step in which memory is asked for while a body is unpacked.
const UNPACK_BYTES: usize = 256 << 10;
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
pub(super) struct Share {
    memory: Arc<Semaphore>,
    permit: Option<OwnedSemaphorePermit>,
}

impl Share {
    /// Nothing yet.
    pub(super) fn new(gateway: &Gateway) -> Self {
        Self { memory: Arc::clone(&gateway.http_memory), permit: None }
    }

    /// Takes more.
    pub(super) fn grow(&mut self, bytes: usize) -> Result<(), HttpError> {
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
    let (mut share, stall_max) = (Share::new(gateway), Duration::from_secs(limits.stall_s_max));
    let bytes = collect(body, announced.unwrap_or(0), limits.body_bytes_max, stall_max, &mut share).await?;
    let Some(coding) = coding else { return Ok(Collected { bytes, _share: share }) };
    let bytes_max = limits.decompressed_bytes_max;
    let unpacked = gateway.bodies.run(move || unpack(coding, &bytes, bytes_max, share)).await;
    unpacked.unwrap_or_else(|_| {
        Err(HttpError::bad_request("content_encoding", "the body could not be decompressed"))
    })
}

/// Reads and forgets a body whose request is refused anyway, within bounds of size and time.
pub(super) async fn discard(mut pieces: BodyDataStream) {
    let mut left = DISCARD_BYTES_MAX;
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
    stall_max: Duration,
    share: &mut Share,
) -> Result<Bytes, HttpError> {
    // The events are encoded from the body, so that it is in memory twice.
    share.grow(2 * announced)?;
    let mut collected = Vec::with_capacity(announced);
    let mut pieces = Pieces::new(body.into_data_stream(), None, stall_max);
    while let Some(chunk) = pieces.next().await? {
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
    let mut decoder = coding.decoder(packed, packed).map_err(broken)?;
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
