"""Takes the cost of small batches apart: noise in training, and noisy running averages at test.

The runs are those of claim 17, tested with population statistics, estimated again over the training
images in batches of 1,000, beside the running averages that claim 17 has. What small batches still
cost then was lost in training. Each kind of statistics picks its own learning rate. Registered when
claim 17 had been seen at batches of 32, with running averages alone, and at no smaller size.
"""

from configs.mlp_cnn import claim_17_batch_sizes as sizes
from experiments.ledger.claims import Claim, Group, Settled, contrast, less

POPULATION, RUNNING = "test.population.log_error", sizes.ERROR
JOHNSON = "Wu, Johnson 2021, section 3, arXiv:2105.07576"

GROUP = Group(
    number=48,
    title="What small batches cost batch norm, in training and at test",
    topic="batch size",
    source=f"{sizes.WU}; {JOHNSON}",
    axis=sizes.GROUP.axis,
    scales=sizes.GROUP.scales,
    arms=("bn_small", "gn_small", "brn_small", "bn_large", "gn_large"),
    claims=(
        Claim(
            letter="a",
            title="By population statistics: BN loses more than GN",
            statement="From large to small batches the errors of batch norm grow by a larger "
            "factor than those of group norm, also if it is tested with population statistics",
            rule=contrast(
                f"(bn_small − bn_large) − (gn_small − gn_large), {POPULATION}",
                (1.0, "bn_small", POPULATION),
                (-1.0, "bn_large", POPULATION),
                (-1.0, "gn_small", POPULATION),
                (1.0, "gn_large", POPULATION),
            ),
            delta=0.07,
            why="as in claim 17a: half of the source's log ratio at 4 images a device, 0.141, "
            "which it has with running averages",
            expect="the source puts the loss down to inaccurate statistics of small batches, and "
            "does not take training and test apart",
            source=sizes.WU,
            controls=(sizes.ALIKE, Settled()),
            change="deep networks, in which the noise of many layers adds up",
            methods=("batch norm", "group norm", "population statistics"),
        ),
        Claim(
            letter="b",
            title="Running averages cost more in small batches",
            statement="Tested with running averages instead of population statistics, the errors "
            "of batch norm grow by a larger factor in small batches than in large ones",
            rule=contrast(
                "bn_small (running − population) − bn_large (running − population), log error",
                (1.0, "bn_small", RUNNING),
                (-1.0, "bn_small", POPULATION),
                (-1.0, "bn_large", RUNNING),
                (1.0, "bn_large", POPULATION),
            ),
            delta=0.07,
            why="no source gives a number; as in claim a, so that the two parts are on one scale",
            expect="averages over small batches are further from population statistics (in words; "
            "from memory, not verified)",
            source=JOHNSON,
            controls=(Settled(),),
            change="averages that keep 0.99 and more, over more updates than these runs have",
            methods=("batch norm", "population statistics"),
        ),
        Claim(
            letter="c",
            title="By population statistics: batch renorm beats BN",
            statement="In small batches batch renormalization makes fewer errors than batch norm, "
            "also if both are tested with population statistics",
            rule=less("brn_small", "bn_small", POPULATION),
            delta=0.018,
            why="as in claim 17d: half of the log of 27.3 / 26.3",
            expect="the method makes training use what the test uses, running averages; its source "
            "has no test with population statistics",
            source="Ioffe 2017, arXiv:1702.03275",
            controls=(Settled(),),
            change="the source's schedule of the two clips",
            methods=("batch renorm", "batch norm", "population statistics"),
        ),
    ),
    rates=sizes.GROUP.rates,
)
get_config = sizes.get_config
replicate = sizes.replicate
