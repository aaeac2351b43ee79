"""The most memory that a process has held."""

import os
from pathlib import Path


def peak_bytes(pid: int | None = None) -> int:
    """Highest resident memory of a process so far, this one by default.

    Linux' own high-water mark of the program: `getrusage` also counts what the process that started this one
    held. Elsewhere what is resident now, which is a lower bound.
    """
    status = Path(f"/proc/{pid or os.getpid()}/status")
    if status.exists():
        (line,) = (line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return 1024 * int(line.split()[1])
    import psutil

    return int(psutil.Process(pid).memory_info().rss)
