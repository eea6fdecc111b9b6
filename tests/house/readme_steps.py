'''Read a page's commands, notebook cells, scripts, and additions to kit/, in order.'''

import ast
import re
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

# Indented blocks that are drawings or tables, by their first words; fenced ones say so by these names.
NOT_COMMANDS = ('kit/', 'file ->', 'fname,')
NOT_CODE = ('mermaid', 'text', 'bibtex', 'csv')
PLACE = re.compile(r'# ((?:kit|tests)/[\w/]+\.py)(?:, (above|in) (\w+))?')
FENCE = re.compile(r'(```+|~~~+)(\w*)\s*$')
INDENT = '    '


@dataclass(frozen=True)
class Step:
    '''Something to run: its line in the page, its kind, and its text.'''

    line: int
    kind: str
    text: str

    @property
    def shown(self) -> str:
        '''Its first line, without a remark.'''
        return self.text.strip().partition('\n')[0].partition('  #')[0].rstrip()


def blocks_of(readme: str) -> Iterator[tuple[int, str, str]]:
    '''(line, language, text) of each fenced or indented block; an indented one has no language.'''
    lines, at = [*readme.split('\n'), ''], 0
    while at < len(lines):
        first = at
        if fence := FENCE.match(lines[at]):
            at = lines.index(fence[1], at + 1)
            yield first + 2, fence[2], '\n'.join(lines[first + 1 : at])
        elif lines[at].startswith(INDENT) and (at == 0 or not lines[at - 1].strip()):
            while at + 1 < len(lines) and (lines[at + 1].startswith(INDENT) or not lines[at + 1].strip()):
                at += 1
            yield first + 1, '', textwrap.dedent('\n'.join(lines[first : at + 1])).rstrip()
        at += 1


def steps_of(readme: str) -> Iterator[Step]:
    '''Every block's steps: a fence of Python is one, as is a cell with a line magic; all else are commands.'''
    for line, language, text in blocks_of(readme):
        first = text.lstrip('\n').partition('\n')[0]
        if language in NOT_CODE or (not language and first.startswith(NOT_COMMANDS)):
            continue
        if language == 'python':
            yield Step(line, 'addition' if PLACE.fullmatch(first) else 'script', text)
        elif any(row.startswith('%') for row in text.split('\n')):
            yield Step(line, 'cell', text)
        else:
            yield from commands_of(line, text)


def commands_of(line: int, text: str) -> Iterator[Step]:
    '''The commands of a block; a backslash at a line's end joins the next one.'''
    rows, at = text.split('\n'), 0
    while at < len(rows):
        first = at
        while rows[at].endswith('\\') and at + 1 < len(rows):
            at += 1
        command = '\n'.join(rows[first : at + 1])
        if command.strip() and not command.startswith('#'):
            yield Step(line + first, 'command', command)
        at += 1


def parts_of(addition: str) -> Iterator[tuple[str, str, str, str]]:
    '''(file, where, name, code) of each piece, as the comment above it says.'''
    place, code = None, ''
    for line in [*addition.split('\n'), '# kit/end.py']:
        if found := PLACE.fullmatch(line):
            if place:
                yield place[1], place[2] or '', place[3] or '', code.strip()
            place, code = found, ''
        else:
            code += line + '\n'


def add_parts(addition: str, root: Path) -> None:
    '''Put each piece where it goes, below `root`.'''
    for path, where, name, code in parts_of(addition):
        file = root / path
        text = with_part(file.read_text(encoding='utf-8'), code, where, name) if file.exists() else code + '\n'
        file.write_text(text, encoding='utf-8')


def with_part(old: str, code: str, where: str, name: str) -> str:
    '''A file's text with a piece above a definition, last in a table, or at the end; its imports at the top.

    Errors: StopIteration where the file defines no such name
    '''
    tree, lines, rows = ast.parse(old).body, old.split('\n'), code.split('\n')
    imports = [row for row in rows if row.startswith(('from ', 'import '))]
    body = '\n'.join(row for row in rows if row not in imports).strip()
    heads = [node for node in tree if isinstance(node, ast.Import | ast.ImportFrom | ast.Expr)]  # or a docstring
    top = max((node.end_lineno or 0 for node in heads), default=0)
    if not where:
        lines += ['', body, '']
    else:
        tables = [node for node in tree if isinstance(node, ast.Assign | ast.AnnAssign)]
        node = next(table for table in tables if re.match(rf'{name}\b', lines[table.lineno - 1]))
        if where == 'above':
            lines.insert(node.lineno - 1, body + '\n\n')
        elif node.value is not None:
            row, column = (node.value.end_lineno or 0) - 1, (node.value.end_col_offset or 0) - 1
            held, bracket = '\n'.join([*lines[:row], lines[row][:column]]).rstrip(), lines[row][column:]
            comma = '' if held[-1] in ',([{' else ','
            lines[: row + 1] = [*(held + comma).split('\n'), textwrap.indent(body, INDENT), bracket]
    return '\n'.join([*lines[:top], *imports, *lines[top:]])
