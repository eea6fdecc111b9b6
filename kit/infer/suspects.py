'''Remember what was open when a worker died, so that the next one does without it.'''

import contextlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path

from kit.core.errors import KitError
from kit.core.files import file_identity, write_json
from kit.core.worker import Ending

MAX_BLIND_DEATHS = 3
MAX_DEATHS_OF_MODEL = 2


@dataclass
class Suspects:
    '''Files and models that may have ended a process, or did.

    The files in `isolated` were open together when a worker died. The next one reads them last and one by one, so
    that the next death has one culprit, which goes to `files_out`. Files are known by their identity, so that a file
    that was replaced is tried again.
    '''

    path: Path
    isolated: list[str] = field(default_factory=list)
    files_out: dict[str, str] = field(default_factory=dict)
    deaths_of_model: dict[str, int] = field(default_factory=dict)
    models_out: dict[str, str] = field(default_factory=dict)
    blind_deaths: int = 0

    @classmethod
    def read(cls, path: Path) -> 'Suspects':
        '''Read what earlier deaths left; nothing, where there were none.'''
        with contextlib.suppress(OSError, ValueError, TypeError):
            return cls(path, **json.loads(path.read_bytes()))
        return cls(path)

    def blame(self, ending: Ending, reason: str) -> str | None:
        '''Note a worker's death; return what the next one changes, or None where another one would die as well.'''
        files = sorted({name for kind, names in ending.opened if kind == 'file' for name in names})
        computing = [names for kind, names in ending.opened if kind == 'model']
        if not files and computing:
            # The first name is the model's, the others are its clips.
            model, *files = computing[0]
            self.deaths_of_model[model] = self.deaths_of_model.get(model, 0) + 1
            if self.deaths_of_model[model] >= MAX_DEATHS_OF_MODEL or not files:
                self.models_out[model] = reason
                self.save()
                return f'{model} is left out'
        if not files:
            self.blind_deaths += 1
            return None if self.blind_deaths >= MAX_BLIND_DEATHS else 'nothing was open'
        identities = [file_identity(Path(name)) for name in files]
        if len(files) == 1:
            self.files_out[identities[0]] = reason
        else:
            self.isolated += [identity for identity in identities if identity not in self.isolated]
        self.save()
        return f'{files[0]} is left out' if len(files) == 1 else f'{len(files)} files are read last, one by one'

    def save(self) -> None:
        '''Write all this for the next worker, which may be of a later call. A full disk is no reason to stop.'''
        values = {name: value for name, value in asdict(self).items() if name not in ('path', 'blind_deaths')}
        with contextlib.suppress(KitError):
            write_json(self.path, values)

    def isolated_clips(self, files: Iterable[Path]) -> list[int]:
        '''The positions of the files that are read last, one by one.'''
        return [clip for clip, path in enumerate(files) if self.isolated and file_identity(path) in self.isolated]

    def reasons(self, files: Iterable[Path]) -> dict[int, str]:
        '''Return why files are left out, by their position.'''
        if not self.files_out:
            return {}
        found = {clip: self.files_out.get(file_identity(path), '') for clip, path in enumerate(files)}
        return {clip: reason for clip, reason in found.items() if reason}
