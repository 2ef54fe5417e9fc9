"""The recipes of a sweep: keys of the configuration, the values to try, and a search over them."""

from __future__ import annotations

import math
import random
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

from ..config import ARCHITECTURE_KEYS, FREE_ARCHITECTURE_KEYS, Config
from ..config_keys import DataConfig, GenerationConfig
from ..config_loader import parse_override
from ..errors import AGI2Error

Recipe = dict[str, Any]
"""The values of the keys that are tried."""

_RANGE = re.compile(r"([-+.\de]+):([-+.\de]+)", re.IGNORECASE)
TOKENIZER_KEYS = {"vocab_size", "pretokenizer", "split_digits"}
"""Keys of the tokens, which leave the held-out text as it is: of its loss, bits per byte do."""
# Keys of which other values make other held-out text, or have nothing to do with training.
_FIXED_KEYS = {
    *(DataConfig.model_fields.keys() - TOKENIZER_KEYS - {"source_weights", "text_share"}),
    *GenerationConfig.model_fields,
    *("seed", "init_from", "preset", "resume", "epochs", "max_steps", "max_minutes"),
    *("eval_tokens", "log_to", "device", "parallel", "dpo_beta"),
}
# Points that are drawn for each run, at most: some are no valid recipe, or one that was drawn.
_MAX_DRAWS = 200


@dataclass(frozen=True)
class Range:
    """The numbers from `low` to `high`; their logarithm is uniform if both are above 0."""

    low: float
    high: float
    is_integer: bool

    def at(self, point: float) -> float:
        """Return the number at a point in [0, 1), rounded to an integer or to three digits."""
        if self.is_integer:
            # One more: the integers have equal shares, or those of their logarithms.
            return min(math.floor(_between(self.low, self.high + 1, point)), int(self.high))
        value = float(f"{_between(self.low, self.high, point):.3g}")
        return min(max(value, self.low), self.high)

    def to_json(self) -> dict[str, float]:
        """Return the range as it is saved with a sweep."""
        return {"low": self.low, "high": self.high}


def _between(low: float, high: float, point: float) -> float:
    if low > 0:
        return low * (high / low) ** point
    return low + point * (high - low)


@dataclass(frozen=True)
class Values:
    """Some values, each as likely."""

    values: tuple[Any, ...]

    def at(self, point: float) -> Any:
        """Return the value at a point in [0, 1)."""
        return self.values[int(point * len(self.values))]

    def to_json(self) -> list[Any]:
        """Return the values as they are saved with a sweep."""
        return list(self.values)


Space = dict[str, Range | Values]


def parse_space(arguments: Sequence[str], config: Config) -> Space:
    """Return the space of `KEY=VALUES` strings: values with commas between, or a range LOW:HIGH.

    Args:
        arguments: the strings.
        config: the configuration whose keys are tried.

    Raises:
        AGI2Error: if a key or a value is not valid, or a key cannot be tried.
    """
    space: Space = {}
    for argument in arguments:
        key, equals, text = (part.strip() for part in argument.partition("="))
        if not (key and equals and text):
            raise AGI2Error(
                f"--try {argument}: write KEY=VALUES, for example --try learning_rate=1e-3,3e-3 "
                "or --try dropout=0:0.3"
            )
        if key in space:
            raise AGI2Error(f"--try {key} is given twice: list all of its values in one")
        _check_key(key, config)
        space[key] = _parse_values(key, text)
    for key, choice in space.items():
        for value in choice.values if isinstance(choice, Values) else ():
            _check_alone(key, value, space, config)
    return space


def _check_alone(key: str, value: Any, space: Space, config: Config) -> None:
    """Check that a value does not contradict keys that are not tried."""
    try:
        config.changed(**{key: value})
    except AGI2Error as error:
        words = set(re.findall(r"\w+", str(error)))
        if not words & (space.keys() - {key}):  # else another value of that key may go with it
            raise AGI2Error(f"--try {key}: {error.args[0]}") from error


def _check_key(key: str, config: Config) -> None:
    """Check that a key exists and that runs with other values of it can be compared."""
    if key not in Config.model_fields:
        [(_, problem)] = Config.problems({key: 0})
        raise AGI2Error(f"--try: {problem}")
    if key in _FIXED_KEYS:
        raise AGI2Error(
            f"--try {key}: runs that differ in it cannot be compared: set it for all of them, with "
            f"--set {key}=... or in the file"
        )
    if config.init_from is not None and key in ARCHITECTURE_KEYS.keys() - FREE_ARCHITECTURE_KEYS:
        raise AGI2Error(f"--try {key}: it is that of the model of init_from: leave it out")


def _parse_values(key: str, text: str) -> Range | Values:
    kinds = _kinds(key)
    is_number = int in kinds or float in kinds
    if is_number and (match := _RANGE.fullmatch(text)):
        low, high = (_parse_value(key, part) for part in match.groups())
        if not low < high:
            raise AGI2Error(f"--try {key}={text}: the range is empty: write LOW:HIGH")
        return Range(low, high, float not in kinds)
    values = tuple(_parse_value(key, part) for part in _split(text))
    if len(values) != len({repr(value) for value in values}):
        raise AGI2Error(f"--try {key}={text}: a value is in it twice")
    return Values(values)


def _kinds(key: str) -> set[Any]:
    annotation = Config.model_fields[key].annotation
    return {annotation, *get_args(annotation)}


def _split(text: str) -> list[str]:
    """Split at commas that are not inside a TOML string or list."""
    parts: list[str] = []
    begun = ""
    for part in text.split(","):
        begun += f",{part}" if begun else part
        if not begun.strip().startswith(("[", '"', "'")) or _is_toml(begun):
            parts.append(begun.strip())
            begun = ""
    return [*parts, begun.strip()] if begun else parts


def _is_toml(value: str) -> bool:
    try:
        tomllib.loads(f"value = {value}")
    except tomllib.TOMLDecodeError:
        return False
    return True


def _parse_value(key: str, text: str) -> Any:
    """Return a value of a key.

    Raises:
        AGI2Error: if it is not one.
    """
    _, value = parse_override(f"{key}={text}")
    problems = [problem for name, problem in Config.problems({key: value}) if name is not None]
    if problems or text == "":
        raise AGI2Error(f"--try {key}={text}: {problems[0] if problems else 'a value is empty'}")
    # 1e-3 and 1, for a key that takes both kinds of numbers, are told apart by the key.
    if float in _kinds(key) and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    return value


def default_space(config: Config) -> Space:
    """Return a space around a configuration: rates, regularization, and the sizes next to its own.

    Sizes are not tried with `init_from`, whose model has them.
    """
    space: Space = {"learning_rate": _around(config.learning_rate, 2)}
    if config.optimizer == "muon":
        space["muon_learning_rate"] = _around(config.muon_learning_rate, 2)
    space["weight_decay"] = (
        _around(config.weight_decay, 4) if config.weight_decay else Values((0.0, 0.1))
    )
    space["dropout"] = Range(0.0, max(0.2, min(2 * config.dropout, 0.5), config.dropout), False)
    sizes = {config.batch_size // 2, config.batch_size, 2 * config.batch_size} - {0}
    space["batch_size"] = Values(tuple(sorted(sizes)))
    if config.init_from is None:
        layers, heads, width = config.model_layer, config.model_head, config.model_embd
        depths = {max(1, round(layers * factor)) for factor in (2 / 3, 1, 1.5)}
        space["model_layer"] = Values(tuple(sorted(depths)))
        # The number of heads stays; a head's size stays a multiple of 8, if it is one.
        unit = 8 * heads if width % (8 * heads) == 0 else heads
        widths = {max(1, round(width * factor / unit)) * unit for factor in (3 / 4, 1, 4 / 3)}
        space["model_embd"] = Values(tuple(sorted(widths)))
    return space


def _around(value: float, factor: float) -> Range:
    """Return the range from value / factor to value * factor."""
    low, high = (float(f"{each:.3g}") for each in (value / factor, value * factor))
    return Range(low, high, False)


def space_to_json(space: Space) -> dict[str, Any]:
    """Return a space as it is saved with a sweep."""
    return {key: choice.to_json() for key, choice in space.items()}


def space_from_json(saved: Mapping[str, Any]) -> Space:
    """Return the space of `space_to_json`."""
    return {
        key: (
            Range(choice["low"], choice["high"], float not in _kinds(key))
            if isinstance(choice, dict)
            else Values(tuple(choice))
        )
        for key, choice in saved.items()
    }


def draw_recipes(space: Space, config: Config, count: int, seed: int) -> list[Recipe]:
    """Return the first `count` recipes of a search, or fewer if the space has no more.

    The first is the configuration's own. The others are those of a quasi-random sequence, which
    covers the space more evenly than random points, shifted by the seed; each is a valid
    configuration and another than those before. More of them begin with the same ones.

    Args:
        space: the values to try.
        config: the configuration that is changed.
        count: number of recipes.
        seed: of the search.

    Raises:
        AGI2Error: if no point in the space is a valid configuration.
    """
    recipes = [{key: config[key] for key in space}]
    problem: AGI2Error | None = None
    drawn = 0
    for _, point in zip(range(count * _MAX_DRAWS), _points(len(space), seed), strict=False):
        if len(recipes) >= count:
            break
        recipe = {
            key: choice.at(at) for (key, choice), at in zip(space.items(), point, strict=True)
        }
        try:
            config.changed(**recipe)
        except AGI2Error as error:
            problem = problem or error
            continue
        drawn += 1
        if recipe not in recipes:
            recipes.append(recipe)
    if problem is not None and not drawn:
        raise AGI2Error(f"--try: no combination of the values is valid: {problem.args[0]}")
    return recipes[:count]


def _points(dimensions: int, seed: int) -> Iterator[list[float]]:
    """Yield the points of the sequence R_d (Roberts, 2018) in [0, 1)^d, shifted by the seed.

    Its steps are the powers of 1 / g, for g the root of g^(d + 1) = g + 1: the golden ratio if d is
    1. `random.Random` draws the same shift on every machine.
    """
    ratio = 2.0
    for _ in range(64):  # converges to the root
        ratio = (1 + ratio) ** (1 / (dimensions + 1))
    steps = [ratio ** -(index + 1) for index in range(dimensions)]
    draw = random.Random(seed)
    point = [draw.random() for _ in range(dimensions)]
    while True:
        yield list(point)
        point = [(at + step) % 1.0 for at, step in zip(point, steps, strict=True)]
