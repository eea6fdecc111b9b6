"""The named recipes, each with its source, and their small variants for two cores."""

from typing import Any

from kit.core.errors import choose
from kit.learn.recipe import Recipe
from kit.presets import SYSTEMS

# What each training adds to its system, as published; what write-ups leave open is our reading.
DOUBTED: dict[str, Any] = {"scored": False}
DRAWN = {"share": 1.0, **DOUBTED}
TRUSTED = {"curated": {}, "noisy": DOUBTED}
BOOTSTRAPPED = {"weight": 0.5, "loss": "bootstrap", "loss_settings": {"trust": 0.7}, **DOUBTED}
LINEAR = {"domain": "picture", "convex": True, "labels": "weighted"}
BY_BOXES: dict[str, Any] = {
    "average_over": "labels", "epochs": 60,
    "optim": {"schedule": "cosine", "lr_start": 1e-3, "lr_peak": 1e-3, "weight_decay": 1e-2},
}  # fmt: skip
PYRAMID: dict[str, Any] = {
    "loss": "lsep", "mix": {"p": 0.5}, "epochs": 120,
    "wave": {"reverb_p": 0.25, "pitch_p": 0.5, "tempo_p": 0.5, "overdrive_p": 0.75},
    "sources": TRUSTED,
    "relabel": {"methods": ["agreement"], "top_k": [0.05, 0.1, 0.15, 0.2, 0.25]},
}  # fmt: skip
TRAININGS: dict[str, dict[str, Any]] = {
    "skip-attention": {
        "loss": "bce", "auxiliary": [0.4, 0.2, 0.1], "crop_s": 256 * 690 / 44100,
        "picture": {
            "crop_p": 0.33, "mask_p": 0.5, "time_masks": 2, "freq_masks": 2, "time_share": 0.2, "freq_share": 0.15,
            "fill": "min",
        },
        "mix": {"p": 0.8, "low": 0.0, "high": 0.5, "fade_p": 0.6, **LINEAR},
        "sources": {
            "noisy": {"share": 0.01, **BOOTSTRAPPED}, "corrected": {"share": 0.42, **BOOTSTRAPPED},
            "curated": {"share": 0.57, "weight": 0.5},
        },
        "optim": {"lr_start": 9e-4, "lr_peak": 9e-4, "schedule": "plateau", "patience": 6, "factor": 0.6},
        "validate_every": 1, "keep": "best", "plain_epochs": 0, "epochs": 150,
    },
    "axis-pool": {
        "loss": "bce", "loss_settings": {"smoothing": 0.01}, "crop_s": 5.0,
        "mix": {"p": 0.6, "low": 0.3, "high": 0.3, **LINEAR},
        "mix_until": 0.5, "plain_epochs": 0, "epochs": 40,
        "sources": TRUSTED,
        "optim": {
            "kind": "nadam", "lr_start": 5e-4, "lr_peak": 5e-4, "schedule": "steps",
            "milestones": [14 / 40, 21 / 40, 28 / 40],
        },
    },
    "max-pyramid-mel": PYRAMID,
    "max-pyramid-stft": PYRAMID,
    "window-snr": {
        "loss": "bce", "crop_s": 2.0, "plain_epochs": 0, "epochs": 60,
        "mix": {"p": 0.5, "beta": 0.4, **LINEAR},
        "picture": {"mask_p": 0.5, "time_share": 0.2, "freq_share": 0.15},
        "sources": {
            "curated": {"share": 1.0}, "noisy": {"share": 0.0, **DOUBTED}, "set1": DRAWN, "set2": DRAWN,
        },
        "by_share": False, "relabel": {"methods": ["snr"], "top_k": [0.1]},
    },
    "two-stage": {
        "loss": "bce", "crop_s": 2.0, "mix": {"p": 0.0}, "plain_epochs": 0, "epochs": 40,
        "picture": {"mask_p": 0.3}, "sampling": {"balance": "seconds", "heavier": 1.0},
        "image_sizes": [[64, 64], [128, 128], [224, 224]],
        "sources": {
            "curated": {"share": 1.0}, "noisy": DRAWN, "whole": {"share": 0.0, **DOUBTED},
        },
        "optim": {"lr_start": 1e-5, "lr_peak": 1e-3, "depth_rate": 0.1, "weight_decay": 1e-2},
        "relabel": {"methods": ["curate"]},
    },
    "freq-coord": {
        **BY_BOXES, "loss": "bce", "crop_s": 4.0, "plain_epochs": 0,
        "wave": {"gain_p": 0.5, "noise_p": 0.5},
        "picture": {"warp_p": 0.3, "outside_p": 0.5},
        "mix": {"p": 0.5, **LINEAR, "low": 0.5, "high": 0.5, "labels": "sum", "masks": "either"},
        "sampling": {"steps": 200}, "n_folds": 4,
        "relabel": {"rounds": 4, "methods": ["windows"]},
    },
    "freq-crop": {
        **BY_BOXES, "loss": "bootstrap", "loss_settings": {"on": "unknown", "trust": 0.1, "detach": False},
        "plain_epochs": 5,
        "wave": {"gain_p": 0.5, "roll_p": 0.5, "noise_p": 0.5, "pitch_p": 0.2, "tempo_p": 0.2},
        "picture": {"mask_p": 0.3},
        "mix": {"p": 0.5, "domain": "wave", "partners": "sure-negatives"},
        "relabel": {"rounds": 2, "methods": ["windows"]}, "late_loss": "lsep", "late_epochs": 10,
    },
}  # fmt: skip
RECIPES = {
    name: Recipe.from_dict({**SYSTEMS[name].to_dict(), "name": name, **training})
    for name, training in TRAININGS.items()
}
# Narrower networks, coarser pictures, fewer epochs, and no waveform changes that cost more than the network.
SMALL_PYRAMID = ["network.head.dropout=0.2", "epochs=30", "plain_epochs=5", "batch_size=16", "wave={}"]
SMALL_BOXES = [
    "frontend.sample_rate=22050", "frontend.n_fft=2048", "frontend.hop_length=1024", "batch_size=16",
    "sampling.steps=50", "epochs=12", "validate_every=12", "relabel.rounds=2", "optim.lr_start=3e-3",
    "optim.lr_peak=3e-3",
]  # fmt: skip
SMALL = {
    "skip-attention": [
        "frontend.n_mels=64", "network.width=8", "network.ratio=8", "network.head.hidden=32", "listening.hop_s=2.0",
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
        "wave={}", "mix.labels=union", "relabel.prior_shift=true", "relabel.teachers=3", "sampling.by_belief=true",
    ],
    "freq-crop": [
        *SMALL_BOXES, "frontend.sample_rate=32000", "wave.pitch_p=0", "wave.tempo_p=0", "sampling.steps=25",
        "crop_s=3.0", "epochs=16", "late_epochs=3", "plain_epochs=2", "relabel.rounds=1",
        'network={"family":"freq-crop","backbone":{"family":"max-pyramid","width":8,"blocks":4}}',
    ],
}  # fmt: skip


def find_recipe(name: str, small: bool = False, overrides: list[str] | None = None) -> Recipe:
    """A named recipe, its small variant where asked, with key=value overrides.

    Errors: KitError for an unknown recipe or setting, with the right names
    """
    recipe = choose("recipe", name, RECIPES)
    return recipe.override(SMALL[name] if small else []).override(overrides or [])
