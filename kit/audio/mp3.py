"""Find the frames of an MP3 file, and write a stream of them that states its true length.

libsndfile stops at an estimate of an MP3's length, which a variable bit rate makes wrong both ways, and gives up at
some damage. A stream of the whole frames, behind a table that states their number, is read to its end.
"""

import functools
import re
import struct
from dataclasses import dataclass, field

from kit.audio.mono import early_end_note, lost_note

MP3_RATES = {3: (44100, 48000, 32000), 2: (22050, 24000, 16000), 0: (11025, 12000, 8000)}
MPEG1_KBPS = (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320)
MPEG2_KBPS = (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160)
MP3_TAGS = (b"TAG", b"ID3", b"APE", b"LYR")


@functools.lru_cache(maxsize=4096)
def mp3_frame_bytes(header: int) -> int:
    """Return the length of an MPEG layer III frame by its first 4 bytes; 0 where they are no such header.

    Source: ISO/IEC 11172-3 and 13818-3
    """
    version = header >> 19 & 3
    layer = header >> 17 & 3
    kbps_index = header >> 12 & 15
    rate_index = header >> 10 & 3
    if header >> 21 != 0x7FF or version == 1 or layer != 1 or kbps_index in (0, 15) or rate_index == 3:
        return 0
    kbps = (MPEG1_KBPS if version == 3 else MPEG2_KBPS)[kbps_index]
    samples_per_bit_byte = 144 if version == 3 else 72
    return samples_per_bit_byte * 1000 * kbps // MP3_RATES[version][rate_index] + (header >> 9 & 1)


@dataclass
class Mp3Scan:
    """The frames of an MP3 file.

    `runs` are stretches of whole frames: first byte, end, number of frames. `stated` is the number of frames that a
    table (Xing, Info or VBRI) in the first frame states; that frame holds no sound and is in no run. `skipped`
    counts other bytes before the first frame. `is_cut` is true if the file ends within a frame.
    """

    sample_rate: int
    frame_samples: int
    runs: list[tuple[int, int, int]] = field(default_factory=list)
    table: bytes = b""
    stated_at: int = 0
    stated: int | None = None
    skipped: int = 0
    is_cut: bool = False

    @property
    def frames(self) -> int:
        """The number of whole frames."""
        return sum(count for _, _, count in self.runs)

    @property
    def frame_bytes(self) -> float:
        """The mean length of a frame. Units: bytes"""
        return sum(end - start for start, end, _ in self.runs) / max(1, self.frames)

    def frames_s(self, frames: float) -> float:
        """Return how long frames last. Units: seconds"""
        return frames * self.frame_samples / self.sample_rate


def same_mp3_stream(header: int, first: int) -> bool:
    """Whether a header has another's version, layer and sample rate, and is mono where that is."""
    if (header ^ first) & 0xFFFE0C00:
        return False
    return (header >> 6 & 3 == 3) == (first >> 6 & 3 == 3)


def scan_mp3(raw: bytes) -> Mp3Scan | None:
    """Find all frames of an MP3 file, also behind damaged bytes. None where there are none."""
    size = len(raw)

    def header_at(place: int) -> int:
        return int.from_bytes(raw[place : place + 4], "big")

    def next_frame(place: int, first: int) -> int:
        """Return where the next frame begins that a second one follows, or -1."""
        while (place := raw.find(b"\xff", place)) >= 0:
            header = header_at(place)
            length = mp3_frame_bytes(header)
            if length and (not first or same_mp3_stream(header, first)):
                behind = header_at(place + length)
                if mp3_frame_bytes(behind) and same_mp3_stream(behind, header):
                    return place
                if place + length == size or raw[place + length : place + length + 3] in MP3_TAGS:
                    return place
            place += 1
        return -1

    begin = skip_id3(raw, 0)
    place = next_frame(begin, 0)
    if place < 0:
        return None
    first = header_at(place)
    version = first >> 19 & 3
    scan = Mp3Scan(MP3_RATES[version][first >> 10 & 3], 1152 if version == 3 else 576)
    # Tags are often padded with zeros.
    scan.skipped = len(raw[begin:place].lstrip(b"\0"))
    place = read_mp3_table(raw, place, scan)
    while 0 <= place < size:
        start = place
        count = 0
        header = header_at(place)
        while True:
            length = mp3_frame_bytes(header)
            if not length or not same_mp3_stream(header, first):
                break
            if place + length > size:
                scan.is_cut = True
                break
            header = header_at(place + length)
            if not mp3_frame_bytes(header) and place + length < size:
                is_tag = raw[place + length : place + length + 3] in MP3_TAGS
                if not is_tag and next_frame(place + 1, first) >= 0:
                    # Bytes are damaged from within this frame on: its body may be as well.
                    break
            place += length
            count += 1
        if count:
            scan.runs.append((start, place, count))
        place = skip_id3(raw, place)
        place = next_frame(place if place > start else start + 1, first)
    return scan if scan.runs else None


def skip_id3(raw: bytes, place: int) -> int:
    """Return where the ID3 tags that begin at a byte end."""
    while raw[place : place + 3] == b"ID3" and place + 10 <= len(raw):
        length = 0
        # Seven bits of each byte count.
        for byte in raw[place + 6 : place + 10]:
            length = length << 7 | byte & 127
        place += 10 + length
    return place


def read_mp3_table(raw: bytes, place: int, scan: Mp3Scan) -> int:
    """Note the number of frames that a first frame's table states. Return where the frames with sound begin."""
    length = mp3_frame_bytes(int.from_bytes(raw[place : place + 4], "big"))
    frame = raw[place : place + length]
    found = re.search(rb"Xing|Info|VBRI", frame[:64])
    if not found:
        return place
    at = found.end() + (10 if found.group() == b"VBRI" else 4)
    scan.table = frame
    if found.group() == b"VBRI" or (frame[found.end() + 3 : found.end() + 4] and frame[found.end() + 3] & 1):
        scan.stated_at = at
        scan.stated = int.from_bytes(frame[at : at + 4], "big")
    return place + length


def repair_mp3(raw: bytes, scan: Mp3Scan) -> tuple[bytes, list[str]]:
    """Return an MP3 stream of the whole frames alone, which states its true length, and notes on what is lost.

    Damaged frames become silent ones, so that times stay right. How many they were is known from their bytes, as
    far as frames are of equal length, or from the table.
    """
    notes = []
    pieces = [b""]
    frames = 0
    gaps = [b[0] - a[1] for a, b in zip(scan.runs, scan.runs[1:], strict=False)]
    missing = (scan.stated or 0) - scan.frames
    for i, (start, end, count) in enumerate(scan.runs):
        pieces.append(mute_unresolved(raw[start:end], scan) if i else raw[start:end])
        frames += count
        if i == len(gaps):
            break
        behind = scan.runs[i + 1][0]
        if skip_id3(raw, end) == behind:
            # A second file was appended.
            continue
        lost = round(gaps[i] / scan.frame_bytes)
        if len(gaps) == 1 and abs(missing - lost) <= max(2, lost // 2):
            lost = missing
        notes.append(lost_note(scan.frames_s(frames), scan.frames_s(lost)))
        pieces += [silent_mp3_frame(raw[behind : behind + 4])] * lost
        frames += lost
        missing -= lost
    # A table may count its own frame.
    if scan.stated is not None and missing > 1:
        notes.append(early_end_note(scan.frames_s(missing)))
    pieces[0] = mp3_table(raw[scan.runs[0][0] :][:4], scan, frames)
    return b"".join(pieces), notes


def mp3_side_bytes(header: bytes) -> int:
    """Return the length of a frame's side information. Units: bytes"""
    is_mono = header[3] >> 6 == 3
    if header[1] >> 3 & 3 == 3:
        return 17 if is_mono else 32
    return 9 if is_mono else 17


def silent_mp3_frame(header: bytes) -> bytes:
    """Return a frame without sound: its side information states that no bits follow."""
    return bytes([header[0], header[1] | 1, header[2], header[3]]).ljust(
        mp3_frame_bytes(int.from_bytes(header, "big")), b"\0"
    )


def mute_unresolved(run: bytes, scan: Mp3Scan) -> bytes:
    """Silence the first frames behind damage whose bits began in damaged frames; they would decode to noise.

    A frame's first bytes of side information state how far before it its bits begin (the bit reservoir).
    """
    run_bytes = bytearray(run)
    place = 0
    reservoir = 0
    while place < len(run_bytes):
        header = bytes(run_bytes[place : place + 4])
        length = mp3_frame_bytes(int.from_bytes(header, "big"))
        side = place + (4 if header[1] & 1 else 6)
        first_bits = int.from_bytes(run_bytes[side : side + 2], "big")
        back = first_bits >> 7 if scan.frame_samples == 1152 else first_bits >> 8
        if back <= reservoir:
            break
        side_bytes = mp3_side_bytes(header)
        run_bytes[side : side + side_bytes] = bytes(side_bytes)
        reservoir += length - (side - place) - side_bytes
        place += length
    return bytes(run_bytes)


def mp3_table(header: bytes, scan: Mp3Scan, frames: int) -> bytes:
    """Return a first frame whose table states the number of frames."""
    if scan.stated is not None:
        at = scan.stated_at
        return scan.table[:at] + struct.pack(">I", frames) + scan.table[at + 4 :]
    # The highest bit rate leaves room for the table at every sample rate.
    header = bytes([header[0], header[1] | 1, header[2] & 0x0D | 0xE0, header[3]])
    frame = silent_mp3_frame(header)
    at = 4 + mp3_side_bytes(header)
    return frame[:at] + b"Info" + struct.pack(">II", 1, frames) + frame[at + 12 :]
