"""How numbers and names are written, in the page and in the terminal alike."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rims.report.groups import Group, Section
from rims.report.statistics import Estimate

MISSING = "–"

_SPACE = "\N{NO-BREAK SPACE}"


def title(metric: str) -> str:
    """A metric's name in words: ``recall_accuracy`` is ``recall accuracy``."""
    return metric.replace("_", " ").replace("cross entropy", "cross-entropy").replace("f1", "F1")


def heading(metric: str) -> str:
    """The title with a capital, to begin with."""
    name = title(metric)
    return name[:1].upper() + name[1:]


def unit(metric: str) -> str:
    """The unit in which :func:`value` writes the metric."""
    if "accuracy" in metric:
        return "%"
    if metric.endswith("position_error"):
        return "pixels"
    return "nats" if "entropy" in metric else ""


def is_score(metric: str) -> bool:
    """Whether the metric goes from 0 to 1 and is the better the higher, as accuracies and F1 are; all others
    are losses or errors."""
    return "accuracy" in metric or metric.endswith("f1")


def value(metric: str, number: float) -> str:
    """A metric's value without its unit: accuracies in per cent to one decimal, others to three, but small
    squared errors, which three decimals would round to nothing, to two digits."""
    if "accuracy" in metric:
        return f"{100 * number:.1f}"
    if "error" in metric and 0 < abs(number) < 0.01:
        return f"{number:.2g}"
    return f"{number:.3f}" if abs(number) < 10 or number != number else f"{number:.3g}"


def with_unit(metric: str, number: float) -> str:
    return f"{value(metric, number)}{_SPACE}{unit(metric)}".strip()


def spread(metric: str, estimate: Estimate) -> str:
    """The half-width of the interval, with its sign; empty for a single seed, which has none."""
    return "" if estimate.half_width is None else f"±{_SPACE}{value(metric, estimate.half_width)}"


def with_spread(metric: str, estimate: Estimate) -> str:
    """Mean and half-width of the interval, without unit."""
    return f"{value(metric, estimate.mean)} {spread(metric, estimate)}".strip()


def whole(number: int | None) -> str:
    """A count with thousands separated."""
    return MISSING if number is None else f"{number:,}"


def brief(number: int | None) -> str:
    """A count in three digits: 4.23M."""
    if number is None:
        return MISSING
    for size, letter in ((10**9, "G"), (10**6, "M"), (10**3, "k")):
        if number >= 10 * size or (number >= size and letter != "k"):
            return f"{number / size:.3g}{letter}"
    return str(number)


def duration(seconds: float | None) -> str:
    """A wall time in its two largest units."""
    if seconds is None:
        return MISSING
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}{_SPACE}h {minutes:02d}{_SPACE}min"
    return f"{minutes}{_SPACE}min {rest:02d}{_SPACE}s" if minutes else f"{rest}{_SPACE}s"


def updates(group: Group) -> str:
    """The updates made; a range when the seeds differ."""
    least, most = group.updates
    return whole(least) if least == most else f"{whole(least)}–{whole(most)}"


def commit(group: Group) -> str:
    """The commits behind a row, in seven digits; a plus marks uncommitted changes."""
    return ", ".join(group.commits) or MISSING


def settings(chosen: dict[str, Any]) -> str:
    return ", ".join(f"{name}={setting}" for name, setting in chosen.items())


def seeds(count: int) -> str:
    return f"{count}{_SPACE}seed" + "s" * (count != 1)


def listed(parts: Sequence[str]) -> str:
    """Parts as an English list."""
    return ", ".join(parts[:-1]) + " and " + parts[-1] if len(parts) > 1 else "".join(parts)


def headline(section: Section) -> str:
    """What the numbers say of the hardest condition tested, and no more."""
    metric, where = section.metrics[0], section.task.condition_name
    label = section.task.label
    tested = [c for c in section.conditions if any(group.metric(metric, c) for group in section.groups)]
    if not tested:
        return f"Nothing to compare yet: no run on {section.task.name} has been evaluated."
    condition = tested[-1]
    if section.task.categorical:  # of kinds, a task names the main shift first
        condition = next((c for c in tested if c not in section.trained), condition)
    found = [(group, estimate) for group in section.groups if (estimate := group.metric(metric, condition))]
    found.sort(key=lambda pair: pair[1].mean, reverse=is_score(metric))
    best = [_clause(metric, *pair) for pair in (found if len(found) <= 4 else found[:3])]
    if len(found) > 4:
        low, high = sorted((found[3][1].mean, found[-1][1].mean))
        best.append(f"{value(metric, low)} to {with_unit(metric, high)} for the other {len(found) - 3}")
    start = f"At {where} {label(condition)}"
    if section.trained != [condition]:
        trained = listed([label(trained) for trained in section.trained])
        start = f"Trained at {where} {trained}, tested at {label(condition)}"
    sentence = f"{start}: {title(metric)} is {listed(best)}"
    nothing = {"chance": section.chance[metric]} if metric in section.chance else {}
    nothing |= {name: at[condition] for name, at in section.referred(metric).items() if condition in at}
    learned = [f"{name} is {with_unit(metric, level)}" for name, level in nothing.items()]
    return "; ".join([sentence, listed(learned)] if learned else [sentence]) + "."


def _clause(metric: str, group: Group, estimate: Estimate) -> str:
    interval = f"{spread(metric, estimate)} over " if estimate.half_width is not None else ""
    state = ", unfinished" if any(result.summary is None for result in group.results) else ""
    return f"{with_unit(metric, estimate.mean)} for {group.label} ({interval}{seeds(estimate.count)}{state})"


def notes(section: Section) -> list[str]:
    """What is missing or provisional, run by run, with the command that mends it."""
    lines = []
    earlier: dict[str, list[str]] = {}
    for result in section.results:
        planned, made = result.config.training.updates, result.updates
        if result.summary is None:
            lines.append(
                f"{result.name} has not finished ({whole(made)} of {whole(planned)} updates, no summary): "
                "its numbers are provisional."
            )
        untested = [c for c in result.config.task.test_conditions if c not in result.evaluation]
        if not result.evaluation:
            lines.append(f"{result.name} is not evaluated yet: rims eval {result.argument}")
        elif untested:
            where = listed([section.task.label(condition) for condition in untested])
            lines.append(f"{result.name} is not evaluated at {section.task.condition_name} {where}.")
        for checkpoint, update in sorted({*result.weights.values()}):
            if update < made:
                earlier.setdefault(checkpoint, []).append(
                    f"{result.name} of update {whole(update)} of {whole(made)}"
                )
        if not result.metrics:
            lines.append(f"{result.name} has no measurements yet: its learning curves are missing.")
    lines += [f"Tested with the {name} checkpoint: {listed(runs)}." for name, runs in earlier.items()]
    single = [group.label for group in section.groups if group.seeds == 1]
    if single:
        # A label is a name and keeps its letters, at the beginning of a sentence too.
        who = f"{listed(single)}: one" if len(single) < len(section.groups) else "One"
        lines.append(f"{who} seed, so no interval can be given.")
    return lines
