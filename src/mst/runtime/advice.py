"""What to do about a collapse: one text for the warning while a run is on and for its report afterwards.

DINO (Caron et al. 2021), section 5.3 and appendix D: sharpening alone makes the output the same for all images,
centering alone makes it uniform. A center that follows too slowly (momentum 0.999: k-NN 0.1, against 69.7 at 0.9) no
longer holds against sharpening; a lower momentum follows faster.
"""

UNIFORM = "lower --objective.teacher-temp, or --optimizer.lr"
CONSTANT = "lower --objective.center-momentum, or raise --objective.teacher-temp"
FLAT = "lower --optimizer.lr, or raise --schedule.warmup-epochs"
