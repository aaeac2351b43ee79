import os
import subprocess
import sys

import numpy as np

from recsys.peak_memory import peak_bytes

CHILD = "from recsys.peak_memory import peak_bytes; print(peak_bytes())"


def test_what_the_process_that_started_it_held_does_not_count() -> None:
    held = np.ones(500_000_000, dtype=np.uint8)
    child = subprocess.run([sys.executable, "-c", CHILD], capture_output=True, text=True, check=True)
    assert 1_000_000 < int(child.stdout) < 250_000_000
    assert peak_bytes() >= held.nbytes
    assert peak_bytes(os.getpid()) == peak_bytes()
