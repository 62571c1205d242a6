"""Instance norm against batch norm, in classification and in image generation.

Paper:     Ulyanov, Vedaldi, Lempitsky, "Instance Normalization", 2016; Wu, He, 2018 (ImageNet error
           of instance norm 28.4, of batch norm 23.6).
Claim:     instance norm is behind batch norm in classification and ahead in image generation.
Expected:  lower test accuracy; lower reconstruction loss or better style transfer.
Cost:      not run: it asks for a task of image generation.
Command:   none yet.
"""

from experiments.claims import Claim

CLAIM = Claim(
    number=34,
    statement="Instance norm is behind batch norm in classification and ahead in image generation",
    source="Ulyanov et al. 2016; Wu, He 2018",
    expect="lower test accuracy, better generated images",
)
