//! How bodies are compressed: gzip, zstd or deflate, read as a whole or as they come.

use std::io::{BufRead, Read};

use axum::http::{HeaderMap, StatusCode, header};
use flate2::bufread::{DeflateDecoder, MultiGzDecoder, ZlibDecoder};

use super::HttpError;

/// The window of zstd that everybody must be able to read (RFC 8878): 8 MiB. A larger one is a way to take memory.
const ZSTD_WINDOW_LOG_MAX: u32 = 23;

/// How a body is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Coding {
    Gzip,
    Zstd,
    Deflate,
}

impl Coding {
    /// As the header `Content-Encoding` has it.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Gzip => "gzip",
            Self::Zstd => "zstd",
            Self::Deflate => "deflate",
        }
    }

    /// Unpacks what is read. A reader that has nothing yet (`WouldBlock`) may be asked again; `head` is what it gives first,
    /// two bytes at least if there are so many.
    pub(super) fn decoder<'a>(
        self,
        head: &[u8],
        packed: impl BufRead + Send + 'a,
    ) -> std::io::Result<Box<dyn Read + Send + 'a>> {
        Ok(match self {
            Self::Gzip => Box::new(MultiGzDecoder::new(packed)),
            Self::Zstd => {
                let mut decoder = zstd::stream::read::Decoder::with_buffer(packed)?;
                decoder.window_log_max(ZSTD_WINDOW_LOG_MAX)?;
                Box::new(decoder)
            }
            // The standard means zlib's format; some send the bare stream.
            Self::Deflate if is_zlib(head) => Box::new(ZlibDecoder::new(packed)),
            Self::Deflate => Box::new(DeflateDecoder::new(packed)),
        })
    }

    /// Memory that unpacking takes, in bytes.
    pub(super) const fn window_bytes(self) -> usize {
        match self {
            Self::Gzip | Self::Deflate => 64 << 10,
            Self::Zstd => 1 << ZSTD_WINDOW_LOG_MAX,
        }
    }
}

fn is_zlib(head: &[u8]) -> bool {
    matches!(head, [first, second, ..]
        if first & 0x0f == 8 && (u16::from(*first) << 8 | u16::from(*second)) % 31 == 0)
}

/// What the header `Content-Encoding` says; nothing for a plain body.
pub(super) fn coding(headers: &HeaderMap) -> Result<Option<Coding>, HttpError> {
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
