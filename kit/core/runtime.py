'''The kit's version, the device that computes, and settings of the process.'''

import contextlib
import ctypes
import hashlib
import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch

from kit.core.errors import KitError

VERSION = '0.1.0'

# Set for a child process that a supervisor may stop, to the seconds by which it must end earlier.
WORKER_MARK = 'AUDIOTAG_KIT_WORKER'
OFFLINE_SWITCHES = ('HF_HUB_OFFLINE', 'TRANSFORMERS_OFFLINE', 'HF_DATASETS_OFFLINE')


def device_problem(device: torch.device) -> str | None:
    '''Why `device` cannot compute, found by a small matrix product, or None where it can.'''
    try:
        ones = torch.ones(8, 8, device=device)
        total = float((ones @ ones).sum())
    except (RuntimeError, AssertionError) as error:
        return str(error).strip().splitlines()[0]
    return None if total == 512 else f'a product gave {total}, not 512'


def pick_device(wanted: str | None = None) -> tuple[torch.device, str | None]:
    '''Return the device to use, and a note for the user where it is not the first choice.

    By default it is the first GPU that computes, else the CPU. Kaggle's P100 is listed as a GPU, but today's torch has
    no kernels for it: trying is the only test.
    Errors: KitError where the wanted device cannot compute
    '''
    if wanted is not None:
        try:
            device = torch.device(wanted)
        except RuntimeError as error:
            raise KitError(f'no device is called {wanted!r}: try cpu, cuda:0 or mps.') from error
        if problem := device_problem(device):
            raise KitError(f'the device {wanted!r} cannot compute ({problem}): use cpu.')
        return device, None

    candidates = [torch.device('cuda', i) for i in range(torch.cuda.device_count())]
    if candidates:
        first = process_number('LOCAL_RANK', 0) % len(candidates)
        candidates = candidates[first:] + candidates[:first]
    if torch.backends.mps.is_available():
        candidates.append(torch.device('mps'))
    problems: list[str] = []
    for device in candidates:
        problem = device_problem(device)
        if problem is None:
            return device, '; '.join(problems) or None
        problems.append(f'{device} is listed but cannot compute ({problem})')
    return torch.device('cpu'), '; '.join([*problems, 'using the CPU']) if problems else None


@dataclass(frozen=True)
class Runtime:
    '''The device, the number of decoding threads, and whether progress bars are shown.'''

    device: torch.device
    threads: int
    progress: bool = True


def start_runtime(device: str | None = None, threads: int | None = None, progress: bool = True) -> Runtime:
    '''Set up the process and pick a device, with a note where it is not the first choice. Errors: as pick_device'''
    tune_process()
    chosen, note = pick_device(device)
    if note:
        print(f'note: {note}', flush=True)
    return Runtime(chosen, threads or cpu_count(), progress)


def process_number(name: str, default: int) -> int:
    '''A number that torchrun or --workers gives each process that shares the work.'''
    return int(os.environ.get(name, default)) if 'MASTER_PORT' in os.environ else default


def get_rank() -> int:
    '''This process's number among those that share the work; 0 writes the results.'''
    return process_number('RANK', 0)


def get_world_size() -> int:
    '''The number of processes that share the work.'''
    return process_number('WORLD_SIZE', 1)


def tune_process() -> None:
    '''Set up this process for offline work on clips of many lengths. The user's environment variables stay.'''
    if process_number('LOCAL_WORLD_SIZE', 1) > 1:
        torch.set_num_threads(cpu_count())

    # Without these, a look-up on a model hub hangs 46 s before it fails: Kaggle submits without a network.
    for switch in OFFLINE_SWITCHES:
        os.environ.setdefault(switch, '1')

    # oneDNN compiles a primitive for each convolution and length, and caches 1,024. With more it compiles again and
    # again: a pass over 51 lengths took 1.70 s, and 1.08 s with this capacity.
    os.environ.setdefault('ONEDNN_PRIMITIVE_CACHE_CAPACITY', '20000')

    # glibc returns large freed blocks to the kernel. Each new tensor then costs page faults, and batches above 4,000
    # frames are 1.5 to 3 times slower. These settings of mallopt (numbers from malloc.h) keep the blocks; peak memory
    # changes by less than 2 %. Other systems have no libc.so.6 and need no cure.
    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL('libc.so.6').mallopt
        m_mmap_max, m_trim_threshold, m_top_pad = -4, -1, -2
        mallopt(m_mmap_max, 0)
        mallopt(m_trim_threshold, 2**31 - 1)
        mallopt(m_top_pad, 64 * 2**20)


def trim_memory() -> None:
    '''Return freed memory to the system: after decoding, it lies scattered between what is kept.'''
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL('libc.so.6').malloc_trim(0)


def full_float32() -> contextlib.AbstractContextManager[None]:
    '''A context in which cuDNN convolves float32 without TF32; its other flags stay.'''
    cudnn = torch.backends.cudnn
    return cudnn.flags(
        enabled=cudnn.enabled, benchmark=cudnn.benchmark, deterministic=cudnn.deterministic, allow_tf32=False
    )


def in_notebook() -> bool:
    '''Whether this is IPython, whose process must not be ended.'''
    return getattr(sys.modules.get('IPython'), 'get_ipython', lambda: None)() is not None


def cpu_count() -> int:
    '''The number of cores that this process may use.'''
    cores = os.cpu_count() or 1
    if hasattr(os, 'sched_getaffinity'):
        cores = len(os.sched_getaffinity(0))
    return max(1, cores // process_number('LOCAL_WORLD_SIZE', 1))


def taken_cores(seconds: float = 0.3) -> float:
    '''The cores that other processes use: what this one lacks while a thread per core hashes for a moment.'''

    def compute(_: int) -> float:
        start, start_cpu = time.perf_counter(), time.thread_time()
        while time.perf_counter() - start < seconds:
            hashlib.sha256(bytes(2**20)).digest()  # without the interpreter lock
        return (time.thread_time() - start_cpu) / (time.perf_counter() - start)

    with ThreadPoolExecutor(cpu_count()) as pool:
        return cpu_count() - sum(pool.map(compute, range(cpu_count())))


def memory_bytes() -> int:
    '''The memory of this machine or container, or 4 GiB where neither says: the same in each run here.'''
    total = 4 * 2**30
    with contextlib.suppress(OSError, ValueError, AttributeError):
        total = os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES')
    with contextlib.suppress(OSError, ValueError):
        total = min(total, int(Path('/sys/fs/cgroup/memory.max').read_text()))
    return total // process_number('LOCAL_WORLD_SIZE', 1)


def free_memory_bytes() -> int:
    '''The memory free for the system and this container, or 4 GiB where neither says.'''
    free = 4 * 2**30
    with contextlib.suppress(OSError, ValueError, IndexError):
        free = int(Path('/proc/meminfo').read_text().split('MemAvailable:')[1].split()[0]) * 1024
    with contextlib.suppress(OSError, ValueError, IndexError):
        group = Path('/sys/fs/cgroup')
        limit = int((group / 'memory.max').read_text())
        used = int((group / 'memory.current').read_text())
        # Cached files count as used, but the kernel drops them when memory is needed.
        cached = int((group / 'memory.stat').read_text().split('inactive_file ')[1].split()[0])
        free = min(free, limit - used + cached)
    return max(0, free) // process_number('LOCAL_WORLD_SIZE', 1)


def in_worker() -> bool:
    '''Whether this process is the child of a supervisor.'''
    return bool(os.environ.get(WORKER_MARK))


def worker_margin_s() -> float:
    '''The seconds before the deadline at which the supervisor kills this worker.'''
    return float(os.environ[WORKER_MARK])
