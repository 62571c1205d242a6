"""Frozen statistics when fine-tuning with batches of 1 and 2.

Paper:     practice in detection and segmentation, for instance He et al., "Mask R-CNN", 2017, and
           Wu, Johnson, "Rethinking Batch in BatchNorm", 2021.
Claim:     fine-tuning with statistics of tiny batches fails where frozen ones serve.
Expected:  test accuracy after fine-tuning higher with frozen statistics.
Cost:      not run: it asks for a pretrained start of each seed. The task has `model.frozen`.
Command:   none yet.
"""

from experiments.claims import Claim

CLAIM = Claim(
    number=33,
    statement="Fine-tuning at batch 1 and 2 needs frozen batch norm statistics",
    source="Wu, Johnson 2021",
    expect="higher test accuracy with frozen statistics",
)
