'''Find the sound in files with wrong or damaged headers: formats by first bytes, unclosed WAV, Ogg pages, MP3 frames.

Nothing is decoded: the functions return bytes that a decoder reads like a whole file.
'''

import functools
import re
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path

# The first bytes of formats.
AUDIO_MAGIC = {
    b'fLaC': 'FLAC',
    b'OggS': 'Ogg',
    b'RIFF': 'WAV',
    b'RF64': 'WAV',
    b'riff': 'W64',
    b'FORM': 'AIFF',
    b'.snd': 'AU',
    b'caff': 'CAF',
    b'\x30\x26\xb2\x75': 'WMA',
    b'\x1a\x45\xdf\xa3': 'Matroska',
}
# Formats that libsndfile does not read.
FFMPEG_FORMATS = ('AAC', 'WMA', 'Matroska')

REVERSED_BITS = bytes(int(f'{byte:08b}'[::-1], 2) for byte in range(256))
NO_GRANULE = 2**64 - 1


def audio_kind(path: Path) -> str:
    '''The format of a file's first bytes behind ID3 tags; "" where it is not known.'''
    with open(path, 'rb') as file:
        head = file.read(16)
        has_id3 = head[:3] == b'ID3'
        file.seek(skip_id3(head))
        head = file.read(16)
    if head[:4] in AUDIO_MAGIC:
        return AUDIO_MAGIC[head[:4]]
    # The last bits of an ADTS header's second byte: layer 0, which MP3 does not have.
    is_adts = len(head) >= 4 and head[0] == 0xFF and head[1] & 0xF6 == 0xF0
    if head[4:8] == b'ftyp' or is_adts:
        return 'AAC'
    # Other bytes may stand before the first frame of an MP3.
    is_mp3 = mp3_frame(int.from_bytes(head[:4], 'big'))[0] or has_id3 or path.suffix.lower() == '.mp3'
    return 'MP3' if is_mp3 else ''


def close_recording(path: Path) -> bytes | None:
    '''A WAV or AU file whose recorder never wrote the size of the sound, as if it had; None for any other file.'''
    with open(path, 'rb') as file:
        head = file.read(1 << 16)
    open_place = 8 if head[:4] == b'.snd' and head[8:12] == bytes(4) else 0
    size_is_open = False
    place = 12
    while head[:4] == b'RIFF' and place + 8 < len(head) and not open_place:
        name, length = struct.unpack_from('<4sI', head, place)
        # Some recorders leave the size of the whole file open as well, or alone.
        if name == b'data':
            size_is_open = int.from_bytes(head[4:8], 'little') == 0
            open_place = 0 if length else place + 4
            break
        # A chunk begins at an even byte.
        place += 8 + length + length % 2
    if not open_place and not size_is_open:
        return None
    raw = bytearray(path.read_bytes())
    if open_place:
        raw[open_place : open_place + 4] = b'\xff' * 4
    if raw[:4] == b'RIFF':
        raw[4:8] = b'\xff' * 4
    return bytes(raw)


def scan_ogg(raw: bytes) -> tuple[list[tuple[bytes, int]], bool, list[str]]:
    '''Find the undamaged pages of an Ogg file's first stream, by their checksums.

    Returns: stretches of them, each behind the stream's headers and with its last granule, the number of samples by
             the codec's own count; whether no page is missing; notes on what is
    Source: RFC 3533
    '''
    headers = b''
    parts: list[tuple[bytearray, int]] = []
    serial = last = -1
    is_whole = True
    is_ended = False
    notes = []
    place = raw.find(b'OggS')
    while place >= 0:
        body = place + 27 + int.from_bytes(raw[place + 26 : place + 27], 'big')
        end = body + sum(raw[place + 27 : body])
        page = raw[place:end]
        if len(page) < 27 or end > len(raw) or ogg_crc(page) != page[22:26]:
            place = raw.find(b'OggS', place + 1)
            continue
        granule, page_serial, sequence = struct.unpack_from('<QII', page, 6)
        if parts and page[5] & 2:
            notes.append(f'another stream follows, {len(raw) - place} bytes long: it is left out')
            break
        place = raw.find(b'OggS', end)
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
        notes.append('the file ends early: its end mark is missing; how much is lost is not known')
    return [(bytes(stretch), granule) for stretch, granule in parts], is_whole, notes


def ogg_crc(page: bytes) -> bytes:
    '''A page's checksum as its header stores it.'''
    # Ogg's CRC is zlib's polynomial with bits in the other order, without zlib's inversions: reversing the bits of
    # every byte and of the result makes zlib compute it.
    crc = zlib.crc32((page[:22] + bytes(4) + page[26:]).translate(REVERSED_BITS), 0xFFFFFFFF) ^ 0xFFFFFFFF
    return crc.to_bytes(4, 'big').translate(REVERSED_BITS)


MP3_RATES = {3: (44100, 48000, 32000), 2: (22050, 24000, 16000), 0: (11025, 12000, 8000)}
MPEG1_KBPS = (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320)
MPEG2_KBPS = (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160)
# Samples that libsndfile takes off the beginning of a stream with a table.
DECODER_DELAY = 529
MP3_TAGS = (b'TAG', b'ID3', b'APE', b'LYR')


@functools.lru_cache(maxsize=4096)
def mp3_frame(header: int) -> tuple[int, int]:
    '''A layer III frame's length in bytes and its stream's kind, by its first 4 bytes; (0, 0) for others.

    All frames of a stream have the same kind: its version, layer and sample rate, and whether it is mono.
    Source: ISO/IEC 11172-3 and 13818-3
    '''
    version = header >> 19 & 3
    layer = header >> 17 & 3
    kbps_index = header >> 12 & 15
    rate_index = header >> 10 & 3
    if header >> 21 != 0x7FF or version == 1 or layer != 1 or kbps_index in (0, 15) or rate_index == 3:
        return 0, 0
    kbps = (MPEG1_KBPS if version == 3 else MPEG2_KBPS)[kbps_index]
    length = (144 if version == 3 else 72) * 1000 * kbps // MP3_RATES[version][rate_index] + (header >> 9 & 1)
    return length, header & 0xFFFE0C00 | (header >> 6 & 3 == 3)


@dataclass(frozen=True)
class Mp3Scan:
    '''The frames of an MP3 file. `runs` are stretches of whole ones: first byte, end and number of frames.

    `stated` is the number of frames by a table (Xing or Info) in the first frame, which holds no sound and is in no
    run; 0 without one.
    '''

    runs: list[tuple[int, int, int]]
    frames: int
    frame_samples: int
    sample_rate: int
    stated: int
    notes: list[str]

    @property
    def seconds(self) -> float:
        '''How long the whole frames last.'''
        return self.frames * self.frame_samples / self.sample_rate


def scan_mp3(raw: bytes) -> Mp3Scan | None:
    '''Find all frames of an MP3 file, also behind damaged bytes.

    A frame counts if another one, a tag or the end of the file follows it: else its end is damaged.
    '''

    def frame_at(place: int) -> tuple[int, int]:
        return mp3_frame(int.from_bytes(raw[place : place + 4], 'big'))

    begin = place = skip_id3(raw)
    runs: list[tuple[int, int, int]] = []
    kind = 0
    others = 0
    while 0 <= place < len(raw):
        length, this_kind = frame_at(place)
        end = place + length
        if length > 0 and kind not in (0, this_kind) and frame_at(end)[1] == this_kind:
            others += 1
        is_alike = length > 0 and kind in (0, this_kind)
        if is_alike and (frame_at(end)[1] == this_kind or end == len(raw) or raw[end : end + 3] in MP3_TAGS):
            kind = this_kind
            start, _, count = runs.pop() if runs and runs[-1][1] == place else (place, place, 0)
            runs.append((start, end, count + 1))
            place = end
        else:
            place = raw.find(b'\xff', place + 1)
    if not runs:
        return None
    notes = []
    if others > 2:
        notes.append(f'{others} frames of another sample rate or number of channels are not read: files were joined')
    first, first_end, count = runs[0]
    # Tags are often padded with zeros.
    skipped = len(raw[begin:first].lstrip(b'\0'))
    if skipped:
        notes.append(f'{skipped} bytes before the first frame are damaged, or no sound')
    # The table states its number of frames if the lowest bit of its flags is set.
    table = re.search(rb'(?:Xing|Info)\0\0\0[\1\3\5\7\x09\x0b\x0d\x0f](....)', raw[first : first + 64], re.DOTALL)
    if table and count > 1:
        runs[0] = (first + frame_at(first)[0], first_end, count - 1)
    last_end = runs[-1][1]
    length, last_kind = frame_at(last_end)
    if not table and last_kind == kind and last_end + length > len(raw):
        notes.append('the file ends early, within a frame; how much is lost is not known')
    version = kind >> 19 & 3
    return Mp3Scan(
        runs=runs,
        frames=sum(count for _, _, count in runs),
        frame_samples=1152 if version == 3 else 576,
        sample_rate=MP3_RATES[version][kind >> 10 & 3],
        stated=int.from_bytes(table[1], 'big') if table else 0,
        notes=notes,
    )


def without_inner_tags(raw: bytes) -> bytes:
    '''Remove the ID3 tags behind the first one, which files that were joined have before each part.'''
    begin = skip_id3(raw)
    parts = [raw[:begin]]
    for tag in re.finditer(rb'(?s)ID3[\2-\4]\0.[\0-\x7f]{4}', raw):
        place = tag.start()
        end = place + skip_id3(raw[place : place + 10])
        if place >= begin and end <= len(raw):
            parts.append(raw[begin:place])
            begin = end
    return b''.join([*parts, raw[begin:]])


def skip_id3(raw: bytes) -> int:
    '''Where the ID3 tags at a file's beginning end.'''
    place = 0
    while raw[place : place + 3] == b'ID3' and place + 10 <= len(raw):
        # Seven bits of each byte count.
        high, second, third, low = raw[place + 6 : place + 10]
        place += 10 + (high << 21 | second << 14 | third << 7 | low)
    return place


def mp3_parts(raw: bytes, scan: Mp3Scan) -> list[tuple[bytes, int]]:
    '''Each run as a stream of its own, with the sample at its end; at last no bytes, with the end by the table.

    Lost frames are counted by their bytes, or by the table, exact where one stretch is lost.
    '''
    frame_bytes = sum(end - start for start, end, _ in scan.runs) / scan.frames
    missing = scan.stated - scan.frames
    parts = []
    frames = 0
    last_end = scan.runs[0][0]
    for start, end, count in scan.runs:
        lost = round((start - last_end) / frame_bytes)
        if lost and len(scan.runs) == 2 and abs(missing - lost) <= max(2, lost // 2):
            lost = missing
        frames += lost + count
        last_end = end
        parts.append((mp3_stream(raw[start:end], count), frames * scan.frame_samples - DECODER_DELAY))
    # A table may count its own frame.
    if scan.stated > frames + 1:
        parts.append((b'', scan.stated * scan.frame_samples))
    return parts


def mp3_stream(frames: bytes, count: int) -> bytes:
    '''Return frames behind a first one whose table states their number.'''
    # No checksum, and the highest bit rate: it leaves room for the table at every sample rate.
    header = bytes([frames[0], frames[1] | 1, frames[2] & 0x0D | 0xE0, frames[3]])
    is_mono = header[3] >> 6 == 3
    is_mpeg1 = header[1] >> 3 & 3 == 3
    # The table stands behind the side information.
    side_bytes = (9, 17, 32)[is_mpeg1 + (not is_mono)]
    table = header + bytes(side_bytes) + b'Info' + struct.pack('>II', 1, count)
    length, _ = mp3_frame(int.from_bytes(header, 'big'))
    return table.ljust(length, b'\0') + frames
