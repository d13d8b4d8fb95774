"""Summaries of experiments as tables, and as the page of results."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from statistics import mean
from typing import Any

from rims.experiments.arms import EXPERIMENTS, SCALES, Grid
from rims.experiments.reproduce import plan
from rims.experiments.summary import differences, own_updates
from rims.report import words
from rims.report.statistics import Estimate, estimate

RULE = "paper's rule"
COSTS = ("seeds", "live parameters", "FLOPs per step", "updates", "time")
"""The last columns of a table."""

KEY = (
    "Rows: `rim-6-4` has 6 RIMs of which 4 are active; `lstm` has as many hidden units as it, `lstm-half` "
    "half as many; `-state` and `-params` are other cores at its state size and at its number of parameters. "
    "LSTM RIMs add what they hear as equation 5 has it; `-tanh` its tanh, the layer's default.",
    "Live parameters are the whole model's: each of them gets a gradient. FLOPs are the core's, those of the "
    "matrix products of one step forward of one sequence. Time is a run's, mean over seeds, on machines that "
    "others used too.",
)
"""What the names and columns of all tables mean."""

REMOVED = "At the training condition, with one RIM removed at a time"


def conditions(summary: dict[str, Any]) -> list[int]:
    """Every condition that was tested, in the order of their labels."""
    tested = {c for arm in summary["arms"] for run in arm["runs"] for c in run["test"]}
    return [int(c) for c in summary["labels"] if c in tested]


def label(summary: dict[str, Any], condition: int | str) -> str:
    """A condition as people read it."""
    return str(summary["labels"].get(str(condition), condition))


def arms(summary: dict[str, Any]) -> list[dict[str, Any]]:
    """The arms, in the order of the experiment's; such as it no longer has, last."""
    grid = _planned(summary)
    order = [arm.name for arm in grid.arms] if grid else []
    return sorted(summary["arms"], key=lambda a: order.index(a["name"]) if a["name"] in order else len(order))


def table(summary: dict[str, Any], metric: str) -> tuple[list[str], list[list[str]]]:
    """Header and rows: what ``metric`` is at each condition; with the first metric also published numbers and
    the paper's rule, where there are any, and :data:`COSTS`. What learns nothing stands last."""
    tested, first = conditions(summary), metric == summary["metrics"][0]
    rows = arms(summary)
    columns = {"arm": [arm["name"] for arm in rows]}
    if first and any(arm["published"] for arm in rows):
        columns |= dict([_published(summary, metric)])
    for c in tested:
        columns[label(summary, c)] = [_measured(arm, metric, c) for arm in rows]
    if first:
        rule = [_by_the_papers_rule(arm, metric, tested) for arm in rows]
        columns |= {RULE: rule} if any(rule) else {}
        costs = [_costs(arm, summary["failed"]) for arm in rows]
        columns |= {name: [cost[i] for cost in costs] for i, name in enumerate(COSTS)}
    header, lines = [*columns], [[*cells] for cells in zip(*columns.values())]
    chance = {"chance": dict.fromkeys(map(str, tested), summary["chance"])} if summary["chance"] else {}
    for name, at in {**chance, **summary["references"]}.items():
        values = {c: at[str(c)][metric] for c in tested if metric in at.get(str(c), {})}
        if values:
            cells = {label(summary, c): words.MISSING for c in tested}
            cells |= {label(summary, c): words.value(metric, value) for c, value in values.items()}
            lines.append([name, *(cells.get(column, "") for column in header[1:])])
    return header, lines


def lesions(summary: dict[str, Any], metric: str) -> tuple[list[str], list[list[str]]]:
    """Header and rows, none where no run was tested so: ``metric`` at the training condition of the intact
    model, the mean over models without one RIM, and the worst of them. The masking study in numbers."""
    worst = min if words.is_score(metric) else max
    rows = []
    for arm in arms(summary):
        seeds = [
            (
                [m[metric] for rim, m in run["lesions"].items() if rim != "none"],
                run["lesions"]["none"][metric],
            )
            for run in arm["runs"]
            if "lesions" in run
        ]
        if seeds:
            columns = (
                [intact for _, intact in seeds],
                [mean(without) for without, _ in seeds],
                [worst(without) for without, _ in seeds],
            )
            rows.append([arm["name"], *(words.with_spread(metric, estimate(column)) for column in columns)])
    return ["arm", "intact", "without a RIM", "without the one missed most"], rows


def _published(summary: dict[str, Any], metric: str) -> tuple[str, list[str]]:
    """The column's name, with the conditions where all arms have the same, and its cells."""
    known = [[*arm["published"]] for arm in summary["arms"] if arm["published"]]
    alike = all(at == known[0] for at in known)

    def listed(at: Sequence[str]) -> str:
        return " / ".join(label(summary, c) for c in at)

    cells = []
    for arm in arms(summary):
        cell = " / ".join(words.value(metric, value) for value in arm["published"].values())
        cells.append(cell if alike or not cell else f"{cell} (at {listed([*arm['published']])})")
    name = "published"
    return f"{name} at {listed(known[0])}" if alike else name, cells


def _estimate(arm: dict[str, Any], metric: str, condition: int) -> Estimate | None:
    """A test metric over the seeds that have it."""
    tests = [run["test"].get(str(condition), {"metrics": {}})["metrics"] for run in arm["runs"]]
    values = [test[metric] for test in tests if metric in test]
    return estimate(values) if values else None


def _measured(arm: dict[str, Any], metric: str, condition: int) -> str:
    """The estimate in words; with its seeds where some lack it."""
    found = _estimate(arm, metric, condition)
    if found is None:
        return words.MISSING
    partly = found.count < len(arm["runs"])
    return words.with_spread(metric, found) + (f" (of {words.seeds(found.count)})" if partly else "")


def _by_the_papers_rule(arm: dict[str, Any], metric: str, tested: Sequence[int]) -> str:
    """Mean over seeds at each condition; nothing where the runs were validated at one condition alone."""
    seen = [run["best_validation"] for run in arm["runs"]]
    at = {c: [best[str(c)] for best in seen] for c in tested if all(str(c) in best for best in seen)}
    if len(at) < 2:
        return ""
    return " / ".join(words.value(metric, estimate(at[c]).mean) if c in at else words.MISSING for c in tested)


def _costs(arm: dict[str, Any], failed: dict[str, str]) -> tuple[str, ...]:
    """:data:`COSTS`. The mean of an arm some of whose runs failed is one of those that did not."""
    runs = arm["runs"]
    lost = sum(run.rpartition("-")[0] == arm["name"] for run in failed)
    return (
        str(len(runs)) + (f" ({lost} failed)" if lost else ""),
        _range([run["parameters"] for run in runs], words.whole),
        _range([run["flops_per_step"] for run in runs], words.brief),
        _range([run["updates"] for run in runs], words.whole),
        words.duration(estimate([run["seconds"] for run in runs]).mean),
    )


def title(summary: dict[str, Any], metric: str) -> str:
    """What the table of the metric shows."""
    return f"{heading(summary)}: {_what(summary, metric)}"


def removed_title(summary: dict[str, Any], metric: str) -> str:
    """What the table of removed RIMs shows."""
    return f"{heading(summary)}: {_metric(metric)}{REMOVED[0].lower()}{REMOVED[1:]}"


def heading(summary: dict[str, Any]) -> str:
    updates = own_updates(summary)
    own = "" if updates is None else f", {words.whole(updates)} updates"
    return f"{summary['experiment']} ({summary['source']}), scale {summary['scale']}{own}"


def _what(summary: dict[str, Any], metric: str) -> str:
    return f"{_metric(metric)}by {summary['condition']}"


def _metric(metric: str) -> str:
    """Its name and unit, with words to follow."""
    unit = words.unit(metric)
    return f"{words.title(metric)}{f', {unit},' if unit else ''} "


def notes(summary: dict[str, Any]) -> list[str]:
    """What the reader must know."""
    lines = [
        "Mean and 95 % interval over seeds of fresh test sequences, at the checkpoint of the lowest "
        "validation loss under the training condition."
    ]
    if RULE in table(summary, summary["metrics"][0])[0]:
        lines[0] += (
            " The paper's rule: for each condition the best validation at that condition, which is "
            "out-of-distribution selection; mean over seeds."
        )
    single = [arm["name"] for arm in arms(summary) if len(arm["runs"]) == 1]
    if len(single) == len(summary["arms"]):
        lines.append("One seed each, so no interval.")
    elif single:
        lines.append(f"One seed, so no interval: {', '.join(single)}.")
    if any(arm["published"] for arm in summary["arms"]):
        if summary["scale"] in ("smoke", "small"):
            lines.append(
                "Published numbers are of the paper's sizes, sequences and updates, not of this scale's."
            )
        else:
            lines += _missed(summary)
    return [*lines, *_not_shown(summary)]


def _missed(summary: dict[str, Any]) -> Iterator[str]:
    """Published numbers that the paper's sizes do not show: not reached, or surpassed by what is to fail."""
    metric = summary["metrics"][0]
    sign, last_digit = (1, 0.0005) if words.is_score(metric) else (-1, 0.005)
    worse: list[str] = []
    better: list[str] = []
    for arm in arms(summary):
        for condition, published in arm["published"].items():
            ours = _estimate(arm, metric, int(condition))
            if ours and abs(published - ours.mean) > (ours.half_width or 0.0) + last_digit:
                (worse if sign * (published - ours.mean) > 0 else better).append(
                    f"{arm['name']} at {summary['condition']} {label(summary, condition)} "
                    f"({words.with_spread(metric, ours)}, published {words.value(metric, published)})"
                )
    if not worse and not better:
        return
    few = ", by fewer updates than the paper's" if _shortened(summary) else ""
    if worse:
        yield f"Published and not seen here{few}: {'; '.join(worse)}."
    if better:
        yield f"Better here than published{few}: {'; '.join(better)}."


def _shortened(summary: dict[str, Any]) -> bool:
    """Whether an arm had fewer updates than the paper's."""
    if summary["experiment"] not in EXPERIMENTS:
        return False
    papers = {arm.name: arm.config for arm in plan(summary["experiment"], "paper").arms}
    return any(
        arm["config"]["training"]["updates"] < papers[arm["name"]].training.updates
        for arm in summary["arms"]
        if arm["name"] in papers
    )


def _not_shown(summary: dict[str, Any]) -> Iterator[str]:
    """What the experiment has and the table has not, or has otherwise."""
    grid = _planned(summary)
    if grid:
        ran = {arm["name"]: arm for arm in summary["arms"]}
        for arm in (arm for arm in grid.arms if arm.name in ran):
            for option, then, now in differences(ran[arm.name]["config"], arm.config.to_json()):
                yield f"{arm.name} ran with {option} {then!r}, where the experiment now has {now!r}."
        if missing := [arm.name for arm in grid.arms if arm.name not in ran]:
            yield f"Not run: {', '.join(missing)}."
        for why in grid.impossible:
            yield f"No such size: {why}."
    for run, why in summary["failed"].items():
        yield f"Failed: {run}: {why}."


def _planned(summary: dict[str, Any]) -> Grid | None:
    """The experiment as it is now; None if it is no more."""
    if summary["experiment"] not in EXPERIMENTS or summary["scale"] not in SCALES:
        return None
    return plan(summary["experiment"], summary["scale"], updates=own_updates(summary))


def provenance(summary: dict[str, Any]) -> tuple[list[list[str]], list[str]]:
    """What made each row: arm, seeds, commits, machines, time of a run and the numbers of the commands; and
    the commands."""
    commands = sorted({run["command"] for arm in arms(summary) for run in arm["runs"] if run["command"]})
    rows = []
    for arm in arms(summary):
        runs = arm["runs"]
        made = sorted({commands.index(run["command"]) + 1 for run in runs if run["command"]})
        rows.append(
            [
                arm["name"],
                ", ".join(str(run["seed"]) for run in runs),
                _all((run["commit"] or "")[:7] for run in runs),
                _all(run["gpu"] or run["cpu"] or "" for run in runs),
                _range([run["seconds"] for run in runs], words.duration),
                ", ".join(map(str, made)) or words.MISSING,
            ]
        )
    return rows, commands


def markdown(summaries: Sequence[dict[str, Any]]) -> str:
    """docs/results.md."""
    lines = [
        "# Results",
        "",
        "Made by `rims results results/*.json --output docs/results.md`; do not edit.",
        "",
    ]
    lines += [f"{text}\n" for text in KEY]
    for summary in summaries:
        lines += [f"## {heading(summary)}", ""]
        for metric in summary["metrics"]:
            lines += [f"### {words.heading(_what(summary, metric))}", "", *_grid(*table(summary, metric)), ""]
            if lesions(summary, metric)[1]:
                lines += [f"{REMOVED}:", "", *_grid(*lesions(summary, metric)), ""]
        lines += [f"{note}\n" for note in notes(summary)]
        rows, commands = provenance(summary)
        lines += ["<details>", "<summary>Commits, machines and commands of the rows</summary>", ""]
        lines += _grid(["arm", "seeds", "commit", "machine", "time of a run", "command"], rows)
        lines += ["", *[f"{number}. `{command}`" for number, command in enumerate(commands, 1)]]
        lines += ["", "</details>", ""]
    return "\n".join(lines).rstrip() + "\n"


def _grid(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A table of Markdown."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return [f"| {' | '.join(line)} |" for line in lines]


def _range(values: Sequence[Any], written: Any) -> str:
    """One value, or the least and the most."""
    ends = dict.fromkeys(written(value) for value in (min(values), max(values)))
    return " to ".join(ends)


def _all(texts: Iterator[str]) -> str:
    """Each of them once."""
    return ", ".join(sorted({text or "unknown" for text in texts}))
