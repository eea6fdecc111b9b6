"""The kit's version, the device that computes, and the settings of the process."""

import contextlib
import ctypes
import os
import sys
from dataclasses import dataclass
from pathlib import Path

import torch

from kit.core.errors import KitError

VERSION = "0.1.0"


WORKER_MARK = "AUDIOTAG_KIT_WORKER"
OFFLINE_SWITCHES = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE")


def device_problem(device: torch.device) -> str | None:
    """Why `device` cannot compute, by trying; None where it can."""
    try:
        probe = torch.ones(8, 8, device=device)
        total = float((probe @ probe).sum())
        return None if total == 512 else f"a product gave {total}, not 512"
    except (RuntimeError, AssertionError) as error:
        return str(error).strip().splitlines()[0]


def pick_device(wanted: str | None = None) -> tuple[torch.device, str | None]:
    """The device to use, and a remark on it.

    Without a wish: the first GPU that computes (a listed P100 does not, under today's torch), else the CPU.
    Errors: KitError where the wanted device cannot compute
    """
    if wanted is not None:
        try:
            device = torch.device(wanted)
        except RuntimeError as error:
            raise KitError(f"no device is called {wanted!r}: try cpu, cuda:0 or mps.") from error
        if problem := device_problem(device):
            raise KitError(f"the device {wanted!r} cannot compute ({problem}): use cpu.")
        return device, None
    candidates = [torch.device("cuda", i) for i in range(torch.cuda.device_count())]
    candidates += [torch.device("mps")] if torch.backends.mps.is_available() else []
    problems: list[str] = []
    for device in candidates:
        if (problem := device_problem(device)) is None:
            return device, "; ".join(problems) or None
        problems.append(f"{device} is listed but cannot compute ({problem})")
    return torch.device("cpu"), "; ".join([*problems, "using the CPU"]) if problems else None


@dataclass(frozen=True)
class Runtime:
    """Where and how a job computes: its device, its decoding threads, and whether it shows progress bars."""

    device: torch.device
    threads: int
    progress: bool = True


def start_runtime(device: str | None = None, threads: int | None = None, progress: bool = True) -> Runtime:
    """Set up the process, pick a device that computes, and print a note where it is not the first choice.

    Errors: KitError where the wanted device cannot compute
    """
    tune_process()
    chosen, remark = pick_device(device)
    if remark:
        print(f"note: {remark}", flush=True)
    return Runtime(chosen, threads or cpu_count(), progress)


def tune_process() -> None:
    """Set this process for offline work on many clip lengths.

    oneDNN keeps a primitive for every length, glibc, where there is one, large blocks (else page faults cost three
    forward passes).
    """
    for switch in OFFLINE_SWITCHES:
        os.environ.setdefault(switch, "1")
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "20000")
    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL("libc.so.6").mallopt
        trim_threshold, top_pad, mmap_max = -1, -2, -4
        for parameter, value in ((mmap_max, 0), (trim_threshold, 2**31 - 1), (top_pad, 64 * 2**20)):
            mallopt(parameter, value)


def full_float32() -> contextlib.AbstractContextManager[None]:
    """A context in which cuDNN convolves float32 without TF32; other flags stay."""
    now = torch.backends.cudnn
    return now.flags(
        enabled=now.enabled, benchmark=now.benchmark, deterministic=now.deterministic, allow_tf32=False
    )


def in_notebook() -> bool:
    """True under IPython, where the process must live on."""
    return getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)() is not None


def cpu_count() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def free_memory_bytes() -> int:
    """Memory left to kernel and container; 4 GiB where nobody tells."""
    free, group = 4 * 2**30, Path("/sys/fs/cgroup")
    with contextlib.suppress(OSError, ValueError, IndexError):
        free = int(Path("/proc/meminfo").read_text().split("MemAvailable:")[1].split()[0]) * 1024
    with contextlib.suppress(OSError, ValueError, IndexError):
        limit, used = (int((group / f"memory.{what}").read_text()) for what in ("max", "current"))
        cache = int((group / "memory.stat").read_text().split("inactive_file ")[1].split()[0])
        free = min(free, limit - used + cache)
    return max(0, free)


def in_worker() -> bool:
    """True in the child of a supervisor."""
    return os.environ.get(WORKER_MARK) == "1"
