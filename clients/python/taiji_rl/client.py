"""Client of taiji's reward service (`taiji-trainer rewards serve`)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Literal

from . import contract
from .contract import Description, Rewards
from .errors import RewardsMalformed
from .transport import Transport

_VERSIONS = "have client and service the same version, and was the service restarted with another recipe?"


class RewardClient:
    """Asks a service for rewards. Safe to share between threads.

    `url`: of the service, as `http://host:port`. `key`: where the service wants one. `timeout_s`: of one attempt.
    `retries`: attempts after the first; answers of 429 and 5xx and broken connections are repeated, with pauses that
    double up to a minute.
    """

    def __init__(self, url: str, key: str | None = None, timeout_s: float = 60.0, retries: int = 5):
        if not url.startswith(("http://", "https://")):
            raise ValueError(f"the service's url must begin with http:// or https://, got {url!r}")
        if not timeout_s > 0 or retries < 0:
            raise ValueError(f"timeout_s must be above 0 and retries not below, got {timeout_s} and {retries}")
        self.url = f"{url.rstrip('/')}/v1/rewards"
        self._transport = Transport(key, timeout_s, retries)
        self._description: Description | None = None

    def describe(self) -> Description:
        """What the service offers now."""
        answer = self._transport.call(self.url)
        try:
            self._description = contract.description(answer)
        except contract.Broken as error:
            raise RewardsMalformed(f"GET {self.url}", str(error), _VERSIONS, 200) from error
        return self._description

    def rewards(
        self,
        user_ids: Sequence[str],
        token_ids: Sequence[Sequence[int]] | None = None,
        texts: Sequence[str] | None = None,
        mode: Literal["think", "no_think"] | None = None,
    ) -> Rewards:
        """Rewards of answers, one of `token_ids` or `texts` a user. Token ids are of the checkpoint's tokenizer and
        tell more: text may have lost its special tokens. What is too much for one request is sent in several."""
        answers = _answers(user_ids, token_ids, texts)
        described = self._description or self.describe()
        cut = _cut(answers, described.max_answers, described.max_body_bytes)
        parts = [self._part(part, mode, described.names) for part in cut]
        try:
            return contract.joined(parts)
        except contract.Broken as error:
            raise RewardsMalformed(f"POST {self.url}", str(error), _VERSIONS, 200) from error

    def _part(self, answers: list[dict[str, Any]], mode: str | None, names: tuple[str, ...]) -> Rewards:
        body: dict[str, Any] = {"answers": answers}
        if mode is not None:
            body["mode"] = mode
        answer = self._transport.call(self.url, body)
        try:
            return contract.rewards(answer, names, len(answers))
        except contract.Broken as error:
            raise RewardsMalformed(f"POST {self.url}", str(error), _VERSIONS, 200) from error


def _cut(answers: list[dict[str, Any]], most: int, most_bytes: int) -> list[list[dict[str, Any]]]:
    """Parts of at most so many answers and bytes; an answer that is too large by itself is a part for the service to refuse."""
    parts: list[list[dict[str, Any]]] = [[]]
    held = room = 512  # around the answers
    for answer in answers:
        size = len(json.dumps(answer)) + 2
        if parts[-1] and (len(parts[-1]) == most or held + size > most_bytes):
            parts.append([])
            held = room
        parts[-1].append(answer)
        held += size
    return parts


def _answers(
    user_ids: Sequence[str], token_ids: Sequence[Sequence[int]] | None, texts: Sequence[str] | None
) -> list[dict[str, Any]]:
    """As the request has them."""
    if (token_ids is None) == (texts is None):
        raise ValueError("give token_ids or texts, and not both")
    by_tokens = token_ids is not None
    contents = [[int(token) for token in tokens] for tokens in token_ids] if by_tokens else list(texts)
    if not contents or len(user_ids) != len(contents):
        raise ValueError(f"{len(user_ids)} users, {len(contents)} answers; give one answer or more, each with its user")
    wrong = [user for user in user_ids if not isinstance(user, str)]
    if wrong:
        raise ValueError(f"a user's id must be text as in the service's data, got {wrong[0]!r}")
    name = "tokens" if by_tokens else "text"
    return [{"user_id": user, name: content} for user, content in zip(user_ids, contents)]
