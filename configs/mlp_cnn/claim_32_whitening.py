"""Whitening inside the batch against batch norm.

Paper:     Huang et al., "Decorrelated Batch Normalization", 2018; "Iterative Normalization", 2019.
Claim:     whitening trains faster than batch norm a step and costs more a step; iterative
           normalization costs less than ZCA and is as good.
Expected:  CIFAR-10 and ImageNet: 0.5 to 1 point better than batch norm.
Cost:      not run: the time of a step asks for a quiet machine.
Command:   none yet.
"""

from experiments.claims import Claim

CLAIM = Claim(
    number=32,
    statement="Whitening inside the batch trains better than batch norm and costs more a step; "
    "iterative normalization costs less than ZCA and is as good",
    source="Huang et al. 2018 and 2019",
    expect="higher accuracy, longer steps; iterative between the two in time",
)
