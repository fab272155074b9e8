"""Where the verdicts draw their lines; the page says them."""

CLOSE = 0.1  # remaining memory, as a share of what was to be forgotten, up to which forgetting counts as done
UNTOUCHED = 0.9  # remaining memory above which nothing was forgotten
INTACT = 0.95  # share of the original's utility from which the model counts as intact
KEPT = 0.9  # share of it above which its 95 % interval must lie for that to be shown
DAMAGED = 0.5  # share of it below which the model counts as damaged
TELLING = 0.1  # difference of AUC or of a forget measure to the retrained model's that is worth a sentence
GIVEN_AWAY = 0.25  # such a difference of AUC from which a membership test gives the data away
MADE = 0.9  # share of corrections made from which they count as made
HALF = 0.5  # share of corrections that the interval must exclude for that
LEAST_CORRECTIONS = 6  # all of so many made exclude it
RETURNED = 0.5  # share of what was to be forgotten that, brought back by an attack, means it was only hidden
WORKS = 0.25  # share of it that the original must give away under an attack for the attack to clear anybody
ALPHA = 0.05  # level of the test behind forget quality
GOOD, PARTIAL, FAILED, UNKNOWN = "good", "partial", "failed", "unknown"
BADNESS = (GOOD, UNKNOWN, PARTIAL, FAILED)  # from the best to the worst
