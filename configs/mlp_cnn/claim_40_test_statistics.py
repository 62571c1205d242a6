"""Trains LeNet with batch norm on clean images and tests it on corrupted ones.

The corruptions are those of ImageNet-C that no resolution defines, at its severity 3 of 5: Gaussian
noise of deviation 0.18, salt and pepper on 9 % of the pixels, brightness up by 0.3, contrast to
each image's mean cut to 0.2; clipped to [0, 1], and drawn from one seed, the same for all
replicates. Test accuracies are of the same parameters with population statistics of the training
images, or with those of each batch of 500 or 32 test images, which come in the data set's order or
sorted by label. One rate: with several, each kind of statistics would pick its own parameters.
Where brightness or contrast changes all images alike and nothing is clipped, the first batch norm
takes it out exactly, whatever was learned; noise it cannot take out, so it has a claim of its own.
A draft of three replicates of the first size was seen before the claims were registered; it
changed no rule and no smallest effect. One draw of the noise and one test set serve all replicates,
and intervals hold neither. Claim d is the opposite of what its source found on ImageNet, as its
expectation says.
"""

import jax
import numpy as np

from configs.mlp_cnn import _protocol
from experiments.ledger.claims import Claim, Control, Group, Settled, contrast, more
from experiments.runtime import step

LARGE, SMALL = 500, 32
NOISES, CHANGES = ("gaussian", "impulse"), ("brightness", "contrast")
SHIFTS = (*NOISES, *CHANGES)
SCHNEIDER = "Schneider et al. 2020, arXiv:2006.16971"
BENZ = "Benz et al. 2020, arXiv:2010.03630"
NADO = "Nado et al. 2020, arXiv:2006.10963"
ABSTRACTS = (
    "ResNet-50 on ImageNet-C: accuracy 39.2 % with the training set's statistics, 48.7 % with "
    "those of 32 corrupted images (abstract of Benz et al.); normalized error 76.7 and 62.2 % "
    "(abstract of Schneider et al., all test images of a corruption)"
)
HALF = "half of the 9.5 points of the abstract of Benz et al."
POPULATION, BATCH = "population", "batch"


def hurts(kind):
    """With the training set's statistics; else there is nothing to mend."""
    rule = more("bn", "bn", f"clean.{POPULATION}", other=f"{kind}.{POPULATION}")
    return Control(f"{kind} images are harder with the training set's statistics", rule, 0.0475)


def claim(letter, title, statement, left, right, *, delta=0.0475, kind="more", **more_of_it):
    terms = (1.0, "bn", left), (-1.0, "bn", right)
    return Claim(
        letter=letter,
        title=title,
        statement=statement,
        rule=contrast(f"accuracy, {left} − {right}", *terms, kind=kind),
        delta=delta,
        change="colour images of a size at which ImageNet-C's blur and weather are defined",
        methods=("batch norm", "population statistics"),
        **more_of_it,
    )


GROUP = Group(
    number=40,
    title="Batch norm on corrupted images: the test batch's statistics",
    topic="population statistics",
    source="Schneider et al. 2020; Benz et al. 2020; Nado et al. 2020",
    axis=_protocol.AXIS,
    scales=_protocol.scales("fashion_mnist", 1, cost=3.0, source="ResNet-50, ImageNet-C"),
    arms=("bn",),
    claims=(
        claim(
            "a",
            "On corrupted images the test batch's statistics help",
            "On corrupted test images, averaged over four corruptions, batch norm predicts better "
            "with the statistics of 500 of them than with those of the clean training images",
            f"shifted.{BATCH}",
            f"shifted.{POPULATION}",
            why=HALF,
            expect=ABSTRACTS,
            published=0.095,
            source=f"{SCHNEIDER}; {BENZ}",
            controls=(hurts("shifted"), Settled()),
        ),
        claim(
            "b",
            "On noisy images the test batch's statistics help",
            "On test images with Gaussian noise or salt and pepper, batch norm predicts better "
            "with the statistics of 500 of them than with those of the clean training images",
            f"noisy.{BATCH}",
            f"noisy.{POPULATION}",
            why=f"{HALF}, of all corruptions together",
            expect=ABSTRACTS,
            published=0.095,
            source=f"{SCHNEIDER}; {BENZ}",
            controls=(hurts("noisy"), Settled()),
        ),
        claim(
            "c",
            "The statistics of 32 corrupted images suffice",
            "On corrupted test images, averaged over four corruptions, batch norm predicts better "
            "with the statistics of 32 of them than with those of the clean training images",
            f"shifted.{BATCH}{SMALL}",
            f"shifted.{POPULATION}",
            why=HALF,
            expect=f"{ABSTRACTS}; the former takes 32 images once, not anew for each batch",
            published=0.095,
            source=BENZ,
            controls=(hurts("shifted"), Settled()),
        ),
        claim(
            "d",
            "On clean images the test batch's statistics cost nothing",
            "On clean test images batch norm predicts no worse with the statistics of 500 of them "
            "than with those of the training images",
            f"clean.{BATCH}",
            f"clean.{POPULATION}",
            delta=0.01,
            kind="not_worse",
            why="no number was at hand; about a tenth of what the statistics gain in the abstract "
            "of Benz et al., a price that one would pay",
            expect="somewhat lower accuracy on test images of the training distribution (in words; "
            "from memory, not verified)",
            source=NADO,
            controls=(Settled(),),
        ),
        claim(
            "e",
            "With one class a batch, the test batch's statistics harm",
            "On the same corrupted images sorted by label, so that a batch of 500 has one class, "
            "batch norm predicts worse with the batch's statistics than with those of the clean "
            "training images",
            f"shifted.{POPULATION}",
            "shifted.sorted",
            why="no number was at hand; as much as claim a asks for on mixed batches, the other "
            "way round",
            expect="a drop where the shares of the classes in a test batch are not those of "
            "training (in words; from memory, not verified)",
            source=NADO,
            controls=(Settled(),),
        ),
    ),
    rates=(0.3,),
)


def get_config(arm, scale="fashion5k"):
    """ReLU and batch norm before it in all four hidden layers."""
    norm = _protocol.NORMS[arm]
    options = _protocol.sized(scale)
    return _protocol.lenet(arm, activation="relu", norm_conv=norm, norm_dense=norm, **options)


def corrupted(pixels, kind):
    """Images `[N, H, W, 1]` of bytes with one of ImageNet-C's corruptions at severity 3."""
    rng = np.random.RandomState(SHIFTS.index(kind))  # its stream never changes
    x = np.asarray(pixels, np.float32) / 255
    if kind == "gaussian":
        x = x + rng.normal(0, 0.18, x.shape)
    elif kind == "impulse":
        x = np.where(rng.uniform(size=x.shape) < 0.09, rng.randint(0, 2, x.shape), x)
    elif kind == "brightness":
        x = x + 0.3
    else:
        mean = x.mean((1, 2), keepdims=True)
        x = mean + 0.2 * (x - mean)
    return np.rint(255 * np.clip(x, 0, 1)).astype(np.uint8)


def extra(finished):
    """Test accuracies by images and by statistics."""
    exact = finished.statistics("population")
    test = jax.device_get(finished.dataset.test)
    order = np.argsort(test.labels, kind="stable")

    def accuracy(split, stats, size):
        options = {"task": finished.task, "stats": stats, "batch_size": size}
        return step.evaluate(finished.params, exact, split, **options)["accuracy"]

    each = {}
    for kind in ("clean", *SHIFTS):
        split = test if kind == "clean" else test._replace(pixels=corrupted(test.pixels, kind))
        by_label = split._replace(pixels=split.pixels[order], labels=split.labels[order])
        each[kind] = {
            POPULATION: accuracy(split, "running", LARGE),
            BATCH: accuracy(split, "batch", LARGE),
            f"{BATCH}{SMALL}": accuracy(split, "batch", SMALL),
            "sorted": accuracy(by_label, "batch", LARGE),
        }
    groups = {kind: (kind,) for kind in each} | {"noisy": NOISES, "shifted": SHIFTS}
    return {
        f"{name}.{how}": float(np.mean([each[kind][how] for kind in kinds]))
        for name, kinds in groups.items()
        for how in each["clean"]
    }
