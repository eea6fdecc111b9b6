"""The named recipes, each with its source, and their small variants for two cores."""

from kit.core.errors import choose
from kit.learn.recipe import Recipe
from kit.sound.frontend import FrontendConfig
from kit.sound.windows import ListeningConfig

MAX_PYRAMID_MEL = Recipe(
    name="max-pyramid-mel",
    source="third place, Freesound Audio Tagging 2019",
    frontend=FrontendConfig(
        sample_rate=44100, n_fft=2048, hop_length=1024, n_mels=128, f_min_hz=5.0, power=1, log="ln", log_offset=1e-4,
        pad_mode="reflect", channels=("log", "coordinate"),
    ),
    network={"family": "max-pyramid", "dims": 2, "blocks": 5, "width": 100, "growth": 1.5},
    listening=ListeningConfig(mode="full"),
    loss="lsep", crop_s=10.0, mix_p=0.5, plain_epochs=10, epochs=120, batch_size=32,
)  # fmt: skip

MAX_PYRAMID_STFT = Recipe(
    name="max-pyramid-stft",
    source="third place, Freesound Audio Tagging 2019",
    frontend=FrontendConfig(
        kind="stft", sample_rate=44100, n_fft=256, hop_length=128, f_min_hz=0.0, power=1, log="ln", log_offset=1e-4,
        pad_mode="reflect", channels=("log",),
    ),
    network={"family": "max-pyramid", "dims": 1, "blocks": 7, "width": 128, "growth": 1.5},
    listening=ListeningConfig(mode="full", max_frames=65536),
    loss="lsep", crop_s=10.0, mix_p=0.5, plain_epochs=10, epochs=120, batch_size=32,
)  # fmt: skip

RECIPES = {recipe.name: recipe for recipe in (MAX_PYRAMID_MEL, MAX_PYRAMID_STFT)}

SMALL = {
    "max-pyramid-mel": [
        "network.blocks=5", "network.width=16", "network.dropout=0.2", "crop_s=4.0", "epochs=30", "plain_epochs=5",
        "batch_size=16", "validate_every=10",
    ],
    "max-pyramid-stft": [
        "network.blocks=6", "network.width=32", "network.dropout=0.2", "crop_s=3.0", "epochs=30", "plain_epochs=5",
        "batch_size=16", "validate_every=10",
    ],
}  # fmt: skip


def find_recipe(name: str, small: bool = False, overrides: list[str] | None = None) -> Recipe:
    """A named recipe, its small variant where asked, with key=value overrides.

    Errors: KitError for an unknown recipe or setting, with the right names
    """
    recipe = choose("recipe", name, RECIPES)
    return recipe.override([*(SMALL[name] if small else []), *(overrides or [])])
