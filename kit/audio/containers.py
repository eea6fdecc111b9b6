"""Find the sound in files whose headers are wrong, missing or damaged: Ogg pages, FLAC frames, WAV sizes.

Nothing is decoded here. Each function returns bytes or a file object that a decoder reads as if the file were whole.
"""

import io
import re
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from kit.audio.mp3 import mp3_frame_bytes

# Frames or pages are searched in at most so many bytes: six hours of MP3 at 320 kbit/s take 864 MB.
MAX_SCAN_BYTES = 1 << 30

# The first bytes of a format, where in the file they stand, and the format's name.
AUDIO_MAGIC = (
    (0, b"fLaC", "FLAC"),
    (0, b"OggS", "Ogg"),
    (0, b"RIFF", "WAV"),
    (0, b"RF64", "WAV"),
    (0, b"RIFX", "WAV"),
    (0, b"riff\x2e\x91\xcf\x11", "W64"),
    (0, b"FORM", "AIFF"),
    (0, b".snd", "AU"),
    (0, b"caff", "CAF"),
    (0, b"NIST_1A", "NIST"),
    (0, b"Creative Voice File", "VOC"),
    (0, b"ID3", "MP3"),
    (4, b"ftyp", "AAC"),
    (0, b"\x30\x26\xb2\x75\x8e\x66\xcf\x11", "WMA"),
    (0, b"\x1a\x45\xdf\xa3", "Matroska"),
    (0, b"#!AMR", "AMR"),
    (0, b"MAC ", "Monkey's Audio"),
    (0, b"wvpk", "WavPack"),
)
# Formats that libsndfile and Python's standard library do not read.
FFMPEG_FORMATS = ("AAC", "WMA", "Matroska", "AMR", "Monkey's Audio", "WavPack")

REVERSED_BITS = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))
NO_GRANULE = 2**64 - 1


def audio_format(head: bytes) -> str:
    """Return the format that a file's first 16 bytes belong to, or "" where they are of no known format."""
    for offset, magic, name in AUDIO_MAGIC:
        if head[offset : offset + len(magic)] == magic:
            return name
    # The last bits of an ADTS header's second byte: layer 0, which MP3 does not have.
    if len(head) >= 4 and head[0] == 0xFF and head[1] & 0xF6 == 0xF0:
        return "AAC"
    return "MP3" if mp3_frame_bytes(int.from_bytes(head[:4], "big")) else ""


class SplicedFile(io.RawIOBase):
    """A file whose first `skip` bytes are replaced by other bytes."""

    def __init__(self, path: Path, head: bytes, skip: int) -> None:
        super().__init__()
        self.head = head
        self.shift = skip - len(head)
        self.rest = open(path, "rb")
        self.size = self.rest.seek(0, io.SEEK_END) - self.shift
        self.position = 0

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move to a byte of the spliced file."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self.position, io.SEEK_END: self.size}[whence]
        self.position = max(0, base + offset)
        return self.position

    def tell(self) -> int:
        """Return the current byte."""
        return self.position

    def readinto(self, buffer: "memoryview") -> int:  # type: ignore[override]
        """Read from the head, or from the file behind it."""
        view = memoryview(buffer).cast("B")
        if self.position < len(self.head):
            part = self.head[self.position : self.position + len(view)]
        else:
            self.rest.seek(self.position + self.shift)
            part = self.rest.read(len(view))
        view[: len(part)] = part
        self.position += len(part)
        return len(part)

    def close(self) -> None:
        """Close the file."""
        self.rest.close()
        super().close()


def open_unclosed(path: Path) -> SplicedFile | None:
    """Open a WAV, RF64, AU or CAF file whose recorder never wrote the size of the sound, as if it had.

    Returns None for any other file: libsndfile itself reads to the end where a size is too large.
    """
    with open(path, "rb") as file:
        size = file.seek(0, io.SEEK_END)
        file.seek(0)
        head = file.read(1 << 16)
    if head[:4] == b".snd":
        # Byte 8 on: the size of the sound.
        return SplicedFile(path, head[:8] + b"\xff" * 4, 12) if head[8:12] == bytes(4) else None
    if head[:4] in (b"RIFF", b"RF64"):
        # A chunk is its name, its size and its content.
        chunk = struct.Struct("<4sI")
        place = 12
    elif head[:4] == b"caff":
        chunk = struct.Struct(">4sq")
        place = 8
    else:
        return None
    wide_size_place = 0
    while place + chunk.size <= len(head):
        name, length = chunk.unpack_from(head, place)
        body = place + chunk.size
        if name == b"data":
            patch_place = place + 4
            patch_format = chunk.format[0] + chunk.format[-1]
            if length == 2**32 - 1 and wide_size_place:
                patch_place = wide_size_place
                patch_format = "<Q"
                (length,) = struct.unpack_from("<Q", head, wide_size_place)
            present = size - body
            # Some recorders leave the size of the whole file open, which is all that Python's wave module reads by.
            is_open = head[:4] == b"RIFF" and head[4:8] == bytes(4)
            if present <= 0 or (length not in (0, -1) and not is_open):
                return None
            if length > 0:
                present = min(present, length)
            if patch_format == "<I":
                present = min(present, 2**32 - 1)
            patch = struct.pack(patch_format, present)
            start = head[:4] + b"\xff" * 4 + head[8:] if head[:4] == b"RIFF" else head
            return SplicedFile(path, start[:patch_place] + patch, patch_place + len(patch))
        if name == b"ds64":
            # RF64 keeps the sizes that need 8 bytes in this chunk; the second is that of the sound.
            wide_size_place = body + 8
        if length < 0:
            return None
        # A chunk of WAV begins at an even byte.
        place = body + length + (length % 2 if chunk.size == 8 else 0)
    return None


@dataclass(frozen=True)
class OggPage:
    """A page of an Ogg file. `granule` is the number of samples up to its end, by the codec's own count."""

    start: int
    end: int
    flags: int
    granule: int
    serial: int
    sequence: int


def ogg_pages(raw: bytes) -> list[OggPage]:
    """Return the undamaged pages of an Ogg file, by their checksums. Source: RFC 3533"""
    pages = []
    place = raw.find(b"OggS")
    while place >= 0:
        segments = raw[place + 26 : place + 27]
        body = place + 27 + (segments[0] if segments else 0)
        end = body + sum(raw[place + 27 : body])
        if segments and end <= len(raw) and ogg_crc(raw[place:end]) == raw[place + 22 : place + 26]:
            granule, serial, sequence = struct.unpack_from("<QII", raw, place + 6)
            pages.append(OggPage(place, end, raw[place + 5], granule, serial, sequence))
            place = raw.find(b"OggS", end)
        else:
            place = raw.find(b"OggS", place + 1)
    return pages


def ogg_crc(page: bytes) -> bytes:
    """Return a page's checksum as its header stores it.

    Ogg's CRC is zlib's polynomial with bits in the other order, without zlib's inversions: reversing the bits of
    every byte and of the result makes zlib compute it.
    """
    without = page[:22] + bytes(4) + page[26:]
    crc = zlib.crc32(without.translate(REVERSED_BITS), 0xFFFFFFFF) ^ 0xFFFFFFFF
    return crc.to_bytes(4, "big").translate(REVERSED_BITS)


@dataclass(frozen=True)
class OggStretch:
    """Undamaged pages in a row, behind the stream's headers: `data` decodes by itself.

    `granule` is where it ends. The first stretch follows the headers directly.
    """

    data: bytes
    granule: int
    is_first: bool


def ogg_links(pages: list[OggPage]) -> list[list[OggPage]]:
    """Return the pages of each stream of a chained file: streams that follow one another."""
    links: list[list[OggPage]] = []
    is_start = False
    for page in pages:
        was_start, is_start = is_start, bool(page.flags & 2)
        if not links or (is_start and not was_start):
            links.append([])
        links[-1].append(page)
    # Streams side by side, as in a video: the first page's stream is read.
    return [[page for page in link if page.serial == link[0].serial] for link in links]


def is_broken_ogg(pages: list[OggPage]) -> bool:
    """Whether pages of one stream are damaged or missing."""
    return any(page.sequence != before.sequence + 1 for before, page in pairwise(pages))


def unended_notes(pages: list[OggPage]) -> list[str]:
    """Return a note where a stream's last page is not marked as its end."""
    is_ended = pages[-1].flags & 4
    return [] if is_ended else ["the file ends early: its end mark is missing; how much is lost is not known"]


def ogg_stretches(raw: bytes, pages: list[OggPage]) -> list[OggStretch]:
    """Return the stretches between damaged or missing pages of one stream."""
    headers = 1
    while headers < len(pages) and pages[headers].granule in (0, NO_GRANULE):
        headers += 1
    head = b"".join(raw[page.start : page.end] for page in pages[:headers])
    runs: list[list[OggPage]] = []
    before = pages[headers - 1]
    for page in pages[headers:]:
        if not runs or page.sequence != before.sequence + 1:
            runs.append([])
        runs[-1].append(page)
        before = page
    stretches = []
    for run in runs:
        granules = [page.granule for page in run if page.granule != NO_GRANULE]
        if granules:
            data = head + b"".join(raw[page.start : page.end] for page in run)
            is_first = run[0].sequence == pages[headers - 1].sequence + 1
            stretches.append(OggStretch(data, granules[-1], is_first))
    return stretches


def flac_frames(raw: bytes) -> tuple[int, list[tuple[int, int]]]:
    """Return where the frames of a FLAC file begin, by the checksums of their headers.

    Shape:  -> the end of the metadata, and each frame's first byte and first sample
    Source: RFC 9639
    """
    place = max(raw.find(b"fLaC"), 0) + 4
    block_samples = int.from_bytes(raw[place + 4 : place + 6], "big")
    is_last = False
    while not is_last and place + 4 <= len(raw):
        is_last = bool(raw[place] & 128)
        place += 4 + int.from_bytes(raw[place + 1 : place + 4], "big")
    metadata_end = place
    return metadata_end, list(find_flac_frames(raw, metadata_end, block_samples))


def find_flac_frames(raw: bytes, place: int, block_samples: int) -> Iterator[tuple[int, int]]:
    """Yield each frame's first byte and first sample."""
    for found in re.compile(rb"\xff[\xf8\xf9]").finditer(raw, place):
        frame = raw[found.start() : found.start() + 16]
        if len(frame) < 16 or frame[3] & 1:
            continue
        # The number of leading ones of the number's first byte is its length, as in UTF-8.
        ones = 8 - (frame[4] ^ 255).bit_length()
        if ones in (1, 8):
            continue
        number = frame[4] & (127 >> ones)
        for byte in frame[5 : 4 + max(1, ones)]:
            number = number << 6 | byte & 63
        length = 4 + max(1, ones)
        length += {6: 1, 7: 2}.get(frame[2] >> 4, 0)
        length += {12: 1, 13: 2, 14: 2}.get(frame[2] & 15, 0)
        if flac_crc(frame[:length]) == frame[length]:
            yield found.start(), number if frame[1] & 1 else number * block_samples


def flac_crc(header: bytes) -> int:
    """Return the checksum of a frame's header: CRC-8 with the polynomial x^8 + x^2 + x + 1."""
    crc = 0
    for byte in header:
        crc ^= byte
        for _ in range(8):
            crc = (crc << 1 ^ 7 if crc & 128 else crc << 1) & 255
    return crc


def flac_head_of_unknown_length(metadata: bytes) -> bytes:
    """Return a FLAC file's metadata without its number of samples: libFLAC then reads on to the end of the bytes."""
    head = bytearray(metadata)
    # The number is the 36 bits behind the rate, channels and bits per sample.
    place = head.find(b"fLaC") + 21
    head[place] &= 0xF0
    head[place + 1 : place + 5] = bytes(4)
    return bytes(head)
