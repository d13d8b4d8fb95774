"""``rims bench --cores``: what every registered core costs beside nn.LSTM, at RIM's state size and at RIM's
parameters."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from rims.bench.arms import Mode, Setting, call_of
from rims.bench.measure import Timing, paired, timed
from rims.bench.products import products_of
from rims.cores import CORES, Core, CoreConfig, LSTMConfig
from rims.cores.rim import RIMCore
from rims.cores.sizes import Match, matched
from rims.nn.checks import check_choice

MODES: tuple[Mode, ...] = ("train", "forward", "step")
MATCHES: dict[Match, str] = {"state": "state", "params": "parameters"}

LIMIT = 20.0
"""Seconds that the rounds of one core in one mode may take; a slow core gets fewer rounds, at least one."""

SEEN = 2.5
"""How many times the products of a forward pass must be seen in forward and backward, which do them three
times, to say what they alone would take. They are seen less where a fused call hides or omits some."""

BAR = (3, 60e-6)
"""What forward and backward of a core are held against: times its products alone, and seconds a step."""

ROUND = 0.02
"""Seconds that a round takes at least: calls far shorter than this are timed many at once."""


@dataclass
class Row:
    """One core at one size. Seconds are of a token: a step of a row of the batch."""

    core: str
    size: str
    matched: str
    """In what it equals RIM: state, parameters, both, or nothing, which stands for its default size."""
    parameters: int
    state_size: int
    flops_per_step: int
    timings: dict[Mode, Timing]
    products: float | None
    """The matrix products of "train" alone, where torch does them one by one."""
    of_bar: float | None
    """The time of "train", as a part of the :data:`BAR` that follows from its products."""


def sizes(setting: Setting, only: Sequence[str] = ()) -> tuple[list[tuple[str, CoreConfig]], list[str]]:
    """Each core's config at RIM's state size, or else its default, and at RIM's parameters, if possible, with
    what is equal; and why something is not. ``only`` names some cores; ValueError for an unknown one."""
    found: list[tuple[str, CoreConfig]] = []
    unmatched = []
    for name in only or CORES:
        check_choice("only", name, tuple(CORES))
        config = setting.config if name == "rim" else CORES[name]()
        equal: dict[str, CoreConfig] = {}
        for match, words in MATCHES.items():
            try:
                equal[words] = matched(config, setting.config, setting.input_size, match)
            except ValueError as error:
                unmatched.append(str(error))
        if "state" not in equal:
            found.append(("", config))
        if len(equal) == 2 and equal["state"] == equal["parameters"]:
            equal = {"state, parameters": equal["state"]}
        found += equal.items()
    return found, unmatched


def compare(
    config: CoreConfig,
    equal: str,
    references: dict[Mode, Callable[[], object]],
    setting: Setting,
    repeats: int,
) -> Row:
    """Time the core of ``config`` against the call of the same mode in ``references``."""
    core = build(config, setting)
    written = build(compiling(config, False), setting) if compiled(config) else core
    timings = {}
    for mode, reference in references.items():
        tokens = 1 if mode == "step" else setting.steps * setting.batch
        timings[mode] = timing = pair(call_of(core, mode, setting), reference, setting, repeats)
        timing.seconds /= tokens
    products, of_bar = bar(written, core, setting, repeats)
    return Row(
        f"{config.name}, compiled" if compiled(config) else config.name,
        f"{config.size} {getattr(config, config.size)}",
        equal,
        core.num_parameters,
        core.state_size,
        core.flops_per_step,
        timings,
        products,
        of_bar,
    )


def compiled(config: CoreConfig) -> bool:
    """Whether the core of ``config`` runs under torch.compile."""
    return getattr(config, "compile", False)


def compiling(config: CoreConfig, compile: bool) -> CoreConfig:
    """``config`` with its step compiled, or as written."""
    option: dict[str, Any] = {"compile": compile}
    return replace(config, **option)


def bar(written: Core, core: Core, setting: Setting, repeats: int) -> tuple[float | None, float | None]:
    """``products`` and ``of_bar`` of a row. ``written`` is ``core`` not compiled, whose products are seen."""
    if isinstance(written, RIMCore):  # watched, it goes step by step: other products than are timed
        return None, None
    again, flops = products_of(call_of(written, "train", setting))
    tokens = setting.steps * setting.batch
    if flops < SEEN * tokens * core.flops_per_step:
        return None, None
    timing = pair(again, call_of(core, "train", setting), setting, repeats)
    times, seconds = BAR
    most = times * timing.seconds + seconds * setting.steps
    return timing.seconds / tokens, timing.seconds / timing.ratio / most


def pair(
    call: Callable[[], object], reference: Callable[[], object], setting: Setting, repeats: int
) -> Timing:
    """Time ``call`` and ``reference`` in the same rounds, as many as :data:`LIMIT` allows."""
    device = torch.device(setting.device)
    for warm in (reference, call):
        warm()
    seconds = max(timed(call, device, 1), 1e-6)
    rounds = max(1, min(repeats, int(LIMIT / seconds)))
    number = max(1, min(100, int(ROUND / seconds)))
    calls = {"reference": reference, "core": call}
    return paired(calls, "reference", device, rounds, number, warmups=0)["core"]


def build(config: CoreConfig, setting: Setting) -> Core:
    """The core of ``config``, on the setting's device and in its dtype."""
    torch.manual_seed(0)
    return config.build(setting.input_size).to(**setting.weights)


def bench(
    setting: Setting, repeats: int, compile: bool, only: Sequence[str], say: Callable[[str], None]
) -> dict[str, Any]:
    """Every core, or ``only`` some, and with ``compile`` also under torch.compile those that have it as an
    option, as plain values: ``cores``, ``unmatched``, ``setting``."""
    lstm = build(LSTMConfig(hidden_size=setting.hidden_size), setting)
    references = {mode: call_of(lstm, mode, setting) for mode in MODES}
    found, unmatched = sizes(setting, only)
    if compile:
        found += [(equal, compiling(c, True)) for equal, c in found if hasattr(c, "compile")]
    rows = []
    for equal, config in found:
        say(f"{config.name}, {config.size} {getattr(config, config.size)}")
        rows.append(asdict(compare(config, equal, references, setting, repeats)))
    return {
        "setting": asdict(setting),
        "repeats": repeats,
        "threads": torch.get_num_threads(),
        "cores": rows,
        "unmatched": unmatched,
    }
