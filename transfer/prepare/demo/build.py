"""Makes the images of a demo set in chunks, with several processes. Images of an interrupted run are kept."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import cv2

from pretrain.common import pool
from pretrain.common.files import is_whole_jpeg, write_jpeg, write_json
from transfer.prepare.demo import coco_json, cutouts, fallback, streams
from transfer.prepare.demo.recipe import Recipe

CHUNK = 50  # images: about a third of a second of work
PACKAGES, FALLBACK = "debian packages", "fallback photographs"


@dataclass(frozen=True)
class Job:
    """Everything that a process needs to know to make any image of a set."""

    folder: Path
    cache: Path
    source: str  # PACKAGES or FALLBACK
    recipe: Recipe
    seed: int

    def __hash__(self) -> int:  # a recipe holds a dict, which has no hash; the sources depend only on these
        return hash((self.folder, self.cache, self.source))


@dataclass(frozen=True)
class Chunk:
    stream: str
    start: int
    stop: int

    @property
    def annotations(self) -> Path:
        """File for the annotations of a detection chunk until all chunks are done."""
        return Path(".work", f"{self.stream}-{self.start:06}.json")


@lru_cache(maxsize=1)
def sources_of(job: Job) -> cutouts.Sources:
    """Load the job's photographs, once per process; forked processes inherit them."""
    if job.source == FALLBACK:
        return fallback.load_sources()
    return cutouts.load_sources(job.cache, job.recipe.classes)


def build_images(job: Job, workers: int) -> int:
    """Make all missing images and the annotations of detection chunks. Return the number of new images."""
    chunks = [
        Chunk(stream, start, min(start + CHUNK, streams.count(stream, job.recipe)))
        for stream in streams.STREAMS
        for start in range(0, streams.count(stream, job.recipe), CHUNK)
    ]
    for stream in streams.STREAMS:
        for index in range(min(streams.count(stream, job.recipe), len(job.recipe.classes))):
            (job.folder / streams.path(stream, index, job.recipe)).parent.mkdir(parents=True, exist_ok=True)
    (job.folder / ".work").mkdir(exist_ok=True)
    todo = [chunk for chunk in chunks if not _is_done(job, chunk)]
    total, made = sum(chunk.stop - chunk.start for chunk in chunks), 0
    kept = total - sum(chunk.stop - chunk.start for chunk in todo)
    if kept:
        print(f"{kept} of {total} images already exist")
    with pool.Progress(total, kept) as progress:
        for size, new in _run(job, todo, workers):
            made += new
            progress.advance(size)
    return made


def read_annotations(job: Job, stream: str) -> list[tuple[str, list[dict[str, Any]]]]:
    """Return (file name, annotations) of each image of a detection stream, in order, from its finished chunks."""
    found: list[tuple[str, list[dict[str, Any]]]] = []
    for start in range(0, streams.count(stream, job.recipe), CHUNK):
        found += json.loads((job.folder / Chunk(stream, start, 0).annotations).read_text())
    return found


def _is_done(job: Job, chunk: Chunk) -> bool:
    if chunk.stream in streams.DETECTION and not (job.folder / chunk.annotations).is_file():
        return False
    paths = (streams.path(chunk.stream, index, job.recipe) for index in range(chunk.start, chunk.stop))
    return all(is_whole_jpeg(job.folder / path) for path in paths)


def _make_chunk(job: Job, chunk: Chunk) -> tuple[int, int]:
    """Make the chunk's missing images. Return the number of its images and of the new ones."""
    made, annotations = 0, []
    for index in range(chunk.start, chunk.stop):
        path = job.folder / streams.path(chunk.stream, index, job.recipe)
        missing = not is_whole_jpeg(path)
        if not missing and chunk.stream not in streams.DETECTION:
            continue
        image, instances = streams.make(
            sources_of(job), chunk.stream, index, recipe=job.recipe, seed=job.seed
        )
        if missing:
            write_jpeg(path, image)
            made += 1
        annotations.append((path.name, coco_json.annotations_of(instances, list(job.recipe.classes))))
    if chunk.stream in streams.DETECTION:
        write_json(job.folder / chunk.annotations, annotations, indent=None, sort_keys=True)
    return chunk.stop - chunk.start, made


def _run(job: Job, chunks: list[Chunk], workers: int) -> Iterator[tuple[int, int]]:
    if not chunks:
        return
    cv2.setNumThreads(1)
    sources_of(job)  # before forking, so that the photographs are in memory only once
    yield from pool.each(partial(_make_chunk, job), chunks, workers=workers)
