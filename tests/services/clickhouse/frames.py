"""ClickHouse's own compressed frames, and the encodings of HTTP.

A frame is: 16 bytes CityHash128 of what follows, a byte for the method (0x82 LZ4, 0x90 ZSTD, 0x02 none), the size of
the frame without its checksum and the size of the data (little endian, 4 bytes each), the compressed data.
"""

import gzip
import struct
import zlib

import lz4.block
import lz4.frame
import zstandard
from clickhouse_cityhash.cityhash import CityHash128

CHECKSUM_BYTES = 16
HEADER = struct.Struct("<BII")
LZ4, ZSTD, NONE = 0x82, 0x90, 0x02
FRAME_BYTES = 1 << 20


class BadFrame(ValueError):
    """The bytes are not what their header says."""


def unpack(body):
    """The data in frames, whose checksums must match."""
    data, at = [], 0
    while at < len(body):
        begin = at + CHECKSUM_BYTES
        if begin + HEADER.size > len(body):
            raise BadFrame("the last frame is cut off in its header")
        method, frame_bytes, data_bytes = HEADER.unpack_from(body, begin)
        end = begin + frame_bytes
        if frame_bytes < HEADER.size or end > len(body):
            raise BadFrame("the last frame is cut off")
        if _checksum(body[begin:end]) != body[at:begin]:
            raise BadFrame("a frame's checksum does not match")
        data.append(_decompress(method, body[begin + HEADER.size : end], data_bytes))
        at = end
    return b"".join(data)


def pack(data):
    """LZ4 frames of data."""
    frames = []
    for at in range(0, len(data), FRAME_BYTES):
        part = data[at : at + FRAME_BYTES]
        packed = lz4.block.compress(part, store_size=False)
        frame = HEADER.pack(LZ4, HEADER.size + len(packed), len(part)) + packed
        frames.append(_checksum(frame) + frame)
    return b"".join(frames)


def _decompress(method, packed, data_bytes):
    if method == LZ4:
        return lz4.block.decompress(packed, uncompressed_size=data_bytes)
    if method == ZSTD:
        return zstandard.ZstdDecompressor().decompress(packed, max_output_size=data_bytes)
    if method == NONE:
        return packed
    raise BadFrame(f"compression method {method:#x} is not known")


def _checksum(frame):
    value = CityHash128(bytes(frame))
    # The library gives the lower half above the upper one.
    return struct.pack("<QQ", value >> 64, value & (2**64 - 1))


DECODE = {
    "gzip": gzip.decompress,
    "deflate": zlib.decompress,
    "lz4": lz4.frame.decompress,
    "zstd": lambda body: zstandard.ZstdDecompressor().decompressobj().decompress(body),
}
ENCODE = {
    "zstd": zstandard.ZstdCompressor(level=1).compress,
    "lz4": lz4.frame.compress,
    "gzip": lambda body: gzip.compress(body, 1),
    "deflate": lambda body: zlib.compress(body, 1),
}
