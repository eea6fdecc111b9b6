'''Share the work of a command over processes: those of torchrun, or workers that the kit starts itself.'''

import os
import socket
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import TypeVar

import torch

from kit.core.clock import Deadline
from kit.core.errors import KitError
from kit.core.files import is_running
from kit.core.runtime import cpu_count, device_problem, get_rank, get_world_size, taken_cores
from kit.core.worker import ERROR_MARK, Worker, kill_worker, spawn_worker, supervise

T = TypeVar('T')

# The process numbers of the others, for the first one.
PEERS = 'AUDIOTAG_KIT_PEERS'


def take_share(items: Sequence[T]) -> list[T]:
    '''Every n-th item for this one of n processes, so that all get long and short ones.'''
    return list(items[get_rank() :: get_world_size()])


def gather(value: T) -> list[T]:
    '''The values of all processes, in their order, to each of them. Waits until all have come here.

    Values are arrays and Python's own types: a notebook has other classes of the kit than its workers.

    Errors: KitError where another process has died
    '''
    if get_world_size() == 1:
        return [value]
    values: list[T] = [value] * get_world_size()
    try:
        if not torch.distributed.is_initialized():
            join_group()
        torch.distributed.all_gather_object(values, value)
    except RuntimeError as error:
        raise KitError('another process of this command has ended: the same command continues.') from error
    return values


def join_group() -> None:
    '''Join the other processes when they come. Torch alone would wait for one that has died, too.'''
    rank = get_rank()
    size = get_world_size()
    is_host = rank == 0 and os.environ.get('TORCHELASTIC_USE_AGENT_STORE') != 'True'
    patience = timedelta(days=7)  # one process may train for hours while the others wait
    address = os.environ['MASTER_ADDR'], int(os.environ['MASTER_PORT'])
    store = torch.distributed.TCPStore(  # type: ignore[attr-defined]
        *address, size, is_host, patience, wait_for_workers=False
    )
    store.add('arrived', 1)
    while store.add('arrived', 0) < size:
        if not all(map(rank_is_running, range(1, size))):
            raise RuntimeError('a process has died')
        threading.Event().wait(0.05)
    torch.distributed.init_process_group('gloo', store=store, rank=rank, world_size=size, timeout=patience)


def rank_is_running(rank: int) -> bool:
    '''Whether another process of this command is running; true where this cannot be known.'''
    peers = os.environ.get(PEERS, '').split()
    return is_running(peers[rank - 1]) if peers else True


def count_workers(workers: int | str) -> int:
    '''The number of processes. `auto` is one per GPU; without GPUs one per core where others use cores, else one.

    Threads wait for the slowest of them: beside a busy process, two processes took two thirds of two threads' time.
    '''
    if workers != 'auto':
        if not (str(workers).isdecimal() and 1 <= int(workers) <= 256):
            raise KitError(f'workers is a number of processes from 1, or auto, got {workers!r}.')
        return int(workers)
    gpus = [torch.device('cuda', number) for number in range(torch.cuda.device_count())]
    count = sum(device_problem(gpu) is None for gpu in gpus)
    if not count:
        count = cpu_count() if taken_cores() > 0.4 else 1
    print(f'note: --workers auto: {count} of {len(gpus)} GPUs or {cpu_count()} cores', flush=True)
    return count


@contextmanager
def start_workers(wanted: int | str, words: Sequence[str]) -> Iterator[None]:
    '''Run a command line in more processes, which share its work with this one.'''
    count = 1 if get_world_size() > 1 else count_workers(wanted)
    if count == 1:
        yield
        return
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = str(free.getsockname()[1])
    group = {'MASTER_ADDR': '127.0.0.1', 'MASTER_PORT': port, 'GLOO_SOCKET_IFNAME': 'lo'}
    group |= {'WORLD_SIZE': str(count), 'LOCAL_WORLD_SIZE': str(count), PEERS: ''}
    threads = torch.get_num_threads()
    before = dict(os.environ)
    workers: list[Worker] = []
    printed: deque[str] = deque(maxlen=1000)
    try:
        for rank in reversed(range(count)):
            os.environ |= group | {'RANK': str(rank), 'LOCAL_RANK': str(rank)}
            if rank:
                workers.insert(0, spawn_worker(words, '0.0'))
        os.environ[PEERS] = ' '.join(str(worker.pid) for worker in workers)
        for worker in workers:
            threading.Thread(target=supervise, args=(worker, Deadline(), printed.append), daemon=True).start()
        yield
    except KitError as error:
        _, *reasons = ''.join(printed).split(ERROR_MARK)  # several workers may have met the same error
        raise KitError(reasons[0].strip() if reasons else str(error)) from error
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
        for worker in workers:
            kill_worker(worker)
        for name in {*group, 'RANK', 'LOCAL_RANK'}:
            os.environ.pop(name, None)
        os.environ |= before
        torch.set_num_threads(threads)
