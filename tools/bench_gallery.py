"""What it costs to find the nearest of ten thousand people: `OPENBLAS_NUM_THREADS=1 python tools/bench_gallery.py`."""

from __future__ import annotations

import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from command_line import Parser, run
from numpy.typing import NDArray

from edgefer import machine
from edgefer.gallery import Gallery, Newcomer, Template
from edgefer.vision.embedder import units


def main() -> None:
    """Enrol people with random faces, and time the matches."""
    parser = Parser(__doc__)
    parser.add_argument("--people", type=int, default=10_000, help="(%(default)s)")
    parser.add_argument("--templates", type=int, default=5, help="of each (%(default)s)")
    parser.add_argument("--size", type=int, default=128, help="values of an embedding (%(default)s)")
    wanted = parser.parse_args()
    shape = (wanted.people, wanted.templates, wanted.size)
    vectors = units(np.random.default_rng(1).standard_normal(shape, np.float32))
    with tempfile.TemporaryDirectory() as folder:
        # In a process of its own: memory that it gave back would hide what loading takes.
        with ProcessPoolExecutor(1, get_context("spawn")) as apart:
            file_mb = apart.submit(enrol, Path(folder), vectors).result()
        before_mb, start_s = machine.memory_mb(), time.perf_counter()
        with closing(Gallery(Path(folder), "bench")) as gallery:
            load_s, memory_mb = time.perf_counter() - start_s, machine.memory_mb() - before_mb
            times_ms = []
            for face in vectors[:500, 0]:
                start_s = time.perf_counter()
                gallery.match(face)
                times_ms.append((time.perf_counter() - start_s) * 1000)
    fast, median, slow = np.percentile(times_ms, (10, 50, 95))
    print(f"{wanted.people} people of {wanted.templates} templates of {wanted.size} values")
    print(f"a match: {median:.2f} ms (p10 {fast:.2f}, p95 {slow:.2f})")
    print(f"loading: {load_s:.2f} s; memory: {memory_mb:.1f} MB; file: {file_mb:.1f} MB")


def enrol(folder: Path, vectors: NDArray[np.float32]) -> float:
    """Make a gallery of people x templates x size; how large the file is, in MB."""
    with closing(Gallery(folder, "bench", create=True)) as gallery:
        people = [(f"Person {n}", faces) for n, faces in enumerate(vectors)]
        gallery.add_people([Newcomer(name, [Template(face, 1.0) for face in faces]) for name, faces in people])
        return gallery.path.stat().st_size / 1e6


if __name__ == "__main__":
    sys.exit(run(main))
