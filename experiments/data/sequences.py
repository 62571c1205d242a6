"""Reads sequences of unequal length and texts: spoken digits, film reviews, folders of text files.

============  =================  ==============================================================
name          train/valid/test   what an example is
============  =================  ==============================================================
fsdd          2400/300/300       log-mel frames of a spoken digit, `[length, 20]`, every 20 ms;
                                 valid: recordings 5 to 9 of each speaker and digit
fsdd, fold n  2250/250/500       the same; test: all that speaker n said, from 1 to 6; valid:
                                 recordings 5 to 9 of the other five
imdb_reviews  22500/2500/25000   the last `length` words of a review
text          by the folder      `length + 1` characters or words that follow one another
============  =================  ==============================================================

A folder of text has files with train, valid and test in their names, or else any `*.txt`, whose
first 90 % are for training and next 5 % for validation. Means, deviations and vocabularies are
those of the training split alone. Written after the HTK book's mel scale.
"""

from __future__ import annotations

import collections
import functools
import itertools
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from etils import epath

from experiments.config.defaults import TRAIN_SIZE
from experiments.data import tfds_records
from experiments.usage import UsageError

RATE, WINDOW, HOP, MELS = 8000, 400, 160, 20  # 50 ms of sound every 20 ms
UNKNOWN = "<unk>"
LARGEST = 10**9  # tokens of a split's segments, 4 GB


class Sequences(NamedTuple):
    """`x [examples, length(, features)]`: words or frames; steps past `lengths` are padding."""

    x: np.ndarray | jax.Array
    lengths: np.ndarray | jax.Array
    labels: np.ndarray | jax.Array


class Segments(NamedTuple):
    """Pieces of a text, `[examples, length + 1]`."""

    tokens: np.ndarray | jax.Array


# ------------------------------------------------------------------------------------- speech


def mel_filters(bins: int, mels: int = MELS, rate: int = RATE) -> np.ndarray:
    """Make triangles `[bins, mels]`, evenly spaced in 2595 log10(1 + f / 700) up to rate / 2."""
    top = 2595 * np.log10(1 + rate / 2 / 700)
    edges = 700 * (10 ** (np.linspace(0, top, mels + 2) / 2595) - 1)
    f = np.linspace(0, rate / 2, bins)[:, None]
    low, middle, high = edges[:-2], edges[1:-1], edges[2:]
    return np.clip(np.minimum((f - low) / (middle - low), (high - f) / (high - middle)), 0, None)


def log_mel(audio: np.ndarray, length: int) -> np.ndarray:
    """Compute frames `[steps, MELS]` of int16 sound, at most `length`, at least one."""
    sound = np.pad(audio.astype(np.float64) / 32768, (0, max(0, WINDOW - len(audio))))
    steps = min(1 + (len(sound) - WINDOW) // HOP, length)
    index = np.arange(WINDOW) + HOP * np.arange(steps)[:, None]
    power = np.abs(np.fft.rfft(sound[index] * np.hanning(WINDOW))) ** 2
    return np.log(power @ mel_filters(power.shape[1]) + 1e-6)


class Recording(NamedTuple):
    """A spoken digit: its frames `[steps, MELS]`, who said it, and its number by speaker, digit."""

    frames: np.ndarray
    label: int
    speaker: int
    number: int


@functools.lru_cache(maxsize=2)
def _recordings(folder: epath.Path, length: int) -> list[Recording]:
    sizes, found = {"train": 2700, "test": 300}, []
    keys = ("label", "speaker", "index")
    for source in tfds_records.sources(folder, sizes, ("audio", *keys)).values():
        with tfds_records.reading(folder):
            for example in source.__getitems__(range(len(source))):
                frames = log_mel(np.asarray(example["audio"]), length)
                found.append(Recording(frames, *(int(example[key]) for key in keys)))
    return found


@functools.lru_cache(maxsize=6)
def fsdd(folder: epath.Path, length: int, fold: int = 0) -> tuple[Sequences, Sequences, Sequences]:
    """Read the Free Spoken Digit Dataset in three splits, every mel band standardized.

    The test set is the data set's own, recordings 0 to 4 of each speaker and digit, or all of the
    speaker with number `fold`, counted from 1.
    """
    parts: dict[str, list[Any]] = {"train": [], "valid": [], "test": []}
    for example in _recordings(folder, length):
        held_out = example.speaker == fold - 1 if fold else example.number < 5
        validation = 5 <= example.number < 10
        split = "test" if held_out else "valid" if validation else "train"
        parts[split].append((example.frames, example.label))
    frames_read = np.concatenate([frames for frames, _ in parts["train"]])
    mean, std = frames_read.mean(0), frames_read.std(0)

    def pack(examples: Sequence[Any]) -> Sequences:
        x = np.zeros((len(examples), length, MELS), np.float32)
        for i, (frames, _) in enumerate(examples):
            x[i, : len(frames)] = (frames - mean) / std
        lengths = np.array([len(frames) for frames, _ in examples], np.int32)
        return Sequences(x, lengths, np.array([label for _, label in examples], np.int32))

    return pack(parts["train"]), pack(parts["valid"]), pack(parts["test"])


# -------------------------------------------------------------------------------------- words


def vocabulary(words: Iterable[str], size: int) -> dict[str, int]:
    """Number the most frequent words from 1; 0 stands for every other word."""
    counts = collections.Counter(words)
    counts.pop(UNKNOWN, None)
    # by count, then by word: a Counter has the order of the text, which may be reshuffled
    common = sorted(counts, key=lambda word: (-counts[word], word))[: size - 1]
    return {UNKNOWN: 0, **{word: i for i, word in enumerate(common, 1)}}


@functools.lru_cache(maxsize=2)
def imdb(
    folder: epath.Path, length: int, size: int
) -> tuple[tuple[Sequences, Sequences, Sequences], dict[str, int]]:
    """Read reviews as the numbers of their last `length` words, and the words by number."""
    read: dict[str, tuple[list[list[str]], np.ndarray]] = {}
    sizes = {"train": 25_000, "test": 25_000}
    for split, source in tfds_records.sources(folder, sizes, ("text", "label")).items():
        texts: list[list[str]] = []
        labels_read: list[int] = []
        with tfds_records.reading(folder):
            for start in range(0, len(source), 512):
                for example in source.__getitems__(range(start, min(start + 512, len(source)))):
                    text = example["text"].decode().lower().replace("<br />", " ")
                    texts.append(re.findall(r"[a-z0-9']+", text))
                    labels_read.append(int(example["label"]))
        read[split] = texts, np.array(labels_read, np.int32)
    cut = TRAIN_SIZE["imdb_reviews"]
    texts, labels = read["train"]
    known = vocabulary(itertools.chain.from_iterable(texts[:cut]), size)

    def pack(texts: list[list[str]], labels: np.ndarray) -> Sequences:
        x = np.zeros((len(texts), length), np.int32)
        lengths = np.zeros(len(texts), np.int32)
        for i, words in enumerate(texts):
            last = words[-length:]
            x[i, : len(last)] = [known.get(word, 0) for word in last]
            lengths[i] = len(last)
        return Sequences(x, lengths, labels)

    test = pack(*read["test"])
    return (pack(texts[:cut], labels[:cut]), pack(texts[cut:], labels[cut:]), test), known


def vectors(path: epath.PathLike, known: Mapping[str, int], size: int) -> np.ndarray:
    """Read a row for each of `size` words from a file like GloVe's; NaN for words not in it.

    Each line is a word and its numbers.
    """
    by_word: dict[str, np.ndarray] = {}
    width, at = 0, f"config.data.vectors={os.fspath(path)}"
    try:
        with epath.Path(path).expanduser().open("r", encoding="utf-8") as file:
            for i, line in enumerate(file, 1):
                word, *numbers = line.rstrip().split(" ")
                width = width or len(numbers)
                if len(numbers) != width or not width:
                    raise UsageError(
                        f"line {i} of {at} has {len(numbers)} numbers and the first has {width}: "
                        "each line is a word and its vector, as in GloVe's files."
                    )
                if word in known and word != UNKNOWN:
                    by_word[word] = _vector(numbers, f"line {i} of {at}")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(
            f"{at} cannot be read as UTF-8 text ({error}); write the path of a file such as "
            "glove.6B.50d.txt, unpacked."
        ) from error
    if not width:
        raise UsageError(f"{at} is empty; write the path of a file with a word and its vector.")
    table = np.full((size, width), np.nan, np.float32)
    for word, vector in by_word.items():
        table[known[word]] = vector
    return table


def _vector(numbers: Sequence[str], where: str) -> np.ndarray:
    """Read a word's numbers, all of them finite."""
    try:
        vector = np.array(numbers, np.float32)
    except ValueError as error:
        raise UsageError(f"{where} holds what is no number ({str(error)[:80]}).") from error
    if not np.isfinite(vector).all():
        raise UsageError(f"{where} holds a number that is not finite.")
    return vector


# --------------------------------------------------------------------------------------- text


def read_text(path: epath.Path) -> str:
    """Read a file of UTF-8 text."""
    try:
        body = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(
            f"{path} cannot be read as UTF-8 text ({error}); write it as UTF-8, with "
            "iconv -f latin1 -t utf-8, for instance."
        ) from error
    if "\0" in body:
        raise UsageError(f"{path} holds zero bytes: it is no text; write one in UTF-8.")
    return body


def _text_files(folder: epath.Path) -> list[epath.Path]:
    return sorted(path for path in folder.glob("*.txt") if path.is_file())


def find_text(name: str, data_dir: str = "") -> dict[str, list[epath.Path]]:
    """Return the files of a text by split, or as "all" if their names do not say which."""
    roots = [epath.Path(data_dir).expanduser()] if data_dir else []
    if root := os.environ.get("NORMJAX_DATA_DIR"):
        roots.append(epath.Path(root).expanduser())
    candidates = [epath.Path(name).expanduser()]
    candidates += [p for root in roots for p in (root / "text" / name, root.parent / "text" / name)]
    files = next((f for p in candidates if (f := _text_files(p))), [])
    if not files:
        looked = ", ".join(str(p) for p in candidates)
        raise UsageError(
            f"text {name!r} is no folder with *.txt files; looked at {looked}. Write "
            "--config.data.text=FOLDER, or put it as text/NAME into the folder that "
            "NORMJAX_DATA_DIR names."
        )
    by = {split: [p for p in files if split in p.name] for split in ("train", "valid", "test")}
    some = [split for split, paths in by.items() if paths]
    if not some:
        return {"all": files}
    if len(some) < 3:
        raise UsageError(
            f"{files[0].parent} has files for {', '.join(some)} alone; a text has one file for "
            "each of train, valid and test, or files with none of these in their names."
        )
    return by


@functools.lru_cache(maxsize=4)
def text(
    name: str, data_dir: str, unit: str, size: int, length: int, stride: int
) -> tuple[Segments, Segments, Segments, int]:
    """Read a text in three splits, and its vocabulary's size; only training segments overlap."""
    files = find_text(name, data_dir)
    whole = {s: "".join(map(read_text, files[s])) for s in files}
    if "all" in whole:
        body = whole["all"]
        a, b = int(0.9 * len(body)), int(0.95 * len(body))
        whole = {"train": body[:a], "valid": body[a:b], "test": body[b:]}

    def units(body: str) -> Sequence[str]:
        return body if unit == "chars" else body.replace("\n", " <eos> ").split()

    pieces = {split: units(body) for split, body in whole.items()}
    known = vocabulary(pieces["train"], size)
    ids = {s: np.array([known.get(u, 0) for u in part], np.int32) for s, part in pieces.items()}

    def cut(split: str, step: int) -> Segments:
        starts = np.arange(0, len(ids[split]) - length, step)
        if not len(starts):
            raise UsageError(
                f"the {split} split of text {name!r} has {len(ids[split])} {unit}; write "
                f"--config.data.length={max(1, len(ids[split]) - 1)} or less."
            )
        if len(starts) * (length + 1) > LARGEST:
            raise UsageError(
                f"{len(starts):,} segments of config.data.length={length} from text {name!r} do "
                "not fit in memory; write a larger --config.data.stride, or a smaller length."
            )
        return Segments(ids[split][starts[:, None] + np.arange(length + 1)])

    cuts = cut("train", stride or length), cut("valid", length), cut("test", length)
    return (*cuts, len(known))


def load(
    name: str, folder: Any, data_dir: str, options: Mapping[str, Any]
) -> tuple[Any, int, int, np.ndarray | None]:
    """Read three splits, the numbers of classes and words (0: no words), and the words' vectors."""
    if name == "fsdd":
        return fsdd(folder, options["length"], options.get("fold", 0)), 10, 0, None
    if name == "imdb_reviews":
        size = options["vocabulary"]
        reviews, known = imdb(folder, options["length"], size)
        path = options.get("vectors", "")
        return reviews, 2, size, vectors(path, known, size) if path else None
    arguments = (options[k] for k in ("unit", "vocabulary", "length", "stride"))
    *splits, size = text(options["text"], data_dir, *arguments)
    return splits, size, size, None
