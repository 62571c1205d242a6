"""Dropout, weight decay and shuffling under batch norm.

Paper:     Ioffe, Szegedy, "Batch Normalization", 2015, section 4.2.1: without dropout, L2 five
           times smaller, and training examples shuffled anew for each pass (1 % better).
Claim:     with batch norm less dropout and L2 are needed, and thorough shuffling matters more.
Expected:  the best dropout and L2 are smaller with batch norm; fixed batches cost more with it.
Cost:      not run: it asks for a data order in which the same examples always meet in a batch.
Command:   none yet.
"""

from experiments.claims import Claim

CLAIM = Claim(
    number=20,
    statement="With batch norm less dropout and L2 are needed, and shuffling between epochs "
    "matters more",
    source="Ioffe, Szegedy 2015, section 4.2.1",
    expect="smaller best dropout and L2; fixed batches cost more with batch norm",
)
