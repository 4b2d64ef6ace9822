"""What a judge says, as one array."""

import numpy as np


def rows_of(judge, texts):
    """Judgements in the order of the texts, shape (num_texts, num_domains); each text has come once."""
    judged = list(judge.judge(texts))
    rows = dict(judged)
    assert len(judged) == len(rows) == len(texts)
    return np.array([rows[position] for position in range(len(texts))]).reshape(len(texts), len(judge.domains))
