'''Find a competition's data where Kaggle attaches them, or make toy data of the same form.'''

import fnmatch
import os
from collections.abc import Iterable
from pathlib import Path

from kit.core.errors import KitError, choose
from kit.labels.layouts import BOX_LAYOUT, LAYOUTS, CompetitionData, data_folders, find_layout, read_competition
from kit.models.checkpoint import open_checkpoint
from kit.toydata import make_toy_set, make_toy_soundscapes

KAGGLE_INPUT = Path('/kaggle/input')
TEACHER_FOLDERS = {'rounds', 'state'}
AUDIO_FOLDERS = {'train', 'test', 'audio', 'train_audio', 'train_curated', 'train_noisy', 'train_soundscapes'}


def find_data(
    kind: str, out: str | Path, toy: int = 0, inputs: str | Path | Iterable[str | Path] = KAGGLE_INPUT
) -> CompetitionData:
    '''Find a competition's data, or for clips else ESC-10; where nothing is attached, make toy data in `out`.

    Tables that training needs are written to `out`.

    Options:
        kind: clips, as in Freesound and BirdCLEF, or boxes, as in RFCX Species Audio Detection
        out: the folder to write to
        toy: make this many toy clips or recordings for training, whatever data there are
        inputs: folders where data are searched, down to two levels below; by default Kaggle's input

    Errors: KitError where a competition is attached whose layout is unknown or has the other kind of data
    '''
    choose('kind of data', kind, {'clips': '', 'boxes': ''})
    out = Path(out)
    if not toy:
        places = [inputs] if isinstance(inputs, str | Path) else inputs
        folders = data_folders([Path(place) for place in places])
        for layout in LAYOUTS:
            for folder in folders:
                if layout.fits(folder) and (layout.name == BOX_LAYOUT) == (kind == 'boxes'):
                    return read_competition(folder, out)
        for folder in folders:
            if (folder / 'sample_submission.csv').is_file():
                layout, root = find_layout(folder)
                raise KitError(f'{root} is of {layout.name}, whose data are not {kind}: use its own notebook.')

    clips = toy or 120
    folder = out / f'toy_{kind}_{clips}'
    if kind == 'boxes':
        make_toy_soundscapes(folder, clips, clips // 2)
    else:
        make_toy_set(folder, clips, clips // 2, noisy=clips)
    return read_competition(folder, out)


def fitting_checkpoints(classes: Iterable[str], places: Iterable[str | Path]) -> list[Path]:
    '''Return the folds' checkpoints below some folders that have no other classes than these.

    A model may lack classes that it had no data of. Teachers of earlier iterations and states of unfinished
    training are left out.

    Options:
        classes: names of classes, in any order
        places: folders
    '''
    wanted = set(classes)
    found = set()
    for place in places:
        for folder, subfolders, names in os.walk(place):
            # os.walk skips what is taken out of this list. Folders of audio may hold 100,000 files.
            subfolders[:] = [name for name in subfolders if name not in TEACHER_FOLDERS | AUDIO_FOLDERS]
            found |= {Path(folder, name) for name in fnmatch.filter(names, 'fold_*.pt')}
    return [path for path in sorted(found) if set(open_checkpoint(path).card.classes) <= wanted]
