"""Bootstrap intervals over problems, on the host."""

import numpy as np
from scipy import special

RESAMPLES = 2_000


def bootstrap(values_PK, level: float = 0.95, seed: int = 0) -> np.ndarray:
    """Intervals of the means over problems, which are drawn again with replacement.

    The expanded percentile interval (Hesterberg 2015, section 3.4): its tails are those of a t distribution, since a
    plain percentile interval of few problems is too narrow. Differences of two runs on the same problems are paired by
    passing the differences. Where all problems have one value nothing varies, and the interval is that value.

    Args:
      values_PK: [P, K], K numbers of each problem; the same problems are drawn for all of them. A problem without a
        value, NaN, is left out where it is drawn.
      level: chance with which an interval holds the mean of infinitely many problems.
      seed: of the draws.

    Returns:
      float64[K, 2], lower and upper ends; NaN where fewer than two problems have a value.

    Raises:
      ValueError: values not of two axes, infinite ones, or a level not between 0 and 1.
    """
    values_PK = np.asarray(values_PK, np.float64)
    if values_PK.ndim != 2 or np.any(np.isinf(values_PK)):
        raise ValueError(
            f"expected finite values [P, K], got {values_PK.shape} with {np.isinf(values_PK).sum()} infinite"
        )
    if not 0 < level < 1:
        raise ValueError(f"level must be between 0 and 1, got {level}")
    num_problems, num_values = values_PK.shape
    there_PK = ~np.isnan(values_PK)
    counts_K = there_PK.sum(0)
    intervals_K2 = np.full((num_values, 2), np.nan)
    if num_problems < 2:
        return intervals_K2
    draws_RP = np.random.default_rng(seed).multinomial(num_problems, np.full(num_problems, 1 / num_problems), RESAMPLES)
    with np.errstate(invalid="ignore"):  # of a draw in which no problem has a value
        means_RK = draws_RP @ np.where(there_PK, values_PK, 0) / (draws_RP @ there_PK)
    for k in np.flatnonzero(counts_K >= 2):
        n = counts_K[k]
        tail = special.ndtr(np.sqrt(n / (n - 1)) * special.stdtrit(n - 1, (1 - level) / 2))
        intervals_K2[k] = np.nanquantile(means_RK[:, k], [tail, 1 - tail])
    return intervals_K2
