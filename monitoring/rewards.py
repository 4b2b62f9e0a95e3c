"""Rewards of live answers, asked of the runtime over HTTP: no model is loaded here."""

from collections import deque
from collections.abc import Sequence
from datetime import datetime

import httpx
import msgspec
import numpy as np
from sqlalchemy.orm import Session

from hone import metrics
from hone.errors import Retryable
from hone.store.facts import newest_answers
from hone.store.tables import ResponseRow

BATCH = 64
"""Answers of one request, the runtime's limit; of more, the newest."""
NUM_KEPT = 500
QUANTILES = (0.1, 0.5, 0.9)


class Scores(msgspec.Struct):
    """The runtime's answer to `POST /v1/score`."""

    scores: list[float]


class Rewards:
    """Scores a sample of the newest answers with one model, a reward model or any other that the runtime has loaded."""

    def __init__(self, client: httpx.Client, model: str, since: datetime) -> None:
        """`client` has the runtime's address and stays the caller's to close."""
        self.client, self.model, self.since = client, model, since
        self.kept: dict[str, deque[float]] = {}

    def newest(self, session: Session) -> Sequence[ResponseRow]:
        """Return the newest answers that were not scored yet, at most `BATCH`; the cursor moves on."""
        answers = newest_answers(session, self.since, BATCH)
        if answers:
            self.since = answers[-1].created_at
        return answers

    def score(self, answers: Sequence[ResponseRow]) -> list[tuple[ResponseRow, float]]:
        """Return each answer with its reward, and show the quantiles of each arm.

        Raises:
            Retryable: the runtime is away, or has not loaded the model; these answers stay without a reward.
        """
        if not answers:
            return []
        items = [{"messages": answer.messages, "completion": answer.completion} for answer in answers]
        try:
            reply = self.client.post("/v1/score", json={"model": self.model, "items": items}).raise_for_status()
        except httpx.HTTPError as error:
            problem = str(error).partition("\n")[0]
            raise Retryable(f"no scores from {self.model} ({problem}): load it into the runtime") from None
        scored = list(zip(answers, msgspec.json.decode(reply.content, type=Scores).scores, strict=True))
        for answer, score in scored:
            self.kept.setdefault(answer.track, deque(maxlen=NUM_KEPT)).append(score)
        for track, kept in self.kept.items():
            for quantile, value in zip(QUANTILES, np.quantile(kept, QUANTILES), strict=True):
                metrics.REWARD.labels(track, str(quantile)).set(value)
        return scored
