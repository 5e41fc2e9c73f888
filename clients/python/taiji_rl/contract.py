"""What the service says, checked value by value: a reward that is no number must never reach a trainer."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


class Broken(ValueError):
    """An answer that is not of the contract."""


@dataclass(frozen=True)
class Description:
    """What a service offers."""

    names: tuple[str, ...]
    """Of the rewards, in order."""
    mode: str
    """How answers are read where a request names no mode."""
    max_answers: int
    """Of one request."""
    max_body_bytes: int
    """Of one request."""
    start_deviations: dict[str, float] | None
    """Deviation of each reward in the groups of the start's roll-outs; `None` where the recipe has none."""


@dataclass(frozen=True)
class Rewards:
    """Of some answers, one value each, in their order."""

    names: tuple[str, ...]
    rewards: dict[str, list[float | None]]
    """`None`: the reward does not apply."""
    format: list[bool]
    """Whether the answer has the exact format."""
    items: list[str | None]
    """The item that the answer names."""
    start: dict[str, list[float | None]] | None
    """Mean reward of the same user's answers under the policy of the start."""


def parse(body: bytes) -> Any:
    """JSON without Python's additions to it: NaN and Infinity are refused."""

    def refuse(word: str) -> None:
        raise Broken(f"{word} in the answer")

    try:
        return json.loads(body, parse_constant=refuse)
    except Broken:
        raise
    except ValueError as error:  # of JSON or of UTF-8
        raise Broken(f"the answer is not JSON ({error})") from error


def description(answer: Any) -> Description:
    """From the answer to `GET /v1/rewards`."""
    names = _texts(_field(answer, "names"), "names")
    if not names or len(set(names)) != len(names):
        raise Broken(f"names must be one or more and differ, got {names}")
    most, most_bytes = (_count(answer, name) for name in ("max_answers", "max_body_bytes"))
    mode = _field(answer, "mode")
    if not isinstance(mode, str):
        raise Broken(f"mode must be text, got {mode!r}")
    deviations = answer.get("start_deviations")
    if deviations is not None:
        deviations = {name: _number(_field(deviations, name), f"start_deviations.{name}") for name in names}
    return Description(tuple(names), mode, most, most_bytes, deviations)


def rewards(answer: Any, names: tuple[str, ...], count: int) -> Rewards:
    """From the answer to `POST /v1/rewards` of `count` answers."""
    found = tuple(_texts(_field(answer, "names"), "names"))
    if found != names:
        raise Broken(f"the rewards are {list(found)}, not {list(names)} as the service said before")
    start = answer.get("start")
    return Rewards(
        names,
        _columns(_field(answer, "rewards"), "rewards", names, count),
        _column(_field(answer, "format"), "format", count, lambda one: isinstance(one, bool)),
        _column(_field(answer, "items"), "items", count, lambda one: one is None or isinstance(one, str)),
        None if start is None else _columns(start, "start", names, count),
    )


def joined(parts: list[Rewards]) -> Rewards:
    """Parts of one call, in order."""
    first = parts[0]
    if len(parts) == 1:
        return first
    starts = [part.start for part in parts if part.start is not None]
    if starts and len(starts) != len(parts):
        raise Broken("some parts of one call have means of the start and others have none")
    return Rewards(
        first.names,
        {name: [one for part in parts for one in part.rewards[name]] for name in first.names},
        [one for part in parts for one in part.format],
        [one for part in parts for one in part.items],
        {name: [one for start in starts for one in start[name]] for name in first.names} if starts else None,
    )


def _field(answer: Any, name: str) -> Any:
    if not isinstance(answer, dict):
        raise Broken(f"an object was expected, got {type(answer).__name__}")
    if name not in answer:
        raise Broken(f"{name} is missing")
    return answer[name]


def _count(answer: Any, name: str) -> int:
    value = _field(answer, name)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise Broken(f"{name} must be a number of 1 or above, got {value!r}")
    return value


def _texts(values: Any, what: str) -> list[str]:
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise Broken(f"{what} must be a list of texts, got {values!r}")
    return values


def _number(value: Any, what: str) -> float:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not is_number or not abs(value) <= sys.float_info.max:  # NaN is not below anything
        raise Broken(f"{what} must be a finite number, got {value!r}")
    return float(value)


def _columns(table: Any, what: str, names: tuple[str, ...], count: int) -> dict[str, list[float | None]]:
    columns = {}
    for name in names:
        column = _column(_field(table, name), f"{what}.{name}", count, lambda _: True)
        columns[name] = [None if value is None else _number(value, f"{what}.{name}") for value in column]
    return columns


def _column(values: Any, what: str, count: int, allowed: Callable[[Any], bool]) -> list[Any]:
    if not isinstance(values, list) or len(values) != count:
        found = len(values) if isinstance(values, list) else type(values).__name__
        raise Broken(f"{what} must have {count} values, one an answer, got {found}")
    wrong = [value for value in values if not allowed(value)]
    if wrong:
        raise Broken(f"{what} has {wrong[0]!r}")
    return values
