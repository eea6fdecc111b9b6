"""Find the sound in files whose headers are wrong or damaged: formats by first bytes, unclosed WAV, Ogg pages.

Nothing is decoded. The functions return bytes that a decoder reads as if the file were whole.
"""

import struct
import zlib
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from kit.audio.mp3 import mp3_frame, skip_id3

# The first bytes of formats.
AUDIO_MAGIC = {
    b"fLaC": "FLAC",
    b"OggS": "Ogg",
    b"RIFF": "WAV",
    b"RF64": "WAV",
    b"RIFX": "WAV",
    b"riff": "W64",
    b"FORM": "AIFF",
    b".snd": "AU",
    b"caff": "CAF",
    b"NIST": "NIST",
    b"Crea": "VOC",
    b"\x30\x26\xb2\x75": "WMA",
    b"\x1a\x45\xdf\xa3": "Matroska",
    b"#!AM": "AMR",
}
# Formats that libsndfile and Python's standard library do not read.
FFMPEG_FORMATS = ("AAC", "WMA", "Matroska", "AMR")

REVERSED_BITS = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))
NO_GRANULE = 2**64 - 1


def audio_kind(path: Path) -> str:
    """Return the format that a file's first bytes belong to, behind ID3 tags; "" where they are of no known format."""
    with open(path, "rb") as file:
        head = file.read(16)
        has_id3 = head[:3] == b"ID3"
        if has_id3:
            file.seek(skip_id3(head))
            head = file.read(16)
    if head[:4] in AUDIO_MAGIC:
        return AUDIO_MAGIC[head[:4]]
    # The last bits of an ADTS header's second byte: layer 0, which MP3 does not have.
    is_adts = len(head) >= 4 and head[0] == 0xFF and head[1] & 0xF6 == 0xF0
    if head[4:8] == b"ftyp" or is_adts:
        return "AAC"
    # Other bytes may stand before the first frame of an MP3.
    length, _ = mp3_frame(int.from_bytes(head[:4], "big"))
    return "MP3" if length or has_id3 or path.suffix.lower() == ".mp3" else ""


def close_recording(path: Path) -> bytes | None:
    """Return a WAV or AU file whose recorder never wrote the size of the sound, as if it had; None for any other file.

    libsndfile itself reads to the end where a size is too large.
    """
    with open(path, "rb") as file:
        head = file.read(1 << 16)
    if head[:4] == b".snd":
        # Byte 8 on: the size of the sound.
        place = 8 if head[8:12] == bytes(4) else -1
        size = b"\xff" * 4
    else:
        place = unclosed_wav_size(head)
        size = struct.pack("<I", min(path.stat().st_size - place - 4, 2**32 - 1))
    if place < 0 or size == bytes(4):
        return None
    raw = bytearray(path.read_bytes())
    raw[place : place + 4] = size
    if raw[:4] == b"RIFF":
        # Python's wave module reads as far as the size of the whole file.
        raw[4:8] = b"\xff" * 4
    return bytes(raw)


def unclosed_wav_size(head: bytes) -> int:
    """Return where an unclosed WAV states the size of the sound; -1 for any other file."""
    place = 12
    while head[:4] == b"RIFF" and place + 8 <= len(head):
        name, length = struct.unpack_from("<4sI", head, place)
        if name == b"data":
            # Some recorders leave the size of the whole file open as well, or alone.
            return place + 4 if length == 0 or head[4:8] == bytes(4) else -1
        # A chunk begins at an even byte.
        place += 8 + length + length % 2
    return -1


@dataclass(frozen=True)
class OggPage:
    """A page of an Ogg file. `granule` is the number of samples up to its end, by the codec's own count."""

    data: bytes
    flags: int
    granule: int
    serial: int
    sequence: int


def ogg_pages(raw: bytes) -> tuple[list[OggPage], int]:
    """Return the undamaged pages of an Ogg file's first stream, by their checksums, and where it ends.

    Source: RFC 3533
    """
    pages: list[OggPage] = []
    stream_end = 0
    place = raw.find(b"OggS")
    while place >= 0:
        segments = raw[place + 26 : place + 27]
        body = place + 27 + (segments[0] if segments else 0)
        end = body + sum(raw[place + 27 : body])
        data = raw[place:end]
        if segments and end <= len(raw) and ogg_crc(data) == data[22:26]:
            page = OggPage(data, data[5], *struct.unpack_from("<QII", data, 6))
            is_start = bool(page.flags & 2)
            if is_start and pages and pages[-1].sequence > 0:
                # Another stream follows.
                break
            # Streams side by side, as in a video: the first page's stream is read.
            if not pages or page.serial == pages[0].serial:
                pages.append(page)
                stream_end = end
            place = raw.find(b"OggS", end)
        else:
            place = raw.find(b"OggS", place + 1)
    return pages, stream_end


def ogg_crc(page: bytes) -> bytes:
    """Return a page's checksum as its header stores it.

    Ogg's CRC is zlib's polynomial with bits in the other order, without zlib's inversions: reversing the bits of
    every byte and of the result makes zlib compute it.
    """
    without = page[:22] + bytes(4) + page[26:]
    crc = zlib.crc32(without.translate(REVERSED_BITS), 0xFFFFFFFF) ^ 0xFFFFFFFF
    return crc.to_bytes(4, "big").translate(REVERSED_BITS)


def ogg_parts(pages: list[OggPage]) -> list[tuple[bytes, int]]:
    """Return the stretches between damaged pages as streams of their own, each with the granule of its end."""
    headers = 1
    while headers < len(pages) and pages[headers].granule in (0, NO_GRANULE):
        headers += 1
    head = b"".join(page.data for page in pages[:headers])
    runs: list[list[OggPage]] = []
    for before, page in pairwise(pages[headers - 1 :]):
        if not runs or page.sequence != before.sequence + 1:
            runs.append([])
        runs[-1].append(page)
    parts = []
    for run in runs:
        granules = [page.granule for page in run if page.granule != NO_GRANULE]
        if granules:
            parts.append((head + b"".join(page.data for page in run), granules[-1]))
    return parts
