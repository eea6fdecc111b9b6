"""Systems of the winners by name: front end, network and way of listening, each with its source."""

from kit.learn.recipe import System
from kit.sound.frontend import FrontendConfig
from kit.sound.windows import ListeningConfig

FREESOUND = "Freesound Audio Tagging 2019"
RFCX = "RFCX Species Audio Detection 2021"
# Hertz: the true boxes of RFCX's 24 species, 100 Hz wider on both sides.
RFCX_BANDS_HZ = (
    (5806, 8350), (3744, 5725), (369, 3100), (931, 2913), (2244, 4319), (4681, 11350), (463, 4506), (4588, 11538),
    (3650, 5631), (744, 5819), (847, 10953), (1709, 5785), (463, 3381), (0, 1506), (2431, 6569), (0, 1225),
    (2994, 4694), (1213, 7506), (3088, 5163), (181, 2913), (1213, 6194), (3181, 4225), (10588, 13788), (6360, 11728),
)  # fmt: skip
SYSTEMS = {
    "skip-attention": System(
        source=f"first place, {FREESOUND}",
        frontend=FrontendConfig(
            n_fft=2560, hop_length=690, n_mels=128, f_min_hz=20.0, f_max_hz=22050.0, top_db=80.0, trim_db=60.0,
            channels=("log", "delta", "delta2"), normalise="constants", std=100.0,
        ),
        network={"family": "skip-attention", "head": {"hidden": 256}},
        listening=ListeningConfig(mode="windows", window_s=256 * 690 / 44100, hop_s=64 * 690 / 44100, pool="mean"),
    ),
    "axis-pool": System(
        source=f"second place, {FREESOUND}",
        frontend=FrontendConfig(
            n_fft=1024, hop_length=512, n_mels=64, normalise="peak", top_db=80.0, side=("wave_stats", "clip_length"),
        ),
        network={"family": "axis-pool"},
        listening=ListeningConfig(mode="windows", window_s=5.0, hop_s=2.5, pool="mean"),
    ),
    "max-pyramid-mel": System(
        source=f"third place, {FREESOUND}",
        frontend=FrontendConfig(
            n_fft=2048, hop_length=1024, n_mels=128, f_min_hz=5.0, power=1, log="ln", log_offset=1e-4,
            pad_mode="reflect", channels=("log", "coordinate"),
        ),
        network={"family": "max-pyramid", "dims": 2, "blocks": 5, "width": 100, "growth": 1.5},
        listening=ListeningConfig(mode="full"),
    ),
    "max-pyramid-stft": System(
        source=f"third place, {FREESOUND}",
        frontend=FrontendConfig(
            kind="stft", n_fft=256, hop_length=128, f_min_hz=0.0, power=1, log="ln", log_offset=1e-4,
            pad_mode="reflect",
        ),
        network={"family": "max-pyramid", "dims": 1, "blocks": 7, "width": 128, "growth": 1.5},
        listening=ListeningConfig(mode="full", max_frames=65536),
    ),
    "window-snr": System(
        source=f"signal-to-noise listening, {FREESOUND}",
        frontend=FrontendConfig(top_db=80.0, normalise="minmax"),
        network={"family": "max-pyramid", "width": 48, "head": {"pool": "mean-max"}},
        listening=ListeningConfig(mode="windows", window_s=2.0, hop_s=1.0, pool="snr"),
    ),
    "two-stage": System(
        source=f"windows, then a picture of their scores, {FREESOUND}",
        frontend=FrontendConfig(
            n_fft=1024, hop_length=512, n_mels=64, top_db=80.0, normalise="minmax", reference="window",
            resolutions=((2048, 512), (4096, 512)), image_size=(224, 224),
        ),
        network={"family": "timm", "name": "resnet18.a1_in1k"},
        listening=ListeningConfig(mode="windows", window_s=2.0, hop_s=1.0, pool="mean", fill="floor"),
    ),
    "freq-coord": System(
        source=f"second place, {RFCX}",
        frontend=FrontendConfig(
            sample_rate=48000, n_fft=4096, hop_length=512, n_mels=256, top_db=80.0, normalise="clip",
            reference="window", channels=("log", "coordinate01"),
        ),
        network={"family": "timm", "name": "tf_efficientnet_b3.ns_jft_in1k"},
        listening=ListeningConfig(mode="windows", window_s=4.0, hop_s=0.5, pool="max"),
    ),
    "freq-crop": System(
        source=f"thirty-second place, {RFCX}",
        frontend=FrontendConfig(
            sample_rate=48000, n_fft=4096, n_mels=32, top_db=80.0, normalise="clip", reference="window",
            bands_hz=RFCX_BANDS_HZ,
        ),
        network={"family": "freq-crop", "backbone": {"family": "timm", "name": "tf_efficientnet_b0.ns_jft_in1k"}},
        listening=ListeningConfig(mode="full"),
    ),
}  # fmt: skip
