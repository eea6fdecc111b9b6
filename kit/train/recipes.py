"""The named recipes, each with its source and its small form."""

from typing import Any

from kit.audio.frontend import FrontendConfig
from kit.audio.windows import InferenceConfig
from kit.core.errors import choose
from kit.train.recipe import Recipe, System

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
            channels=("log", "delta", "delta2"), normalize="constants", std=100.0,
        ),
        network={"family": "skip-attention", "head": {"hidden": 256}},
        inference=InferenceConfig(mode="windows", window_s=256 * 690 / 44100, hop_s=64 * 690 / 44100, pool="mean"),
    ),
    "axis-pool": System(
        source=f"second place, {FREESOUND}",
        frontend=FrontendConfig(
            n_fft=1024, hop_length=512, n_mels=64, normalize="peak", top_db=80.0, extra_rows=("wave_stats", "clip_length"),
        ),
        network={"family": "axis-pool"},
        inference=InferenceConfig(mode="windows", window_s=5.0, hop_s=2.5, pool="mean"),
    ),
    "max-pyramid-mel": System(
        source=f"third place, {FREESOUND}",
        frontend=FrontendConfig(
            n_fft=2048, hop_length=1024, n_mels=128, f_min_hz=5.0, power=1, log="ln", log_offset=1e-4,
            pad_mode="reflect", channels=("log", "coordinate"),
        ),
        network={"family": "max-pyramid", "dims": 2, "blocks": 5, "width": 100, "growth": 1.5},
        inference=InferenceConfig(mode="full"),
    ),
    "max-pyramid-stft": System(
        source=f"third place, {FREESOUND}",
        frontend=FrontendConfig(
            kind="stft", n_fft=256, hop_length=128, f_min_hz=0.0, power=1, log="ln", log_offset=1e-4,
            pad_mode="reflect",
        ),
        network={"family": "max-pyramid", "dims": 1, "blocks": 7, "width": 128, "growth": 1.5},
        inference=InferenceConfig(mode="full", max_frames=65536),
    ),
    "window-snr": System(
        source=f"signal-to-noise listening, {FREESOUND}",
        frontend=FrontendConfig(top_db=80.0, normalize="minmax"),
        network={"family": "max-pyramid", "width": 48, "head": {"pool": "mean-max"}},
        inference=InferenceConfig(mode="windows", window_s=2.0, hop_s=1.0, pool="snr"),
    ),
    "two-stage": System(
        source=f"windows, then a picture of their scores, {FREESOUND}",
        frontend=FrontendConfig(
            n_fft=1024, hop_length=512, n_mels=64, top_db=80.0, normalize="minmax", reference="window",
            resolutions=((2048, 512), (4096, 512)), image_size=(224, 224),
        ),
        network={"family": "timm", "name": "resnet18.a1_in1k"},
        inference=InferenceConfig(mode="windows", window_s=2.0, hop_s=1.0, pool="mean", pad_mode="min"),
    ),
    "freq-coord": System(
        source=f"second place, {RFCX}",
        frontend=FrontendConfig(
            sample_rate=48000, n_fft=4096, hop_length=512, n_mels=256, top_db=80.0, normalize="clip",
            reference="window", channels=("log", "coordinate01"),
        ),
        network={"family": "timm", "name": "tf_efficientnet_b3.ns_jft_in1k"},
        inference=InferenceConfig(mode="windows", window_s=4.0, hop_s=0.5, pool="max"),
    ),
    "freq-crop": System(
        source=f"thirty-second place, {RFCX}",
        frontend=FrontendConfig(
            sample_rate=48000, n_fft=4096, n_mels=32, top_db=80.0, normalize="clip", reference="window",
            bands_hz=RFCX_BANDS_HZ,
        ),
        network={"family": "freq-crop", "backbone": {"family": "timm", "name": "tf_efficientnet_b0.ns_jft_in1k"}},
        inference=InferenceConfig(mode="full"),
    ),
}  # fmt: skip


# What each training adds to its system, as published; what write-ups leave open is our reading.
DOUBTED: dict[str, Any] = {"scored": False}
DRAWN = {"share": 1.0, **DOUBTED}
TRUSTED = {"curated": {}, "noisy": DOUBTED}
BOOTSTRAPPED = {"weight": 0.5, "loss": "bootstrap", "loss_settings": {"trust": 0.7}, **DOUBTED}
LINEAR = {"domain": "spec", "convex": True, "labels": "weighted"}
BY_BOXES: dict[str, Any] = {
    "average_over": "labels", "epochs": 60,
    "optim": {"schedule": "cosine", "lr_start": 1e-3, "lr_peak": 1e-3, "weight_decay": 1e-2},
}  # fmt: skip
PYRAMID: dict[str, Any] = {
    "loss": "lsep", "mixup": {"p": 0.5}, "epochs": 120,
    "wave_augment": {"reverb_p": 0.25, "pitch_p": 0.5, "tempo_p": 0.5, "overdrive_p": 0.75},
    "sources": TRUSTED,
    "self_training": {"methods": ["agreement"], "top_k": [0.05, 0.1, 0.15, 0.2, 0.25]},
}  # fmt: skip
TRAININGS: dict[str, dict[str, Any]] = {
    "skip-attention": {
        "loss": "bce", "auxiliary": [0.4, 0.2, 0.1], "crop_s": 256 * 690 / 44100,
        "spec_augment": {
            "crop_p": 0.33, "mask_p": 0.5, "time_masks": 2, "freq_masks": 2, "time_share": 0.2, "freq_share": 0.15,
            "mask_fill": "min",
        },
        "mixup": {"p": 0.8, "low": 0.0, "high": 0.5, "fade_p": 0.6, **LINEAR},
        "sources": {
            "noisy": {"share": 0.01, **BOOTSTRAPPED}, "corrected": {"share": 0.42, **BOOTSTRAPPED},
            "curated": {"share": 0.57, "weight": 0.5},
        },
        "optim": {"lr_start": 9e-4, "lr_peak": 9e-4, "schedule": "plateau", "patience": 6, "factor": 0.6},
        "validate_every": 1, "keep": "best", "no_augment_epochs": 0, "epochs": 150,
    },
    "axis-pool": {
        "loss": "bce", "loss_settings": {"smoothing": 0.01}, "crop_s": 5.0,
        "mixup": {"p": 0.6, "low": 0.3, "high": 0.3, **LINEAR},
        "mixup_until": 0.5, "no_augment_epochs": 0, "epochs": 40,
        "sources": TRUSTED,
        "optim": {
            "kind": "nadam", "lr_start": 5e-4, "lr_peak": 5e-4, "schedule": "steps",
            "milestones": [14 / 40, 21 / 40, 28 / 40],
        },
    },
    "max-pyramid-mel": PYRAMID,
    "max-pyramid-stft": PYRAMID,
    "window-snr": {
        "loss": "bce", "crop_s": 2.0, "no_augment_epochs": 0, "epochs": 60,
        "mixup": {"p": 0.5, "beta": 0.4, **LINEAR},
        "spec_augment": {"mask_p": 0.5, "time_share": 0.2, "freq_share": 0.15},
        "sources": {
            "curated": {"share": 1.0}, "noisy": {"share": 0.0, **DOUBTED}, "set1": DRAWN, "set2": DRAWN,
        },
        "weight_by_share": False, "self_training": {"methods": ["snr"], "top_k": [0.1]},
    },
    "two-stage": {
        "loss": "bce", "crop_s": 2.0, "mixup": {"p": 0.0}, "no_augment_epochs": 0, "epochs": 40,
        "spec_augment": {"mask_p": 0.3}, "sampling": {"balance": "seconds", "rare_boost": 1.0},
        "image_sizes": [[64, 64], [128, 128], [224, 224]],
        "sources": {
            "curated": {"share": 1.0}, "noisy": DRAWN, "whole": {"share": 0.0, **DOUBTED},
        },
        "optim": {"lr_start": 1e-5, "lr_peak": 1e-3, "layer_decay": 0.1, "weight_decay": 1e-2},
        "self_training": {"methods": ["curate"]},
    },
    "freq-coord": {
        **BY_BOXES, "loss": "bce", "crop_s": 4.0, "no_augment_epochs": 0,
        "wave_augment": {"gain_p": 0.5, "noise_p": 0.5},
        "spec_augment": {"warp_p": 0.3, "outside_p": 0.5},
        "mixup": {"p": 0.5, **LINEAR, "low": 0.5, "high": 0.5, "labels": "sum", "masks": "either"},
        "sampling": {"steps": 200}, "n_folds": 4,
        "self_training": {"iterations": 4, "methods": ["windows"]},
    },
    "freq-crop": {
        **BY_BOXES, "loss": "bootstrap", "loss_settings": {"on": "unknown", "trust": 0.1, "detach": False},
        "no_augment_epochs": 5,
        "wave_augment": {"gain_p": 0.5, "shift_p": 0.5, "noise_p": 0.5, "pitch_p": 0.2, "tempo_p": 0.2},
        "spec_augment": {"mask_p": 0.3},
        "mixup": {"p": 0.5, "domain": "wave", "partners": "sure-negatives"},
        "self_training": {"iterations": 2, "methods": ["windows"]}, "finetune_loss": "lsep", "finetune_epochs": 10,
    },
}  # fmt: skip
RECIPES = {
    name: Recipe.from_dict({**SYSTEMS[name].to_dict(), "name": name, **training})
    for name, training in TRAININGS.items()
}
# Narrower networks, coarser pictures, fewer epochs, and no waveform changes that cost more than the network.
SMALL_PYRAMID = [
    "network.head.dropout=0.2",
    "epochs=30",
    "no_augment_epochs=5",
    "batch_size=16",
    "wave_augment={}",
]
SMALL_BOXES = [
    "frontend.sample_rate=22050", "frontend.n_fft=2048", "frontend.hop_length=1024", "batch_size=16",
    "sampling.steps=50", "epochs=12", "validate_every=12", "self_training.iterations=2", "optim.lr_start=3e-3",
    "optim.lr_peak=3e-3",
]  # fmt: skip
SMALL = {
    "skip-attention": [
        "frontend.n_mels=64", "network.width=8", "network.ratio=8", "network.head.hidden=32", "inference.hop_s=2.0",
        "epochs=30", "batch_size=16", "optim.patience=2", "validate_every=2",
    ],
    "axis-pool": ["network.width=8", "epochs=15", "batch_size=16", "validate_every=15"],
    "max-pyramid-mel": ["network.width=16", "crop_s=4.0", *SMALL_PYRAMID],
    "max-pyramid-stft": ["network.blocks=6", "network.width=32", "crop_s=3.0", *SMALL_PYRAMID],
    "window-snr": ["frontend.n_mels=64", "network.width=12", "epochs=30", "batch_size=16"],
    "two-stage": [
        "frontend.image_size=[64,64]", "image_sizes=[[32,32],[48,48],[64,64]]", "epochs=15", "batch_size=16",
        "validate_every=15",
    ],
    "freq-coord": [
        *SMALL_BOXES, "frontend.n_mels=64", 'network={"family":"max-pyramid","width":12}',
        "wave_augment={}", "mixup.labels=union", "self_training.prior_shift=true", "self_training.teachers=3", "sampling.sample_by_probs=true",
    ],
    "freq-crop": [
        *SMALL_BOXES, "frontend.sample_rate=32000", "wave_augment.pitch_p=0", "wave_augment.tempo_p=0", "sampling.steps=25",
        "crop_s=3.0", "epochs=16", "finetune_epochs=3", "no_augment_epochs=2", "self_training.iterations=1",
        'network={"family":"freq-crop","backbone":{"family":"max-pyramid","width":8,"blocks":4}}',
    ],
}  # fmt: skip


def find_recipe(name: str, small: bool = False, overrides: list[str] | None = None) -> Recipe:
    """A named recipe, its small variant where asked, with key=value overrides.

    Errors: KitError for an unknown recipe or setting, with the right names
    """
    recipe = choose("recipe", name, RECIPES)
    return recipe.override(SMALL[name] if small else []).override(overrides or [])
