"""Files of sound become the waveform they hold, and every other file becomes a reason."""

import os
import struct
import threading
import wave
from pathlib import Path

import numpy as np
import pytest

from kit.audio.decode import (
    DECODERS,
    Decoder,
    Sound,
    Undecodable,
    decode_file,
    header_duration_s,
    list_audio,
)
from kit.audio.timeout_pool import TimeoutPool
from kit.core.errors import KitError

RATE = 16000
BY_NAME = {decoder.name: decoder for decoder in DECODERS}
LOSSLESS = [
    ("WAV", "PCM_U8", 2**-7),
    ("WAV", "PCM_16", 2**-15),
    ("WAV", "PCM_24", 2**-23),
    ("WAV", "PCM_32", 2**-31),
    ("WAV", "FLOAT", 0.0),
    ("WAV", "DOUBLE", 0.0),
    ("FLAC", "PCM_16", 2**-15),
    ("FLAC", "PCM_24", 2**-23),
]
LOSSY = [("OGG", "VORBIS"), ("OGG", "OPUS"), ("MP3", "MPEG_LAYER_III")]
INT_WIDTHS = {"PCM_U8": 1, "PCM_16": 2, "PCM_24": 3, "PCM_32": 4}


def noise(samples=4001, channels=1, seed=0):
    """Uniform noise that no format clips. Shape: -> (samples, channels)"""
    return np.random.default_rng(seed).uniform(-0.9, 0.9, (samples, channels)).astype(np.float32)


def write_sound(path, values, rate=RATE, kind="WAV", subtype="FLOAT"):
    """Write through soundfile; where this libsndfile lacks the format the test is skipped."""
    soundfile = pytest.importorskip("soundfile")
    if subtype not in soundfile.available_subtypes(kind):
        pytest.skip(f"this libsndfile ({soundfile.__libsndfile_version__}) does not write {kind} {subtype}")
    soundfile.write(path, values, rate, format=kind, subtype=subtype)
    return path


def slow_pcm(path):
    """Slow definition: the mean over channels of every little-endian integer of a WAV, one by one."""
    with wave.open(str(path)) as handle:
        width, channels, frames = handle.getsampwidth(), handle.getnchannels(), handle.getnframes()
        raw = handle.readframes(frames)
    values = []
    for first in range(0, len(raw), width * channels):
        total = 0.0
        for channel in range(channels):
            start = first + channel * width
            number = int.from_bytes(raw[start : start + width], "little", signed=width > 1)
            total += (number - 128) / 128 if width == 1 else number / 2 ** (8 * width - 1)
        values.append(total / channels)
    return np.array(values)


def absent(path):
    """What a decoder that is not installed does."""
    raise ImportError("not installed")


def only_wave():
    """The kit's decoders on a machine where all but the standard library's are missing."""
    others = [Decoder(d.name, absent, absent) for d in DECODERS if d.name != "wave"]
    return [*others, BY_NAME["wave"]]


def untouchable(path):
    """A reader that must not be called."""
    raise AssertionError(f"{path} was decoded")


def reason_of(path, decoders=DECODERS):
    """The reason of a file that must not be heard."""
    heard = decode_file(path, decoders)
    assert isinstance(heard, Undecodable), heard
    assert heard.reason and "\n" not in heard.reason
    return heard.reason


@pytest.mark.parametrize("channels", [1, 2, 5])
@pytest.mark.parametrize("kind, subtype, step", LOSSLESS)
def test_a_lossless_file_is_the_mean_of_its_channels(tmp_path, kind, subtype, step, channels):
    values = noise(channels=channels)
    heard = decode_file(write_sound(tmp_path / "a.bin", values, kind=kind, subtype=subtype))
    assert isinstance(heard, Sound) and heard.sample_rate == RATE and heard.seconds == 4001 / RATE
    assert heard.wave.dtype == np.float32 and heard.wave.shape == (4001,) and heard.wave.flags.c_contiguous
    slow = [sum(float(v) for v in frame) / channels for frame in values]
    np.testing.assert_allclose(heard.wave, slow, atol=step + 1e-6)


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("kind, subtype", LOSSY)
def test_a_lossy_file_keeps_its_sines(tmp_path, kind, subtype, channels):
    rate = 48000
    t = np.arange(rate) / rate
    values = np.stack([0.4 * np.sin(2 * np.pi * 1000 * (c + 1) * t) for c in range(channels)], axis=1)
    path = write_sound(tmp_path / "a.bin", values, rate, kind, subtype)
    heard = decode_file(path)
    assert isinstance(heard, Sound) and heard.sample_rate == rate
    assert abs(len(heard.wave) - rate) <= 2304
    middle = heard.wave[rate // 4 : 3 * rate // 4]
    spectrum = np.abs(np.fft.rfft(middle)) / (len(middle) / 2)
    for c in range(channels):
        assert spectrum[500 * (c + 1)] == pytest.approx(0.4 / channels, rel=0.05)
    duration = header_duration_s(path)
    assert duration == pytest.approx(heard.seconds, abs=0.06)


@pytest.mark.parametrize("subtype", INT_WIDTHS)
@pytest.mark.parametrize("channels", [1, 2, 5])
def test_the_standard_library_reads_the_integers_that_soundfile_reads(tmp_path, subtype, channels):
    path = write_sound(tmp_path / "a.wav", noise(801, channels), subtype=subtype)
    fallback, better = decode_file(path, only_wave()), decode_file(path, [BY_NAME["soundfile"]])
    assert isinstance(fallback, Sound) and isinstance(better, Sound)
    assert fallback.sample_rate == better.sample_rate and fallback.wave.dtype == np.float32
    np.testing.assert_allclose(fallback.wave, better.wave, rtol=0, atol=1.2e-7)
    if channels <= 2:
        np.testing.assert_array_equal(fallback.wave, better.wave)
    np.testing.assert_allclose(fallback.wave, slow_pcm(path), atol=2e-7)
    assert header_duration_s(path, only_wave()) == header_duration_s(path) == 801 / RATE


def test_the_fallback_reads_the_extremes_of_every_width(tmp_path):
    for width in (1, 2, 3, 4):
        low, high = (0, 255) if width == 1 else (-(2 ** (8 * width - 1)), 2 ** (8 * width - 1) - 1)
        with wave.open(str(tmp_path / "a.wav"), "wb") as handle:
            handle.setnchannels(1), handle.setsampwidth(width), handle.setframerate(RATE)
            frames = [n.to_bytes(width, "little", signed=width > 1) for n in (low, high)]
            handle.writeframes(b"".join(frames))
        heard = decode_file(tmp_path / "a.wav", only_wave())
        assert isinstance(heard, Sound)
        assert heard.wave[0] == -1.0 and 0.99 < heard.wave[1] <= 1.0


def test_a_decoder_that_cannot_read_a_file_leaves_it_to_the_next(tmp_path):
    path = write_sound(tmp_path / "a.wav", noise(), subtype="PCM_16")

    def fails(path):
        raise RuntimeError("a line\nand another")

    first = Decoder("first", fails, fails)
    assert isinstance(decode_file(path, [first, *DECODERS]), Sound)
    assert header_duration_s(path, [first, *DECODERS]) == 4001 / RATE
    assert reason_of(path, [first, Decoder("second", absent, absent)]) == "cannot be decoded (first: a line and another)"
    assert header_duration_s(path, [first]) is None
    assert "soundfile" in reason_of(path, [Decoder("first", absent, absent)])


def test_the_first_decoder_that_can_read_a_file_is_the_only_one_that_does(tmp_path):
    path = write_sound(tmp_path / "a.wav", noise(), subtype="PCM_16")
    stranger = Decoder("stranger", untouchable, untouchable)
    assert isinstance(decode_file(path, [DECODERS[0], stranger]), Sound)
    assert header_duration_s(path, [DECODERS[0], stranger]) == 4001 / RATE


def test_the_duration_is_read_from_the_header_alone(tmp_path):
    path = write_sound(tmp_path / "a.wav", noise(), subtype="PCM_16")
    readers = [Decoder(d.name, untouchable, d.duration_s) for d in DECODERS]
    assert header_duration_s(path, readers) == 4001 / RATE


def test_a_file_longer_than_one_block_is_whole(tmp_path):
    values = noise((1 << 20) + 4321, 2)
    heard = decode_file(write_sound(tmp_path / "a.wav", values, subtype="PCM_16"))
    assert isinstance(heard, Sound)
    np.testing.assert_allclose(heard.wave, values.mean(axis=1), atol=2**-14)


def test_what_is_no_file_of_sound_is_a_reason(tmp_path):
    (tmp_path / "empty.wav").touch()
    (tmp_path / "text.wav").write_text("fname,labels\n")
    (tmp_path / "folder.wav").mkdir()
    (tmp_path / "nowhere.wav").symlink_to(tmp_path / "gone.wav")
    words = {
        "missing": "No such file",
        "folder": "not a regular",
        "empty": "empty",
        "nowhere": "No such file",
    }
    for name, word in words.items():
        path = tmp_path / f"{name}.wav"
        assert word in reason_of(path), name
        assert header_duration_s(path) is None
    assert "soundfile" in reason_of(tmp_path / "text.wav")
    assert reason_of(tmp_path / "text.wav", only_wave()).startswith("cannot be decoded (wave: ")
    assert header_duration_s(tmp_path / "text.wav") is None


def test_a_truncated_flac_is_a_reason_and_not_silence(tmp_path):
    whole = write_sound(tmp_path / "a.flac", noise(50000), kind="FLAC", subtype="PCM_16").read_bytes()
    for share in (0.9, 0.5, 0.1):
        path = tmp_path / "cut.flac"
        path.write_bytes(whole[: int(share * len(whole))])
        assert "soundfile" in reason_of(path)
    (tmp_path / "cut.flac").write_bytes(whole[:30])
    reason_of(tmp_path / "cut.flac")


@pytest.mark.parametrize("decoders", [DECODERS, only_wave()], ids=["soundfile", "wave"])
@pytest.mark.parametrize("channels, subtype", [(1, "PCM_16"), (2, "PCM_24")])
def test_a_truncated_wav_is_what_is_left_of_it_or_a_reason(tmp_path, decoders, channels, subtype):
    path = write_sound(tmp_path / "a.wav", noise(5000, channels), subtype=subtype)
    whole, raw = decode_file(path), path.read_bytes()
    assert isinstance(whole, Sound)
    for size in (len(raw) - 1, len(raw) // 2 + 1, 61, 44, 43, 20, 5, 1):
        path.write_bytes(raw[:size])
        heard = decode_file(path, decoders)
        if isinstance(heard, Sound):
            assert 0 < len(heard.wave) < 5000
            np.testing.assert_array_equal(heard.wave, whole.wave[: len(heard.wave)])
        else:
            assert heard.reason and size < 200


@pytest.mark.parametrize("kind, subtype", LOSSY)
def test_a_truncated_lossy_file_is_a_shorter_sound_or_a_reason(tmp_path, kind, subtype):
    path = write_sound(tmp_path / "a.bin", noise(48000), 48000, kind, subtype)
    raw = path.read_bytes()
    for size in (2 * len(raw) // 3, 100, 3):
        path.write_bytes(raw[:size])
        heard = decode_file(path)
        assert isinstance(heard, Undecodable) or 0 < len(heard.wave) < 48000


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf, 3e38])
def test_a_sample_that_is_no_sound_makes_the_file_undecodable(tmp_path, wrong):
    values = noise()
    values[1234] = wrong
    path = write_sound(tmp_path / "a.wav", values)
    assert "samples" in reason_of(path)
    assert header_duration_s(path) == 4001 / RATE


def test_a_float64_beyond_float32_makes_the_file_undecodable(tmp_path):
    values = noise().astype(np.float64)
    values[7] = 1e300
    assert "samples" in reason_of(write_sound(tmp_path / "a.wav", values, subtype="DOUBLE"))


@pytest.mark.parametrize("kind, subtype", [("WAV", "PCM_16"), ("FLAC", "PCM_16"), ("OGG", "VORBIS")])
def test_a_file_of_no_samples_says_so(tmp_path, kind, subtype):
    path = write_sound(tmp_path / "a.bin", np.zeros((0, 1), np.float32), kind=kind, subtype=subtype)
    reason_of(path)
    assert not header_duration_s(path)


def test_a_file_of_one_sample_is_heard(tmp_path):
    for decoders in (DECODERS, only_wave()):
        path = write_sound(tmp_path / "a.wav", np.array([0.5], np.float32), subtype="PCM_16")
        heard = decode_file(path, decoders)
        assert isinstance(heard, Sound) and heard.wave.tolist() == [0.5]


def wav_header(data_bytes, rate=RATE, channels=1, width=2):
    """The 44 bytes that promise so many bytes of PCM."""
    block = channels * width
    form = struct.pack("<4sI4s4sIHHIIHH", b"RIFF", min(data_bytes + 36, 2**32 - 1), b"WAVE", b"fmt ", 16, 1,
                       channels, rate, rate * block, block, 8 * width)  # fmt: skip
    return form + struct.pack("<4sI", b"data", data_bytes)


def test_a_header_that_promises_days_is_refused_before_memory_is_taken(tmp_path):
    path = tmp_path / "a.wav"
    path.write_bytes(wav_header(2**32 - 40, rate=1) + bytes(2000))
    assert "hours" in reason_of(path, only_wave())
    with open(tmp_path / "sparse.wav", "wb") as handle:
        handle.write(wav_header(2**31, rate=100))
        handle.truncate(2**31 + 44)
    assert "hours" in reason_of(tmp_path / "sparse.wav")
    duration = header_duration_s(tmp_path / "sparse.wav")
    assert duration is not None and duration > 100 * 3600


def test_a_header_with_a_rate_of_zero_is_a_reason(tmp_path):
    path = tmp_path / "a.wav"
    path.write_bytes(wav_header(2000, rate=0) + bytes(2000))
    for decoders in (DECODERS, only_wave()):
        reason_of(path, decoders)
        assert header_duration_s(path, decoders) is None
    for rate in (0, -1, float("inf"), float("nan")):
        odd = Decoder("odd", lambda path, rate=rate: Sound(np.zeros(3, np.float32), rate), untouchable)
        assert "rate" in reason_of(path, [odd])


@pytest.mark.parametrize(
    "given", [None, np.float32(0.5), np.array(0.5), np.zeros((2, 3)), np.zeros(3, int)], ids=str
)
def test_a_decoder_that_gives_no_waveform_is_a_reason(tmp_path, given):
    path = write_sound(tmp_path / "a.wav", noise(), subtype="PCM_16")
    reason_of(
        path, [Decoder("odd", lambda path: given if given is None else Sound(given, RATE), untouchable)]
    )


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_a_named_pipe_does_not_block(tmp_path):
    pipe = tmp_path / "pipe.wav"
    os.mkfifo(pipe)
    link = tmp_path / "link.wav"
    link.symlink_to(pipe)
    answers = []

    def ask():
        answers.extend([decode_file(pipe), decode_file(link), header_duration_s(pipe)])

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(timeout=20)
    assert len(answers) == 3, "opening a pipe blocked"
    assert "regular" in answers[0].reason and "regular" in answers[1].reason and answers[2] is None


def test_a_file_that_may_not_be_read_is_a_reason(tmp_path):
    path = write_sound(tmp_path / "a.wav", noise())
    path.chmod(0)
    if os.access(path, os.R_OK):
        pytest.skip("this user may read everything")
    reason_of(path)
    assert header_duration_s(path) is None


NAMES = [
    "ünïcödé 音 🐦.wav",
    "with space, comma 'quote'.WAV",
    "UPPER.FLAC",
    "-dash.Ogg",
    "000316.wav",
    "a.b.c.wav",
]


@pytest.mark.parametrize("name", NAMES)
def test_any_name_can_be_read_and_is_listed(tmp_path, name):
    kind = {"wav": "WAV", "flac": "FLAC", "ogg": "WAV"}[name.rpartition(".")[2].lower()]
    path = write_sound(tmp_path / name, noise(), kind=kind, subtype="PCM_16")
    heard = decode_file(path)
    assert isinstance(heard, Sound) and len(heard.wave) == 4001
    assert header_duration_s(path) == 4001 / RATE
    assert list_audio(tmp_path) == [path]


def name_in_bytes(tmp_path):
    """A file whose name is no UTF-8, as archives from elsewhere leave them."""
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.flac"))
    source = write_sound(tmp_path / "a.flac", noise(), kind="FLAC", subtype="PCM_16")
    try:
        os.rename(source, path)
    except (OSError, UnicodeError):
        pytest.skip("this file system wants names in UTF-8")
    return path


def test_a_name_that_is_no_utf8_never_raises(tmp_path):
    path = name_in_bytes(tmp_path)
    assert list_audio(tmp_path) == [path]
    assert isinstance(decode_file(path), Sound | Undecodable)


def test_a_name_that_is_no_utf8_can_be_read(tmp_path):
    path = name_in_bytes(tmp_path)
    assert isinstance(decode_file(path), Sound)
    assert header_duration_s(path) == 4001 / RATE


def test_a_name_too_long_for_the_system_is_a_reason(tmp_path):
    path = tmp_path / ("x" * 5000 + ".wav")
    reason_of(path)
    assert header_duration_s(path) is None


def test_a_name_with_a_null_byte_is_a_reason(tmp_path):
    path = tmp_path / "a\0b.wav"
    reason_of(path)
    assert header_duration_s(path) is None


def test_list_audio_finds_nested_files_in_order_and_no_hidden_ones(tmp_path):
    places = ["b.wav", "a.mp3", "z/c.FLAC", "A.wav", "y/deep/er/d.Opus", ".hidden.wav", ".cache/e.wav",
              "notes.txt", "wav", "y/f.wav.txt", "z/.part.wav"]  # fmt: skip
    for place in places:
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / place).touch()
    (tmp_path / "looks.wav").mkdir()
    (tmp_path / "looks.wav" / "g.wav").touch()
    found = [path.relative_to(tmp_path).as_posix() for path in list_audio(tmp_path)]
    assert sorted(found) == ["A.wav", "a.mp3", "b.wav", "looks.wav/g.wav", "y/deep/er/d.Opus", "z/c.FLAC"]
    assert list_audio(tmp_path) == sorted(list_audio(tmp_path))


def test_list_audio_follows_links_and_takes_a_hidden_folder_that_is_named(tmp_path):
    (tmp_path / ".data" / "inner").mkdir(parents=True)
    (tmp_path / ".data" / "inner" / "a.wav").touch()
    (tmp_path / "clips").symlink_to(tmp_path / ".data")
    assert list_audio(tmp_path / "clips") == [tmp_path / "clips" / "inner" / "a.wav"]
    assert list_audio(tmp_path) == [tmp_path / "clips" / "inner" / "a.wav"]
    assert list_audio(tmp_path / ".data") == [tmp_path / ".data" / "inner" / "a.wav"]


def test_a_folder_under_two_names_is_listed_under_the_first(tmp_path):
    for name in "hgfedcb":
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.wav").touch()
        (tmp_path / f"a{name}").symlink_to(tmp_path / name)
    assert list_audio(tmp_path) == [tmp_path / f"a{name}" / "a.wav" for name in "bcdefgh"]


def test_a_link_to_a_parent_lists_each_file_once(tmp_path):
    (tmp_path / "a.wav").touch()
    (tmp_path / "again").symlink_to(tmp_path)
    assert list_audio(tmp_path) == [tmp_path / "a.wav"]


def test_list_audio_of_nothing_is_an_empty_list_and_of_a_wrong_folder_an_error(tmp_path):
    assert list_audio(tmp_path) == []
    with pytest.raises(KitError, match=r"nowhere does not exist: give the folder"):
        list_audio(tmp_path / "nowhere")
    (tmp_path / "a.wav").touch()
    with pytest.raises(KitError, match=r"is a file, not a folder"):
        list_audio(tmp_path / "a.wav")


def test_threads_decode_what_one_call_decodes(tmp_path):
    paths = [write_sound(tmp_path / f"{i}.wav", noise(500 + i, seed=i), subtype="PCM_16") for i in range(12)]
    paths.insert(5, tmp_path / "missing.wav")
    crew = TimeoutPool(decode_file, lambda path: Undecodable("given up"), 4)
    heard = [crew.result(slot) for slot in [crew.submit(path) for path in paths]]
    crew.shutdown()
    for path, sound in zip(paths, heard, strict=True):
        alone = decode_file(path)
        assert type(sound) is type(alone)
        if isinstance(sound, Sound) and isinstance(alone, Sound):
            np.testing.assert_array_equal(sound.wave, alone.wave)
