"""Find the sound in files whose headers are wrong or damaged: formats by first bytes, unclosed WAV, Ogg pages.

Nothing is decoded. The functions return bytes that a decoder reads as if the file were whole.
"""

import struct
import zlib
from pathlib import Path

from kit.audio.mp3 import mp3_frame, skip_id3

# The first bytes of formats.
AUDIO_MAGIC = {
    b"fLaC": "FLAC",
    b"OggS": "Ogg",
    b"RIFF": "WAV",
    b"RF64": "WAV",
    b"riff": "W64",
    b"FORM": "AIFF",
    b".snd": "AU",
    b"caff": "CAF",
    b"\x30\x26\xb2\x75": "WMA",
    b"\x1a\x45\xdf\xa3": "Matroska",
}
# Formats that libsndfile and Python's standard library do not read.
FFMPEG_FORMATS = ("AAC", "WMA", "Matroska")

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
    open_place = 0
    if head[:4] == b".snd" and head[8:12] == bytes(4):
        open_place = 8
    place = 12
    while head[:4] == b"RIFF" and place + 8 < len(head) and not open_place:
        name, length = struct.unpack_from("<4sI", head, place)
        # Some recorders leave the size of the whole file open as well, or alone.
        if name == b"data" and 0 not in (length, int.from_bytes(head[4:8], "little")):
            return None
        if name == b"data":
            open_place = place + 4
        # A chunk begins at an even byte.
        place += 8 + length + length % 2
    if not open_place:
        return None
    raw = bytearray(path.read_bytes())
    raw[open_place : open_place + 4] = b"\xff" * 4
    if raw[:4] == b"RIFF":
        # Python's wave module reads as far as the size of the whole file.
        raw[4:8] = b"\xff" * 4
    return bytes(raw)


def scan_ogg(raw: bytes) -> tuple[list[tuple[bytes, int]], bool, list[str]]:
    """Find the undamaged pages of an Ogg file's first stream, by their checksums.

    Returns: stretches of them, each behind the stream's headers and with its last granule, the number of samples by
             the codec's own count; whether no page is missing; notes on what is
    Source: RFC 3533
    """
    headers = b""
    parts: list[tuple[bytearray, int]] = []
    serial = last = -1
    is_whole = True
    is_ended = False
    notes = []
    place = raw.find(b"OggS")
    while place >= 0:
        body = place + 27 + int.from_bytes(raw[place + 26 : place + 27], "big")
        end = body + sum(raw[place + 27 : body])
        page = raw[place:end]
        if len(page) < 27 or end > len(raw) or ogg_crc(page) != page[22:26]:
            place = raw.find(b"OggS", place + 1)
            continue
        granule, page_serial, sequence = struct.unpack_from("<QII", page, 6)
        if parts and page[5] & 2:
            notes.append(f"another stream follows, {len(raw) - place} bytes long: it is left out")
            break
        place = raw.find(b"OggS", end)
        # Streams side by side, as in a video: the first page's stream is read.
        if serial not in (-1, page_serial):
            continue
        serial = page_serial
        is_next = sequence == last + 1
        last = sequence
        is_whole = is_whole and is_next
        is_ended = bool(page[5] & 4)
        if not parts and granule in (0, NO_GRANULE):
            headers += page
            continue
        if not parts or not is_next:
            parts.append((bytearray(headers), 0))
        stretch, last_granule = parts[-1]
        stretch += page
        parts[-1] = (stretch, last_granule if granule == NO_GRANULE else granule)
    if not is_ended:
        notes.append("the file ends early: its end mark is missing; how much is lost is not known")
    return [(bytes(stretch), granule) for stretch, granule in parts], is_whole, notes


def ogg_crc(page: bytes) -> bytes:
    """Return a page's checksum as its header stores it.

    Ogg's CRC is zlib's polynomial with bits in the other order, without zlib's inversions: reversing the bits of
    every byte and of the result makes zlib compute it.
    """
    without = page[:22] + bytes(4) + page[26:]
    crc = zlib.crc32(without.translate(REVERSED_BITS), 0xFFFFFFFF) ^ 0xFFFFFFFF
    return crc.to_bytes(4, "big").translate(REVERSED_BITS)
