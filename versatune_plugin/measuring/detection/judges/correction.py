"""Label-shift correction: proportions whose judgements, with the judge's known mistakes, would look like those seen.

It assumes that the judge mistakes domains on the judged texts just as on the held-out rows. Generated text breaks that
assumption (more of it is unclear), so that the correction can hurt as well as help: it is off by default.
"""

import numpy as np

SUM_WEIGHT = 1e3  # of "sums to 1" against each equation, which is of order 1


def corrected_proportions(probabilities: np.ndarray, weights: np.ndarray, confusion: np.ndarray) -> np.ndarray:
    """The proportions p >= 0 with sum 1 for which p @ confusion comes nearest (least squares) to the mean judgement.

    Args:
        probabilities: Judgements, shape (n, num_domains), rows sum to 1, n >= 1, no NaN.
        weights: Shape (n,), >= 0, not all 0: 1 counts texts, their number of tokens counts tokens.
        confusion: Mean judgement of texts of each true domain, shape (num_domains, num_domains), rows sum to 1.

    Returns:
        Float64, shape (num_domains,), sums to 1. Where the mean is impossible without negative proportions, some are 0.

    Raises:
        ValueError: The shapes do not fit, or a row of `confusion` is no distribution.
    """
    from scipy.optimize import nnls

    num_domains = probabilities.shape[1]
    if confusion.shape != (num_domains, num_domains):
        raise ValueError(f"confusion must have shape {(num_domains, num_domains)}, got {confusion.shape}")
    if (confusion < 0).any() or not np.allclose(confusion.sum(axis=1), 1.0, atol=1e-6):
        raise ValueError("every row of confusion must hold probabilities that sum to 1")
    mean = weights @ probabilities / weights.sum()
    equations = np.vstack([confusion.T, np.full(num_domains, SUM_WEIGHT)])
    proportions, _ = nnls(equations, np.append(mean, SUM_WEIGHT))
    return proportions / proportions.sum()


def soft_confusion(probabilities: np.ndarray, domain_ids: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    """Mean judgement of texts of each true domain, shape (num_domains, num_domains), rows sum to 1.

    Args:
        probabilities: Judgements, shape (n, num_domains), no NaN.
        domain_ids: The true domain of each text, shape (n,).
        weights: Shape (n,), >= 0: how much each text counts; default: all the same.

    Raises:
        ValueError: A domain has no text.
    """
    num_domains = probabilities.shape[1]
    members = np.eye(num_domains)[domain_ids] * (1.0 if weights is None else weights[:, None])
    totals = members.sum(axis=0)
    if (totals == 0).any():
        missing = ", ".join(map(str, np.flatnonzero(totals == 0)))
        raise ValueError(f"a confusion matrix needs texts of every domain; none of domain number {missing}")
    return members.T @ probabilities / totals[:, None]
