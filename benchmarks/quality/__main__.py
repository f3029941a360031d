"""Whether a subset keeps its promise: a small VLM tuned on subsets of a redundant corpus, chosen in five ways, against
the whole corpus.

python benchmarks/quality NLVR [--out FOLDER] [--small] [--seeds 5] [--chart PNG]

NLVR is a folder of NLVR's samples: parquet/*.parquet with `scene`, and webdataset/*.tar. On one thread and one core;
every training is a line of FOLDER/trainings.jsonl, and the same command goes on from there. The last line of stdout is
one JSON record."""

import argparse
import itertools
import json
import sys
import tempfile
import time
from collections import defaultdict
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from corpus import HUMAN, SOURCES, Row, Scene, compose, make_corpus, make_test, read_scenes, split_scenes
from methods import METHODS, choose, described, represent
from model import Encoded, Vlm
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1]))
from record import print_record

REGIMES = ("steps", "epochs")
_RATES = (5e-4, 1e-3, 2e-3)
_ANSWERING_RATE = 1e-3
_KNOWN = ("easy", "exist", "count")  # kinds of questions of the warm-up; the corpus alone has the others
FULL = "full data"


@dataclass(frozen=True, slots=True)
class Sizes:
    """How large the experiment is. The steps of a training are `steps`, or as many as `epochs` take."""

    budgets: tuple[float, ...] = (0.04, 0.08, 0.16, 0.32)
    seeds: int = 5
    scenes: int | None = None
    scale: float = 1.0  # of the corpus
    each: int = 100  # test samples of every kind
    width: int = 96
    layers: int = 2
    warm_up_steps: tuple[int, int] = (1200, 1500)  # to see, to write
    warm_up_rate: float = 2e-3
    answering_steps: int = 500
    steps: int = 150
    epochs: int = 6
    batch: int = 32


SMALL = Sizes(
    budgets=(0.1, 0.3),
    seeds=1,
    scenes=100,
    scale=0.06,
    each=6,
    width=32,
    layers=2,
    warm_up_steps=(4, 4),
    answering_steps=4,
    steps=3,
    epochs=1,
)


class Experiment:
    """The corpora, the warmed-up model, and what both the selections and the trainings need of them."""

    def __init__(self, nlvr: Path, out: Path, sizes: Sizes) -> None:
        self.sizes, self.out = sizes, out
        scenes = read_scenes(nlvr, sizes.scenes)
        splits = split_scenes(len(scenes))
        self.rows = make_corpus(scenes, splits["corpus"], sizes.scale)
        self.test = make_test(scenes, splits["test"], sizes.each, seed=2)
        self.validation = make_test(scenes, splits["validation"], sizes.each, seed=3)
        self.folder = out / "model"
        if not (self.folder / "model.safetensors").exists():
            self._warm_up(scenes, splits["warm-up"])
        self.vlm = Vlm.load(self.folder)
        self._start = {name: tensor.clone() for name, tensor in self.vlm.model.state_dict().items()}
        self._look(scenes)
        self._check()

    def _warm_up(self, scenes: list[Scene], places: list[int]) -> None:
        """To see, to write captions, to answer the common kinds of questions: what a pretrained model brings. Kept
        after the captions."""
        sizes, captions = self.sizes, self.out / "captions"
        if not (captions / "model.safetensors").exists():
            vlm = Vlm.create(
                [text for row in self.rows for text in (row.question, row.answer)], sizes.width, sizes.layers
            )
            vlm.warm_up(
                [scenes[place] for place in places], sizes.warm_up_steps, sizes.warm_up_rate, 2 * sizes.batch, say
            )
            vlm.save(captions)
        vlm = Vlm.load(captions)
        rows = [row for row in make_test(scenes, places, 4 * sizes.each, seed=4) if row.source in _KNOWN]
        pictures = {(row.scene, row.order): n for n, row in enumerate(rows)}
        seen = vlm.see(vlm.pixels([compose(scenes[row.scene].boxes_3HWC, row.order) for row in rows]))
        vlm.tune(seen, vlm.encode(rows, pictures), sizes.answering_steps, _ANSWERING_RATE, sizes.batch, seed=5)
        vlm.save(self.folder)

    def _look(self, scenes: list[Scene]) -> None:
        """Each picture once: its pixels, what the vision tower makes of it, and the samples encoded."""
        everything = [*self.rows, *self.test, *self.validation]
        places: dict[tuple[int, tuple[int, ...]], int] = {}
        for row in everything:
            places.setdefault((row.scene, row.order), len(places))
        drawn = [compose(scenes[scene].boxes_3HWC, order) for scene, order in places]
        self.pictures = [Image.fromarray(drawn[places[row.scene, row.order]]) for row in self.rows]
        self._pixels = self.vlm.pixels(drawn)
        self._seen = self.vlm.see(self._pixels)
        self._corpus, self._test, self._validation = (
            self.vlm.encode(rows, places) for rows in (self.rows, self.test, self.validation)
        )

    def _check(self) -> None:
        """The way that is trained gives what the class of transformers gives, of the conversation as its own processor
        makes it."""
        row, processor = self.rows[0], self.vlm.processor
        turn = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": row.question}]}
        text = f"{processor.apply_chat_template([turn], tokenize=False)}ASSISTANT :"
        with torch.no_grad():
            expected = self.vlm.model(**processor(text=text, images=self.pictures[0], return_tensors="pt")).logits[
                0, -1
            ]
            part = self._corpus[torch.tensor([0])]
            found = self.vlm.logits(self._seen[part.picture_N], part.text_NL, part.last_N[:, None])[0, 0]
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)

    def accuracy(
        self, places: np.ndarray, steps: int, rate: float, seed: int, rows: list[Row], data: Encoded
    ) -> dict[str, float]:
        """Of a model tuned on the chosen samples from the common start: by kind, and the mean of all kinds but the
        human statements."""
        self.vlm.model.load_state_dict(self._start)
        self.vlm.tune(self._seen, self._corpus[torch.from_numpy(places)], steps, rate, self.sizes.batch, seed)
        right = self.vlm.right(self._seen, data)
        by_kind = {
            kind: float(np.mean([right[n] for n, row in enumerate(rows) if row.source == kind])) for kind in SOURCES
        }
        return {"mean": float(np.mean([value for kind, value in by_kind.items() if kind != HUMAN])), **by_kind}

    def on_test(self, places: np.ndarray, steps: int, rate: float, seed: int) -> dict[str, float]:
        return self.accuracy(places, steps, rate, seed, self.test, self._test)

    def on_validation(self, rate: float) -> dict[str, float]:
        """Of the full data at the equal steps, before any test."""
        return self.accuracy(np.arange(len(self.rows)), self.sizes.steps, rate, 99, self.validation, self._validation)

    def steps(self, regime: str, count: int) -> int:
        """Of one training on `count` samples."""
        return self.sizes.steps if regime == "steps" else max(round(self.sizes.epochs * count / self.sizes.batch), 1)

    def majority(self) -> dict[str, float]:
        """What the most frequent answer of each kind would reach on the test."""
        answers = {kind: [row.answer for row in self.test if row.source == kind] for kind in SOURCES}
        return {kind: max(map(given.count, given)) / len(given) for kind, given in answers.items()}


class Log:
    """Results by key, a line each; what is there is not computed again."""

    def __init__(self, path: Path) -> None:
        self._path = path
        lines = path.read_text().splitlines() if path.exists() else []
        self._known = {line["key"]: line for line in map(json.loads, lines)}

    def get(self, key: str, compute: Any) -> dict[str, Any]:
        if key not in self._known:
            started = time.process_time()
            self._known[key] = {"key": key, **compute(), "cpu_s": round(time.process_time() - started, 1)}
            with self._path.open("a") as file:
                file.write(json.dumps(self._known[key]) + "\n")
            facts = {name: value for name, value in self._known[key].items() if name in ("mean", "energy", "cpu_s")}
            say(f"{key}: {facts}")
        return self._known[key]


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def measure(experiment: Experiment) -> dict[str, Any]:
    """Every training; seed by seed, so that an interruption leaves whole seeds."""
    log, sizes, rows = Log(experiment.out / "trainings.jsonl"), experiment.sizes, experiment.rows
    validated = {
        rate: log.get(f"validation {rate}", lambda rate=rate: experiment.on_validation(rate)) for rate in _RATES
    }
    rate = max(validated, key=lambda rate: validated[rate]["mean"])
    features_ND, share = represent(experiment.folder, rows, experiment.pictures, 0.9)
    agnostic_ND, all_tokens = represent(experiment.folder, rows, experiment.pictures, 1.0)
    if all_tokens != 1:
        raise ValueError(f"of the vision tokens {all_tokens:.6f} are in the features that all should be in")
    everything = np.arange(len(rows))
    before = log.get("before tuning", lambda: experiment.on_test(everything, 0, rate, 0))
    results: dict[tuple[str, float, str], list[dict[str, float]]] = defaultdict(list)
    about: dict[tuple[str, float], list[dict[str, float]]] = defaultdict(list)
    for seed in range(sizes.seeds):
        for regime in REGIMES:
            steps = experiment.steps(regime, len(rows))
            found = log.get(
                f"{FULL} {regime} {seed}",
                lambda seed=seed, steps=steps: experiment.on_test(everything, steps, rate, seed),
            )
            results[FULL, 1.0, regime].append(found)
        for budget, method in itertools.product(sizes.budgets, METHODS):
            places = choose(method, int(budget * len(rows)), seed, rows, features_ND, agnostic_ND)
            about[method, budget].append(
                log.get(f"{method} {budget} {seed}", lambda places=places: described(features_ND, rows, places))
            )
            for regime in REGIMES:
                steps = experiment.steps(regime, len(places))
                found = log.get(
                    f"{method} {budget} {regime} {seed}",
                    lambda places=places, steps=steps, seed=seed: experiment.on_test(places, steps, rate, seed),
                )
                results[method, budget, regime].append(found)
    return {
        "rows": len(rows),
        "sources": {name: sum(row.source == name for row in rows) for name in SOURCES},
        "groups": len({row.group for row in rows}),
        "test_rows": len(experiment.test),
        "dim": int(features_ND.shape[1]),
        "parameters": sum(parameter.numel() for parameter in experiment.vlm.model.parameters()),
        "vision_tokens_kept": share,
        "rate": rate,
        "validation": {str(rate): _numbers(found) for rate, found in validated.items()},
        "majority": experiment.majority(),
        "before_tuning": _numbers(before),
        "whole": described(features_ND, rows, everything),
        "results": [
            {"method": method, "budget": budget, "regime": regime, **_spread(found)}
            for (method, budget, regime), found in results.items()
        ],
        "subsets": [{"method": method, "budget": budget, **_means(found)} for (method, budget), found in about.items()],
    }


def _numbers(found: dict[str, Any]) -> dict[str, float]:
    return {name: round(value, 4) for name, value in found.items() if name not in ("key", "cpu_s")}


def _means(found: list[dict[str, Any]]) -> dict[str, float]:
    return {name: round(float(np.mean([one[name] for one in found])), 4) for name in _numbers(found[0])}


def _spread(found: list[dict[str, Any]]) -> dict[str, Any]:
    """Means over the seeds, and the standard deviation of the mean accuracy and of the human statements."""
    std = {f"{name}_std": round(float(np.std([one[name] for one in found])), 4) for name in ("mean", HUMAN)}
    return {"seeds": len(found), **_means(found), **std}


def print_tables(measured: dict[str, Any]) -> None:
    """Markdown: accuracy by method and budget, then by kind of question, then the subsets."""
    results = {(one["method"], one["budget"], one["regime"]): one for one in measured["results"]}
    budgets = sorted({one["budget"] for one in measured["subsets"]})
    for regime in REGIMES:
        whole = results[FULL, 1.0, regime]
        print(f"\nAccuracy % (mean of kinds, ± std over seeds), equal {regime}; full data {_percent(whole)}\n")
        print(
            "| method | "
            + " | ".join(f"{100 * budget:g} %" for budget in budgets)
            + " |\n|---|"
            + "---|" * len(budgets)
        )
        for method in METHODS:
            print(f"| {method} | " + " | ".join(_percent(results[method, budget, regime]) for budget in budgets) + " |")
        print(
            f"\nBy kind, equal {regime}\n\n| method | budget | "
            + " | ".join(SOURCES)
            + " |\n|---|---|"
            + "---|" * len(SOURCES)
        )
        for method, budget in [*itertools.product(METHODS, budgets), (FULL, 1.0)]:
            found = results[method, budget, regime]
            print(
                f"| {method} | {100 * budget:g} % | "
                + " | ".join(f"{100 * found[kind]:.1f}" for kind in SOURCES)
                + " |"
            )
    print(
        "\n| method | budget | energy captured | near-duplicates | groups | easy source | rare sources "
        "|\n|---|---|---|---|---|---|---|"
    )
    for one in [*measured["subsets"], {"method": FULL, "budget": 1.0, **measured["whole"]}]:
        rare = sum(one[f"share_{name}"] for name in ("colour", "shape", "boxes"))
        numbers = [f"{100 * value:.1f} %" for value in (one["energy"], one["near_duplicates"])]
        numbers += [f"{one['groups']:.0f}", f"{100 * one['share_easy']:.1f} %", f"{100 * rare:.1f} %"]
        print(f"| {one['method']} | {100 * one['budget']:g} % | " + " | ".join(numbers) + " |")


def _percent(found: dict[str, Any]) -> str:
    return f"{100 * found['mean']:.1f} ± {100 * found['mean_std']:.1f}"


def draw(measured: dict[str, Any], path: str) -> None:
    """Accuracy against budget."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, 2, figsize=(9, 3.6), sharey=True, layout="constrained")
    for panel, regime in zip(panels, REGIMES, strict=True):
        for method in METHODS:
            line = [one for one in measured["results"] if (one["method"], one["regime"]) == (method, regime)]
            means, stds = (np.array([100 * one[name] for one in line]) for name in ("mean", "mean_std"))
            panel.errorbar(
                [100 * one["budget"] for one in line], means, stds, marker="o", markersize=4, capsize=2, label=method
            )
        whole = next(one for one in measured["results"] if (one["method"], one["regime"]) == (FULL, regime))
        panel.axhline(100 * whole["mean"], color="grey", linestyle="--", label=FULL)
        panel.set(xscale="log", xlabel="budget, % of the corpus", title=f"equal {regime}")
        ticks = sorted({100 * one["budget"] for one in measured["subsets"]})
        panel.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        panel.minorticks_off()
    panels[0].set_ylabel("accuracy on the test, %")
    panels[1].legend(fontsize=8)
    figure.savefig(path, dpi=90)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("nlvr", type=Path)
    parser.add_argument("--out", type=Path, help="where the model and the trainings stay; without it nothing does")
    parser.add_argument("--small", action="store_true", help="to see that it runs: its numbers mean nothing")
    parser.add_argument("--seeds", type=int, help="fewer than 5")
    parser.add_argument("--chart", help="a PNG to write")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        out = options.out or Path(temporary)
        out.mkdir(parents=True, exist_ok=True)
        sizes = SMALL if options.small else Sizes()
        measured = measure(Experiment(options.nlvr, out, replace(sizes, seeds=options.seeds or sizes.seeds)))
    print_tables(measured)
    if options.chart:
        draw(measured, options.chart)
    print_record("quality", ("torch", "transformers", "scikit-learn", "numpy"), **measured)


if __name__ == "__main__":
    main()
