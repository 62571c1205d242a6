"""Permutes many indices at once as Grain's `shuffle` does one by one, to the bit.

Grain encrypts an index with four rounds of a small Simon cipher (Beaulieu et al. 2013,
eprint 2013/404) and encrypts again what is no index of the set, which makes a permutation (Black,
Rogaway 2002, "Ciphers with arbitrary finite domains"). Index by index that takes 10 us each, for
an epoch about as long as a GPU trains a small network.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np

ROUNDS = 4
FEWEST_BITS = 16  # that are encrypted
KEPT = 256  # orders of small sets, 33 MB at most: arms and rates of a claim share them


def permuted(size: int, seed: int, places: Sequence[int] | np.ndarray) -> np.ndarray:
    """Return what is at some places of the permutation of so many indices, int64.

    Args:
        size: number of indices, up to 2^32.
        seed: the permutation's; modulo 2^32.
        places: from 0 to size - 1.
    """
    bits = (size - 2).bit_length()  # the logarithm of the last index, rounded up
    if bits <= FEWEST_BITS:
        return _order(size, seed)[np.asarray(places)].astype(np.int64)
    found = np.array(places, np.int64)
    left = np.arange(len(found))  # whose index is not found yet
    while len(left):
        found[left] = _encrypted(found[left], (bits + 1) // 2, seed)
        left = left[found[left] >= size]
    return found


@functools.lru_cache(maxsize=KEPT)
def _order(size: int, seed: int) -> np.ndarray:
    """Return the whole permutation of a small set, uint16.

    A few indices are many encryptions apart, so each pass doubles the steps of what is no index.
    """
    block = np.arange(2**FEWEST_BITS)
    encrypted = _encrypted(block, FEWEST_BITS // 2, seed)
    found = encrypted[np.arange(size) % len(block)]
    steps = np.where(block < size, block, encrypted)
    while (found >= size).any():
        found, steps = steps[found], steps[steps]
    found = found.astype(np.uint16)
    found.setflags(write=False)
    return found


def _encrypted(block: np.ndarray, word: int, seed: int) -> np.ndarray:
    """Encrypt blocks of two words of so many bits, int64."""
    mixed, keys = _mixed(word), [key % 2**word for key in _keys(seed % 2**32)]
    left, right = (block >> word) % 2**word, block % 2**word
    for first, second in zip(keys[::2], keys[1::2], strict=True):
        left ^= mixed[right] ^ first
        right ^= mixed[left] ^ second
    return (left << word) | right


@functools.cache
def _mixed(word: int) -> np.ndarray:
    """Return the cipher's function for every word of so many bits."""
    x = np.arange(2**word)

    def rotated(by: int) -> np.ndarray:
        return ((x << by) | (x >> (word - by))) % 2**word

    return (rotated(1) & rotated(8)) ^ rotated(2)


def _keys(seed: int) -> list[int]:
    """Return the keys of the rounds: what C++'s `std::seed_seq` makes of one number."""
    full, keys = 2**32, [0x8B8B8B8B] * ROUNDS

    def scrambled(value: int, factor: int) -> int:
        return factor * (value ^ (value >> 27)) % full

    for k in range(ROUNDS):
        after, third = (k + 1) % ROUNDS, (k + 2) % ROUNDS
        mix = scrambled(keys[k] ^ keys[after] ^ keys[k - 1], 1664525)
        given = (mix + (1, 1 + seed, 2, 3)[k]) % full  # how many numbers there are, and the number
        keys[after], keys[third] = (keys[after] + mix) % full, (keys[third] + given) % full
        keys[k] = given
    for k in range(ROUNDS):
        after, third = (k + 1) % ROUNDS, (k + 2) % ROUNDS
        mix = scrambled((keys[k] + keys[after] + keys[k - 1]) % full, 1566083941)
        taken = (mix - k) % full
        keys[after], keys[third] = keys[after] ^ mix, keys[third] ^ taken
        keys[k] = taken
    return keys
