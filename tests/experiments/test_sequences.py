from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import normjax as nj
from experiments.config import defaults, validate
from experiments.data import datasets, sequences, splits
from experiments.runtime import step
from experiments.tasks import Batch, sequence
from experiments.tasks.language import LanguageModel
from experiments.tasks.sequence import SequenceClassifier
from experiments.usage import UsageError

OPTIONS = {"text": "", "unit": "chars", "vocabulary": 100, "length": 4, "stride": 0}


def write(folder, **files):
    folder.mkdir(exist_ok=True)
    for name, body in files.items():
        (folder / f"{name}.txt").write_text(body)
    return str(folder)


def test_a_folder_of_text_becomes_segments_that_overlap_by_one(tmp_path):
    folder = write(tmp_path / "a", train="abcabcabcabca", valid="abcabz", test="cbacba")
    sets = datasets.load("text", options={**OPTIONS, "text": folder})
    assert sets.vocabulary == sets.classes == 4  # a, b, c and the unknown
    names = {0: "?", **{i: u for u, i in sequences.vocabulary("abcabcabcabca", 100).items() if i}}
    read = ["".join(names[int(i)] for i in row) for row in sets.train.tokens]
    assert read == ["abcab", "bcabc", "cabca"]
    assert "".join(names[int(i)] for i in sets.valid.tokens[0]) == "abcab"
    near = datasets.load("text", options={**OPTIONS, "text": folder, "stride": 3})
    assert near.train.tokens.shape == (3, 5) and near.valid.tokens.shape == (1, 5)


def test_words_end_lines_and_the_rare_are_unknown(tmp_path):
    body = "the cat sat\nthe dog\n" * 40
    options = {**OPTIONS, "text": write(tmp_path / "b", book=body), "unit": "words"}
    sets = datasets.load("text", options={**options, "vocabulary": 3})
    # the and <eos> are the most frequent; cat, dog and sat are as frequent as each other
    assert sets.vocabulary == 3 and set(np.unique(sets.train.tokens)) == {0, 1, 2}
    # 90 %, 5 % and 5 % of the characters
    assert len(sets.train.tokens) > 10 * len(sets.test.tokens) > 0


def test_what_a_text_lacks_is_told(tmp_path):
    with pytest.raises(UsageError, match=r"no folder with \*\.txt files.*NORMJAX_DATA_DIR"):
        datasets.load("text", options={**OPTIONS, "text": str(tmp_path / "none")})
    folder = write(tmp_path / "c", train="abc" * 10)
    with pytest.raises(UsageError, match="has files for train alone"):
        datasets.load("text", options={**OPTIONS, "text": folder})
    folder = write(tmp_path / "d", book="abcdef" * 10)
    with pytest.raises(
        UsageError, match=r"valid split .* has 3 chars; write --config.data.length=2"
    ):
        datasets.load("text", options={**OPTIONS, "text": folder})


def test_mel_bands_are_triangles_over_all_frequencies():
    filters = sequences.mel_filters(201)
    assert filters.shape == (201, sequences.MELS) and filters.min() == 0 and filters.max() <= 1
    centres = filters.argmax(0)
    assert (np.diff(centres) > 0).all() and np.diff(centres)[-1] > np.diff(centres)[0]


def test_a_tone_is_loudest_in_its_band():
    time = np.arange(4000) / sequences.RATE
    frames = sequences.log_mel((8000 * np.sin(2 * np.pi * 1000 * time)).astype(np.int16), 40)
    assert frames.shape == (23, sequences.MELS)
    expected = sequences.mel_filters(201)[50].argmax()  # bin 50 of 201 is 1000 Hz
    assert set(frames.argmax(1)) == {expected}
    assert sequences.log_mel(np.zeros(10, np.int16), 40).shape == (1, sequences.MELS)


def test_spoken_digits_have_their_lengths(data_dir):
    if not list(data_dir.glob("**/fsdd/*/dataset_info.json")):
        pytest.skip(f"fsdd is not in {data_dir}")
    sets = datasets.load("fsdd", options={"length": 40})
    assert [splits.size(s) for s in sets[:3]] == [2400, 300, 300]
    for split in sets[:3]:
        assert split.lengths.min() >= 1 and split.lengths.max() == 40
        past = np.arange(40) >= split.lengths[:, None]
        assert (split.x[past] == 0).all()
        assert np.bincount(split.labels).tolist() == [len(split.labels) // 10] * 10
    inside = np.arange(40) < sets.train.lengths[:, None]
    np.testing.assert_allclose(sets.train.x[inside].mean(0), 0, atol=1e-4)
    np.testing.assert_allclose(sets.train.x[inside].std(0), 1, atol=1e-3)
    fold = datasets.load("fsdd", options={"length": 40, "fold": 3})
    assert [splits.size(s) for s in fold[:3]] == [defaults.FOLD_SIZE, 250, 500]


def test_a_fold_holds_out_a_speaker(monkeypatch):
    """Six speakers, ten digits, fifty recordings; a frame says who, which digit and which one."""
    said = [
        sequences.Recording(np.full((2, sequences.MELS), 100.0 * s + i + d / 16), d, s, i)
        for s in range(6)
        for d in range(10)
        for i in range(50)
    ]
    monkeypatch.setattr(sequences, "_recordings", lambda folder, length: said)
    parts = sequences.fsdd.__wrapped__("folder", 3, 2)
    assert [splits.size(part) for part in parts] == [defaults.FOLD_SIZE, 250, 500]
    train = [r for r in said if r.speaker != 1 and not 5 <= r.number < 10]
    values = np.array([r.frames[0, 0] for r in train])

    def speakers_and_numbers(part):
        np.testing.assert_array_equal(part.x[:, 2], 0)
        value = part.x[:, 0, 0] * values.std() + values.mean()  # standardized by training alone
        return {(int(v // 100), int(v % 100)) for v in value + 1e-2}

    others = {0, 2, 3, 4, 5}
    assert speakers_and_numbers(parts[2]) == {(1, i) for i in range(50)}
    assert speakers_and_numbers(parts[1]) == {(s, i) for s in others for i in range(5, 10)}
    assert speakers_and_numbers(parts[0]) == {(r.speaker, r.number) for r in train}


def test_a_draw_within_a_fold_leaves_its_validation_set(monkeypatch):
    def part(start, size):
        numbers = np.arange(start, start + size)
        return sequences.Sequences(numbers[:, None], np.ones(size), numbers % 10)

    whole = part(0, 40), part(40, 10), part(50, 20)
    monkeypatch.setattr(datasets.sequences, "load", lambda *arguments: (whole, 10, 0, None))
    monkeypatch.setattr(datasets, "find", lambda *arguments: "folder")
    monkeypatch.setattr(datasets, "cache_locally", lambda folder: folder)
    options = {"length": 1, "draw": 3, "train_size": 15}
    held_out = datasets.load("fsdd", options={**options, "fold": 2})
    drawn = held_out.train.labels
    assert len(drawn) == 15 and held_out.train.x.max() < 40
    np.testing.assert_array_equal(held_out.valid.x, whole[1].x)
    other = datasets.load("fsdd", options={**options, "fold": 2, "draw": 4})
    assert set(other.train.x[:, 0]) != set(held_out.train.x[:, 0])
    pooled = datasets.load("fsdd", options={**options, "fold": 0, "train_size": 0})
    assert pooled.train.x.max() > 40 and pooled.valid.x.min() < 40


@pytest.mark.slow
def test_reviews_keep_their_last_words(data_dir):
    if not list(data_dir.glob("**/imdb_reviews/*/*/dataset_info.json")):
        pytest.skip(f"imdb_reviews is not in {data_dir}")
    sets = datasets.load("imdb_reviews", options={"length": 50, "vocabulary": 1000})
    assert [splits.size(s) for s in sets[:3]] == [22_500, 2500, 25_000]
    assert sets.train.x.max() == 999 and sets.vocabulary == 1000 and sets.classes == 2
    assert abs(sets.test.labels.mean() - 0.5) < 1e-6


def test_embeddings_start_from_vectors_where_a_file_has_them(tmp_path):
    path = tmp_path / "glove.txt"
    path.write_text("the 1.0 2.0 3.0\nfilm 4.0 5.0 6.0\nunseen 7.0 8.0 9.0\n")
    vectors = sequences.vectors(path, {sequences.UNKNOWN: 0, "film": 1, "dull": 2}, 4)
    np.testing.assert_array_equal(np.isnan(vectors).all(1), [True, False, True, True])
    np.testing.assert_array_equal(vectors[1], [4, 5, 6])
    x = sequences.Sequences(np.zeros((2, 6), np.int32), np.array([6, 3]), np.array([0, 1]))
    dataset = splits.Dataset(x, x, x, 1.0, 2, 4, vectors)
    config = defaults.default()
    config.dataset = "imdb_reviews"
    config.model.update(hidden=4, embed=3)
    plain = config.to_dict()
    embed = sequence.build(plain, dataset).init(jax.random.key(0))[0]["embed"]
    drawn = sequence.build(plain, dataset._replace(vectors=None)).init(jax.random.key(0))[0]
    np.testing.assert_array_equal(embed[1], vectors[1])
    rest = np.array([0, 2, 3])
    np.testing.assert_array_equal(embed[rest], drawn["embed"][rest])
    plain["model"]["embed"] = 5
    with pytest.raises(UsageError, match=r"write config.model.embed=3"):
        sequence.build(plain, dataset)
    path.write_text("the 1.0 2.0\nfilm 4.0\n")
    with pytest.raises(UsageError, match=r"line 2 of .* has 1 numbers and the first has 2"):
        sequences.vectors(path, {"film": 1}, 2)
    config.data.vectors = str(tmp_path / "none.txt")
    with pytest.raises(UsageError, match=r"is no file; write the path of one"):
        datasets.require({**config.to_dict(), "dataset": "digits"})


def batch_norm(steps):
    return nj.recurrent.per_step(nj.batch_norm(), steps)


def padded(task, examples, weight):
    """Rows of weight 0, whatever they hold, change neither sums nor state."""
    params, norm = task.init(jax.random.key(0))
    real = int((weight > 0).sum())
    scores = jax.jit(functools.partial(task, stats="batch"))
    some, moved = scores(params, norm, Batch(examples, weight))
    whole, expected = scores(params, norm, Batch(splits.take(examples, slice(0, real))))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5), some, whole)
    close = functools.partial(np.testing.assert_allclose, rtol=2e-5, atol=1e-8)  # means cancel
    jax.tree.map(close, moved, expected)
    return whole


def test_a_language_model_counts_tokens_and_leaves_padding_out():
    layer = nj.recurrent.lstm(4, norm_h=batch_norm(6))
    tokens = jax.random.randint(jax.random.key(1), (5, 7), 0, 9)
    weight = jnp.array([1.0, 1.0, 1.0, 0.0, 0.0])
    for embed in (0, 3):
        scores = padded(LanguageModel(layer, 9, embed), sequences.Segments(tokens), weight)
        assert scores.count == 18 and 1.5 < scores.loss / 18 < 3.5


def test_a_classifier_of_words_and_frames_leaves_padding_out():
    layer = nj.recurrent.stack([nj.recurrent.rnn(4, norm_x=batch_norm(6))] * 2)
    lengths, labels = jnp.array([6, 3, 5, 2, 1]), jnp.arange(5) % 2
    weight = jnp.array([1.0, 1.0, 1.0, 0.0, 0.0])
    frames = jax.random.normal(jax.random.key(1), (5, 6, 3))
    words = jax.random.randint(jax.random.key(1), (5, 6), 0, 9)
    for x, vocabulary in ((frames, 0), (words, 9)):
        task = SequenceClassifier(layer, 2, 3, vocabulary=vocabulary)
        assert padded(task, sequences.Sequences(x, lengths, labels), weight).count == 3


def test_images_come_as_pixels_rows_or_pictures():
    shapes = {"pixels": (1437, 64), "rows": (1437, 8, 8), "images": (1437, 8, 8, 1)}
    whole = datasets.load("digits").train.pixels.reshape(-1, 8, 8)
    for layout, shape in shapes.items():
        pixels = datasets.load("digits", options={"layout": layout}).train.pixels
        assert pixels.shape == shape
        np.testing.assert_array_equal(pixels.reshape(whole.shape), whole)
    small = datasets.load("digits", options={"side": 4, "train_size": 10}).train.pixels
    assert small.shape == (10, 16)
    np.testing.assert_allclose(small[0, 0], whole[0, :2, :2].mean(), atol=0.5)
    with pytest.raises(UsageError, match="the train split of digits has 1437"):
        datasets.load("digits", options={"train_size": 2000})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data.side": 5}, "does not divide 8, the side of digits; write one of 1, 2, 4, 8"),
        ({"task": "langage"}, "Did you mean 'language'"),
        ({"task": "language"}, "reads config.dataset='text', not 'digits'"),
        ({"dataset": "imdb_reviews"}, "write config.model.embed=32"),
        ({"dataset": "text"}, "has no labels; write config.task='language'"),
        ({"data.layout": "row"}, "Did you mean 'rows'"),
        ({"select": "los"}, "Did you mean 'loss'"),
        ({"optim.l2": -1.0}, "config.optim.l2=-1.0 must be a number at least 0"),
    ],
)
def test_check_says_what_data_and_task_need(tiny, changes, message):
    config = tiny("lstm")
    config.update_from_flattened_dict(changes)
    with pytest.raises(UsageError) as error:
        validate.check(config)
    assert message in str(error.value)


def test_penalties_leave_biases_and_norms_alone():

    base = {"learning_rate": 1.0, "decay": 0.9, "momentum": 0.0, "eps": 1e-8, "name": "sgd"}
    params = {"kernel": jnp.array([[2.0, -3.0]]), "bias": jnp.array([5.0])}
    zero = jax.tree.map(jnp.zeros_like, params)
    tx = step.optimizer({**base, "clip_norm": 0.0, "l2": 0.1, "l1": 0.01})
    updates, _ = tx.update(zero, tx.init(params), params)
    np.testing.assert_allclose(updates["kernel"], [[-0.21, 0.31]], rtol=1e-6)
    assert updates["bias"] == 0
