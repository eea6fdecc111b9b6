'''The named recipes: settings, source, and a small form of each.'''

from typing import Any

from kit.audio.augment import WaveAugmentConfig
from kit.audio.frontend import FrontendConfig
from kit.audio.mixup import MixupConfig
from kit.audio.specaugment import SpecAugmentConfig
from kit.audio.windows import InferenceConfig
from kit.core.errors import choose
from kit.train.optim import OptimConfig
from kit.train.pseudo_labels import SelfTrainingConfig
from kit.train.recipe import Recipe, SamplingConfig

# Each recipe has the published settings, as far as they fit the kit; the comment above it names the differences. What a
# write-up leaves open is our choice; settings that are not listed have their defaults. Its small form lists the
# overrides that make it fast on two CPU cores.

FREESOUND = 'Freesound Audio Tagging 2019'
RFCX = 'RFCX Species Audio Detection 2021'

# Settings that several recipes share.
CURATED_AND_NOISY = {'curated': {}, 'noisy': {'scored': False}}
RFCX_OPTIM = OptimConfig(schedule='cosine', lr_start=1e-3, lr_peak=1e-3, weight_decay=1e-2)


# Differs: AdamW in place of Adam, batches of 32 in place of 128, no early stopping.
SKIP_ATTENTION = Recipe(
    name='skip-attention',
    source=f'first place, {FREESOUND}',
    frontend=FrontendConfig(
        n_fft=2560,
        hop_length=690,
        f_max_hz=22050.0,
        top_db=80.0,
        trim_db=60.0,
        channels=('log', 'delta', 'delta2'),
        normalize='constants',
        std=100.0,
    ),
    network={'family': 'skip-attention', 'head': {'hidden': 256}},
    inference=InferenceConfig(mode='windows', window_s=256 * 690 / 44100, hop_s=64 * 690 / 44100, pool='mean'),
    loss='bce',
    auxiliary=(0.4, 0.2, 0.1),
    sources={
        'noisy': {'share': 0.01, 'weight': 0.5, 'loss': 'bootstrap', 'loss_settings': {'trust': 0.7}, 'scored': False},
        'corrected': {'share': 0.42, 'weight': 0.5},
        'curated': {'share': 0.57, 'weight': 0.5},
    },
    crop_s=256 * 690 / 44100,
    crop_pad_modes=('wrap', 'min'),
    spec_augment=SpecAugmentConfig(crop_p=0.33, mask_p=0.5),
    mixup=MixupConfig(p=0.8, low=0.0, high=0.5, fade_p=0.6, domain='spec', convex=True, labels='weighted'),
    no_augment_epochs=0,
    epochs=150,
    optim=OptimConfig(lr_start=9e-4, lr_peak=9e-4, schedule='plateau', factor=0.6),
    validate_every=1,
    keep='best',
)
SKIP_ATTENTION_SMALL = '''
    frontend.n_mels=64 network.width=8 network.ratio=8 network.head.hidden=32 inference.hop_s=2.0
    epochs=30 batch_size=16 optim.patience=2 validate_every=2
'''


# Differs: levels and wave statistics are those of a crop or window, as mixed waveforms have no clip; no pixel shuffle.
AXIS_POOL = Recipe(
    name='axis-pool',
    source=f'second place, {FREESOUND}',
    frontend=FrontendConfig(
        n_fft=1024,
        n_mels=64,
        normalize='peak',
        top_db=80.0,
        reference='window',
        extra_rows=('wave_stats', 'clip_length'),
    ),
    network={'family': 'axis-pool'},
    inference=InferenceConfig(mode='windows', window_s=5.0, hop_s=2.5, pool='mean'),
    loss='bce',
    loss_settings={'smoothing': 0.01},
    sources=CURATED_AND_NOISY,
    crop_s=5.0,
    mixup=MixupConfig(p=0.6, low=0.3, high=0.3, domain='wave', convex=True, labels='weighted'),
    mixup_until=14 / 40,
    no_augment_epochs=0,
    epochs=40,
    optim=OptimConfig(kind='nadam', lr_start=5e-4, lr_peak=5e-4, schedule='steps'),
    validate_every=1,
    keep='best',
    pretrain='sources={"curated":{"share":0},"noisy":{"share":1,"scored":false}}',
)
# The published rate, halved three times, learns little in so few steps.
AXIS_POOL_SMALL = '''
    network.width=64 frontend.reference=clip mixup.domain=spec epochs=20 batch_size=16 validate_every=20
    optim.schedule=one-cycle optim.lr_peak=5e-3 pretrain=
'''


# The source mixes waveforms; energies are their expectation.
MAX_PYRAMID: dict[str, Any] = {
    'source': f'third place, {FREESOUND}',
    'loss': 'lsep',
    'sources': CURATED_AND_NOISY,
    'wave_augment': WaveAugmentConfig(chance=0.75, reverb_p=1.0, pitch_p=1.0, overdrive_p=1.0, speed_p=1.0),
    'mixup': MixupConfig(p=0.5),
    'epochs': 120,
    'optim': OptimConfig(schedule='linear-cycle'),
    'validate_every': 1,
    'keep': 'best',
    'self_training': SelfTrainingConfig(methods=('agreement',), top_k=(0.05, 0.1, 0.15, 0.2, 0.25), hard=True),
}
MAX_PYRAMID_MEL = Recipe(
    name='max-pyramid-mel',
    frontend=FrontendConfig(
        hop_length=1024, f_min_hz=5.0, power=1, log='ln', pad_mode='reflect', channels=('log', 'coordinate')
    ),
    network={'family': 'max-pyramid', 'dims': 2, 'blocks': 5, 'width': 100, 'growth': 1.5},
    **MAX_PYRAMID,
)
# Masks stand for the waveform effects, which are slow; short clips end in silence.
MAX_PYRAMID_MEL_SMALL = '''
    frontend.n_mels=64 network.width=16 network.head.dropout=0.2 crop_s=4.0 epochs=50 no_augment_epochs=5
    batch_size=16 spec_augment.mask_p=0.5 crop_pad_modes=["min"] inference.pad_mode=min
    wave_augment={} validate_every=10 keep=last optim.schedule=one-cycle
'''


# The same training on a short-time spectrum, with frequencies as channels of a one-dimensional network.
MAX_PYRAMID_STFT = Recipe(
    name='max-pyramid-stft',
    frontend=FrontendConfig(
        kind='stft', n_fft=256, hop_length=128, f_min_hz=0.0, power=1, log='ln', pad_mode='reflect'
    ),
    network={'family': 'max-pyramid', 'dims': 1, 'blocks': 7, 'width': 128, 'growth': 1.5},
    inference=InferenceConfig(max_frames=65536),
    **MAX_PYRAMID,
)
MAX_PYRAMID_STFT_SMALL = '''
    network.blocks=6 network.width=32 network.head.dropout=0.2 crop_s=3.0 epochs=30 no_augment_epochs=5
    batch_size=16 wave_augment={} validate_every=10 keep=last optim.schedule=one-cycle
'''


# The write-up leaves network and optimiser open. Self-training makes the sources set1 and set2 from noisy clips.
WINDOW_SNR = Recipe(
    name='window-snr',
    source=f'windows weighted by signal-to-noise ratio, {FREESOUND}',
    frontend=FrontendConfig(top_db=80.0, normalize='minmax'),
    network={'family': 'max-pyramid', 'width': 48, 'head': {'pool': 'mean-max'}},
    inference=InferenceConfig(mode='windows', window_s=2.0, hop_s=1.0, pool='snr'),
    loss='bce',
    sources={
        'curated': {'share': 1.0},
        'noisy': {'share': 0.0, 'scored': False},
        'set1': {'share': 1.0, 'scored': False},
        'set2': {'share': 1.0, 'scored': False},
    },
    weight_by_share=False,
    crop_s=2.0,
    spec_augment=SpecAugmentConfig(mask_p=0.5),
    mixup=MixupConfig(p=0.5, beta=0.4, domain='spec', convex=True, labels='weighted'),
    no_augment_epochs=0,
    epochs=60,
    self_training=SelfTrainingConfig(methods=('snr',), top_k=(0.1,)),
)
WINDOW_SNR_SMALL = 'frontend.n_mels=64 network.width=12 epochs=30 batch_size=16'


# The first layers learn ten times as fast as the last. The second stage is `stack --kind image-stacker`.
# Self-training moves noisy clips to the source whole, which is predicted and scored, but not trained on.
TWO_STAGE = Recipe(
    name='two-stage',
    source=f'windows, then an image of their predictions, {FREESOUND}',
    frontend=FrontendConfig(
        n_fft=1024,
        n_mels=64,
        top_db=80.0,
        normalize='minmax',
        reference='window',
        resolutions=((2048, 512), (4096, 512)),
        image_size=(224, 224),
    ),
    network={'family': 'timm', 'name': 'resnet18.a1_in1k'},
    inference=InferenceConfig(mode='windows', window_s=2.0, hop_s=1.0, pool='mean', pad_mode='min'),
    loss='bce',
    sources={
        'curated': {'share': 1.0},
        'noisy': {'share': 1.0, 'scored': False},
        'whole': {'share': 0.0, 'scored': False},
    },
    crop_s=2.0,
    spec_augment=SpecAugmentConfig(mask_p=0.3),
    no_augment_epochs=0,
    sampling=SamplingConfig(balance='seconds', rare_boost=1.0),
    image_sizes=((64, 64), (128, 128), (224, 224)),
    epochs=40,
    optim=OptimConfig(lr_start=1e-5, lr_peak=1e-3, layer_decay=10.0, weight_decay=1e-2),
    self_training=SelfTrainingConfig(methods=('curate',)),
)
# A random ResNet-18 learns little in so few steps.
TWO_STAGE_SMALL = '''
    network={"family":"max-pyramid","width":16,"head":{"pool":"mean-max"}} frontend.image_size=[64,64]
    image_sizes=[[32,32],[48,48],[64,64]] epochs=36 batch_size=16 validate_every=36 optim.layer_decay=1
    optim.lr_start=2e-4 optim.lr_peak=5e-3 mixup.p=0.5 mixup.beta=0.4 mixup.domain=spec mixup.convex=true
    mixup.labels=weighted
'''


# One of four networks that the source averages; the others follow. Pseudo-label stages mix waveforms, the source
# spectrograms too. It counts a class known in one crop of a mix alone as false (mixup.masks=either); here the loss
# masks it, as law 5 wants.
FREQ_COORD = Recipe(
    name='freq-coord',
    source=f'second place, {RFCX}',
    frontend=FrontendConfig(
        sample_rate=48000,
        n_fft=4096,
        n_mels=256,
        top_db=80.0,
        normalize='clip',
        reference='window',
        channels=('log', 'coordinate01'),
    ),
    network={'family': 'timm', 'name': 'tf_efficientnet_b3.ns_jft_in1k'},
    inference=InferenceConfig(mode='windows', window_s=4.0, hop_s=0.5),
    loss='bce',
    average_over='labels',
    crop_s=4.0,
    wave_augment=WaveAugmentConfig(gain_p=0.5, noise_p=0.5),
    spec_augment=SpecAugmentConfig(warp_p=0.3, outside_p=0.5),
    mixup=MixupConfig(p=0.5, low=0.5, high=0.5, domain='spec', convex=True, labels='sum'),
    no_augment_epochs=0,
    sampling=SamplingConfig(steps=200, true_p=None),
    epochs=60,
    optim=RFCX_OPTIM,
    n_folds=4,
    self_training=SelfTrainingConfig(
        iterations=4,
        methods=('windows',),
        stages=('mixup.domain=wave spec_augment.outside_p=0 spec_augment.mask_p=0.5',),
    ),
)
# The settings of the last two lines were better than the published ones in this small form.
FREQ_COORD_SMALL = '''
    frontend.sample_rate=22050 frontend.n_fft=2048 frontend.hop_length=1024 frontend.n_mels=64
    network={"family":"max-pyramid","width":12} wave_augment={} batch_size=16 sampling.steps=50 epochs=12
    validate_every=12 optim.lr_start=3e-3 optim.lr_peak=3e-3 self_training.iterations=2
    mixup.labels=union self_training.prior_shift=true self_training.teachers=3
    sampling.sample_by_probs=windows
'''


# The bands of the classes come from the boxes. Three stages of pseudo-labels with plain BCE, then two with soft LSEP.
FREQ_CROP = Recipe(
    name='freq-crop',
    source=f'thirty-second place, {RFCX}',
    frontend=FrontendConfig(
        sample_rate=48000, n_fft=4096, n_mels=32, top_db=80.0, normalize='clip', reference='window'
    ),
    network={'family': 'freq-crop', 'backbone': {'family': 'timm', 'name': 'tf_efficientnet_b0.ns_jft_in1k'}},
    loss='bootstrap',
    loss_settings={'on': 'unknown', 'trust': 0.1, 'detach': False},
    average_over='labels',
    wave_augment=WaveAugmentConfig(gain_p=0.5, shift_p=0.5, noise_p=0.5, pitch_p=0.2, tempo_p=0.2),
    spec_augment=SpecAugmentConfig(mask_p=0.3),
    mixup=MixupConfig(p=0.5, domain='wave', partners='sure-negatives'),
    no_augment_epochs=5,
    epochs=60,
    optim=RFCX_OPTIM,
    self_training=SelfTrainingConfig(
        iterations=5, methods=('windows',), stages=(*['loss=bce loss_settings={}'] * 3, 'loss=lsep loss_settings={}')
    ),
)
# The cheaper form: one pass, each class pools its own band. Crops at width 8 learn little in so few steps.
FREQ_CROP_SMALL = '''
    frontend.sample_rate=22050 frontend.n_fft=2048 frontend.hop_length=512 frontend.n_mels=64
    frontend.channels=["log","coordinate01"] frontend.normalize=none frontend.log=ln frontend.top_db=null
    network={"family":"freq-crop","form":"pooled","head":{"pool":"max"},"backbone":{"family":"max-pyramid","width":16,"blocks":4}}
    inference.mode=windows inference.window_s=3.0 inference.hop_s=1.5
    wave_augment={} mixup.domain=energy crop_s=3.0 batch_size=16 sampling.steps=25 epochs=32
    no_augment_epochs=2 validate_every=32 optim.lr_start=3e-3 optim.lr_peak=3e-3 self_training.iterations=0
'''


# The published loss reads the frames' mean alone, which leaves the attention of inference untrained. The hidden layer
# and the masks are those of the second place of 2025.
SED = Recipe(
    name='sed',
    source='sound event detection, second place, BirdCLEF+ 2026',
    frontend=FrontendConfig(sample_rate=32000, top_db=80.0, normalize='clip', reference='window'),
    network={
        'family': 'timm',
        'name': 'tf_efficientnetv2_s.in21k_ft_in1k',
        'head': {'pool': 'attention', 'hidden': 512, 'norm_first': True, 'dropout': 0.3},
    },
    inference=InferenceConfig(mode='windows', window_s=5.0, hop_s=5.0),
    loss='bce',
    clip_weight=0.5,
    frame_mean_weight=0.5,
    crop_s=5.0,
    spec_augment=SpecAugmentConfig(mask_p=0.3, time_masks=3, time_share=0.06, freq_masks=3, freq_share=0.08),
    mixup=MixupConfig(p=0.5, low=0.5, high=0.5, domain='wave', convex=True),
    no_augment_epochs=0,
    epochs=35,
    batch_size=64,
    optim=OptimConfig(lr_start=1e-5, lr_peak=5e-4, warmup=0.06, weight_decay=1e-4, clip_norm=1.0, average='swa'),
)
# A filter makes clips recorded nearby more like distant sounds. It was measured without averaged weights.
SED_SMALL = '''
    frontend.n_mels=64 frontend.hop_length=640 mixup.domain=spec spec_augment.filter_p=0.5 epochs=30
    network={"family":"max-pyramid","width":16,"head":{"pool":"attention","dropout":0.2}}
    batch_size=16 validate_every=30 optim.lr_peak=5e-3 optim.average=none
'''


RECIPES = {
    'skip-attention': SKIP_ATTENTION,
    'axis-pool': AXIS_POOL,
    'max-pyramid-mel': MAX_PYRAMID_MEL,
    'max-pyramid-stft': MAX_PYRAMID_STFT,
    'window-snr': WINDOW_SNR,
    'two-stage': TWO_STAGE,
    'freq-coord': FREQ_COORD,
    'freq-crop': FREQ_CROP,
    'sed': SED,
}
SMALL = {
    'skip-attention': SKIP_ATTENTION_SMALL,
    'axis-pool': AXIS_POOL_SMALL,
    'max-pyramid-mel': MAX_PYRAMID_MEL_SMALL,
    'max-pyramid-stft': MAX_PYRAMID_STFT_SMALL,
    'window-snr': WINDOW_SNR_SMALL,
    'two-stage': TWO_STAGE_SMALL,
    'freq-coord': FREQ_COORD_SMALL,
    'freq-crop': FREQ_CROP_SMALL,
    'sed': SED_SMALL,
}
# Recipes that differ in a few settings: the other networks of RFCX's second place, the input of BirdCLEF 2025's first.
VARIANTS = {
    'freq-coord-rexnet-200': ('freq-coord', 'network.name=rexnet_200.nav_in1k'),
    'freq-coord-rexnet-150': ('freq-coord', 'network.name=rexnet_150.nav_in1k crop_s=8 inference.window_s=8'),
    'freq-coord-b1': ('freq-coord', 'network.name=tf_efficientnet_b1.ns_jft_in1k crop_s=8 inference.window_s=8'),
    'sed-rounds': (
        'sed',
        'self_training.iterations=1 self_training.methods=["windows"] self_training.hop_s=5 '
        'sampling.sample_by_probs=windows',
    ),
    'sed-20s': (
        'sed',
        'crop_s=20 inference.window_s=20 frontend.n_fft=4096 frontend.hop_length=1252 frontend.n_mels=224 '
        'frontend.f_min_hz=0',
    ),
}


def find_recipe(name: str, small: bool = False, overrides: list[str] | None = None) -> Recipe:
    '''Get a named recipe, or its small form, with key=value overrides.

    Errors: KitError for an unknown recipe or setting, with the nearest right name
    '''
    base, changes = choose('recipe', name, {known: (known, '') for known in RECIPES} | VARIANTS)
    recipe = RECIPES[base].override([f'name={name}', *changes.split()])
    if small:
        recipe = recipe.override(SMALL[base].split())
    return recipe.override(overrides or [])
