"""How many wrong promotions a platform allows itself over successive rollouts. Pure.

The wealth of a stopped rollout is an e-value: its mean is at most 1 if the model is not better. Each rollout gets its
own level `alpha_t` when it starts, from what is known then, and promotes at a wealth of 1/alpha_t.
"""

from hone.rollout import Ledger


def share(number: int) -> float:
    """Return the share of the budget that is set aside for the rollout with this number, from 1; they sum to 1."""
    return 1.0 / (number * (number + 1))


def level(ledger: Ledger, budget: float, *, number: int, num_promoted: int) -> float:
    """Return the level of the rollout with this number, from 1, of which `num_promoted` before it were proven better.

    e-lond: budget · share · (num_promoted + 1). The false discovery rate is at most the budget at any time and under
    any dependence between rollouts: Xu and Ramdas, "Online multiple testing with e-values", arXiv:2311.06412.
    Promotions that a person made, or a reverse watch undid, may be counted or not: fewer only make the level smaller.
    monthly: budget · share, with numbers that start anew each month; by the union bound the chance of any false
    promotion in a month is at most the budget. fixed: the budget itself.

    Raises:
        ValueError: the number is below 1, or more were promoted than there are before it.
    """
    if number < 1 or not 0 <= num_promoted < number:
        raise ValueError(f"rollout {number} with {num_promoted} promoted before it: numbers start at 1")
    if ledger is Ledger.FIXED:
        return budget
    bonus = num_promoted + 1 if ledger is Ledger.E_LOND else 1
    return budget * share(number) * bonus
