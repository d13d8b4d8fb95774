"""The part of the page that shows what models of video predict."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from rims.errors import UserError
from rims.report import video, words
from rims.report.groups import Section

if TYPE_CHECKING:
    from rims.report.page import Plots


def screening(section: Section, plots: Plots) -> dict[str, Any]:
    """What the template shows of a section whose task is a video."""
    shown: dict[str, Any] = {"sequences": video.SEQUENCES, "missing": [], "scenes": [], "damage": []}
    try:
        seen = video.observe(section)
    except UserError as error:
        shown["missing"] = [f"Nothing can be shown: {error}"]
        return shown
    shown["missing"] = seen.missing
    shown["scenes"] = [_scene(section, scene, plots) for scene in seen.scenes]
    shown["damage"] = [_damage(section, damage, plots) for damage in seen.damage]
    return shown


def _scene(section: Section, scene: video.Scene, plots: Plots) -> dict[str, Any]:
    from rims.report import curves, film

    where, label = section.task.condition_name, section.task.label(scene.condition)
    at, name = f"{where} {label}", f"{section.task.name}_{where}_{scene.condition}"
    last = len(scene.truth) - 1
    numbers = film.columns(scene.feed_in, last)
    strip = {"truth": film.pictures(scene.truth[numbers, 0])}
    films = {"truth": [film.pictures(scene.truth[:, i]) for i in range(scene.truth.shape[1])]}
    for run in scene.runs:
        strip[run.group.label] = film.pictures(run.predicted[[n - 1 for n in numbers], 0])
        # Of frame 0 nothing is predicted.
        whole = torch.cat([torch.zeros_like(run.predicted[:1]), run.predicted])
        films[run.group.label] = [film.pictures(whole[:, i]) for i in range(whole.shape[1])]
    moving = film.film(films, scene.feed_in, last)
    return {
        "at": at,
        "trained": scene.condition in section.trained,
        "strip": plots.add(
            f"strip_{name}", f"Truth and predictions, {at}", film.strip(strip, numbers, scene.feed_in)
        ),
        "film": {**plots.film(f"film_{name}", moving), "title": f"The same and two more sequences, {at}"},
        "curves": [
            plots.add(
                f"{metric}_over_frames_{name}",
                f"{words.heading(metric)} over frames, {at}",
                curves.over_frames(scene.runs, metric, scene.feed_in),
            )
            for metric in scene.runs[0].curves["model"]
        ],
        "rims": [plot for run in scene.runs for plot in _rims(run, scene, at, plots)],
        "attention": [_attention(run, scene, at, plots) for run in scene.runs if run.attention is not None],
    }


def _rims(run: video.Rollout, scene: video.Scene, at: str, plots: Plots) -> list[dict[str, str]]:
    """Who was active, and whether where there was something to see."""
    from rims.report import curves, rasters

    if run.active is None:
        return []
    name = f"{run.result.name}_{scene.condition}"
    phases = {"fed": (0, scene.feed_in)}
    if scene.feed_in < len(run.active):
        phases["own predictions"] = (scene.feed_in, len(run.active))
    title = f"Who is active in the first sequence, {at}"
    note = f"· {run.group.label}"
    still = run.correlation is not None and bool(run.correlation.isnan().all())
    if still:
        note += " · which are active is the same in all sequences, so it goes with no strip's brightness"
    found = [plots.add(f"rollout_raster_{name}", title, rasters.raster(run.active, phases), note)]
    if run.correlation is not None and not still:
        fed, own = (
            words.MISSING if part.isnan().all() else f"{part.nanmean():.2f}"
            for part in (run.correlation[: scene.feed_in], run.correlation[scene.feed_in :])
        )
        note += f" · mean {fed} while fed, {own} after; RIMs that never change have none"
        title = f"Active where the strip is bright, {at}"
        drawn = curves.correlation(run.correlation, scene.feed_in)
        found.append(plots.add(f"strips_{name}", title, drawn, note))
    return found


def _attention(run: video.Rollout, scene: video.Scene, at: str, plots: Plots) -> dict[str, str]:
    from rims.report import film

    assert run.attention is not None
    assert run.mean_attention is not None
    # The frames that went in: true ones, and then the model's own.
    went_in = torch.cat([scene.truth[: scene.feed_in, 0], run.predicted[scene.feed_in - 1 : -1, 0]])
    numbers = [number for number in film.columns(scene.feed_in, len(went_in)) if number < len(went_in)]
    drawn = film.attention(
        film.pictures(went_in[numbers]), run.attention[numbers], numbers, scene.feed_in, run.mean_attention
    )
    name = f"attention_{run.result.name}_{scene.condition}"
    return plots.add(name, f"Where RIMs look, {at}", drawn, f"· {run.group.label}")


def _damage(section: Section, damage: video.Damage, plots: Plots) -> dict[str, Any]:
    from rims.report import film

    names = {rim: "intact" if rim is None else f"without RIM {rim}" for rim in damage.predicted}
    numbers = film.columns(damage.feed_in, len(damage.truth) - 1)
    strip = {"truth": film.pictures(damage.truth[numbers])}
    for rim, predicted in damage.predicted.items():
        strip[names[rim]] = film.pictures(predicted[[n - 1 for n in numbers]])
    at = f"{section.task.condition_name} {section.task.label(damage.condition)}"
    metrics = list(damage.metrics[None])
    return {
        "name": damage.result.name,
        "at": at,
        "strip": plots.add(
            f"lesions_{damage.result.name}",
            f"With one RIM removed, {at}",
            film.strip(strip, numbers, damage.feed_in),
            f"· {damage.result.name}",
        ),
        "metrics": [{"name": words.title(metric), "unit": words.unit(metric)} for metric in metrics],
        "rows": [
            {"name": names[rim], "cells": [words.value(metric, values[metric]) for metric in metrics]}
            for rim, values in damage.metrics.items()
        ],
    }
