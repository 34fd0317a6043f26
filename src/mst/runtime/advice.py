"""What to do about a collapse and other things that go wrong: one text for the log and for the report.

DINO (Caron et al. 2021), section 5.3 and appendix D: sharpening alone makes the output the same for all images,
centering alone makes it uniform. A center that follows too slowly (momentum 0.999: k-NN 0.1, against 69.7 at 0.9) no
longer holds against sharpening; a lower momentum follows faster, and 0, the center of the last step, does nearly as
well as 0.9 in their runs (69.1). In runs of some hundred steps it ended a swing that 0.9 began (docs/recipes.md).
"""

UNIFORM = "lower --objective.teacher-temp, or --optimizer.lr"
CONSTANT = "lower --objective.center-momentum, or raise --objective.teacher-temp"
FLAT = "lower --optimizer.lr, or raise --schedule.warmup-epochs"
FEW_PROTOTYPES = "raise --objective.teacher-momentum, lower --objective.center-momentum or --optimizer.lr"
LOST = "lower --optimizer.lr, or raise --objective.teacher-momentum"
CHASE = "--objective.center-momentum 0, a higher --objective.teacher-momentum, or a lower --optimizer.lr"
RANK = "lower --optimizer.lr or --model.prototypes, or raise --objective.restoration-weight"
OVER_MASKED = "lower --objective.mask-probability or --objective.eligible-fraction"
UNDER_MASKED = "raise --objective.eligible-fraction or --objective.mask-probability, or use smaller patches"
HIDDEN = "raise --objective.restoration-weight, or hide less (--objective.mask-probability)"
REPEATED = "leave copies out (mst inspect finds them), or collect more images"
FEW_IMAGES = "fewer --train.epochs, more images, or stronger augmentation (--views.jitter, --views.local-scale)"
