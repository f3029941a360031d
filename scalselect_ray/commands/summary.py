"""What people read at the end of a run."""

from typing import Any

from scalselect_ray.console import Console
from scalselect_ray.io import storage


def summarise(console: Console, record: dict[str, Any], folder: str) -> None:
    """Says what `run.json` holds, where things were written, and what to do next."""
    change = record["change"]
    angles = change and change["principal_angles_degrees"]
    rejected = sum(record["rejected"].values())
    reasons = ", ".join(f"{count:,} {reason}" for reason, count in record["rejected"].items())
    console.note("")
    console.facts(
        {
            "chosen": f"{record['chosen']:,} of {record['scored']:,} scored samples"
            + (f", and {record['text_only_kept']:,} text-only" if record["text_only_kept"] else ""),
            "subspace": f"k = {record['k']} of {record['dim']} directions hold {100 * record['energy_captured']:.1f}% "
            "of the energy",
            "rejected": f"{rejected:,}" + (f" ({reasons})" if reasons else ""),
            **(
                {"since last": f"{change['kept']:,} kept, {change['entered']:,} entered, {change['left']:,} left"}
                if change
                else {}
            ),
            **(
                {"turned by": f"{angles['mean']:.2f} degrees on average, {angles['largest']:.2f} at most"}
                if angles
                else {}
            ),
            "work": f"{record['slices']['extracted']:,} of {record['slices']['total']:,} slices extracted in this run",
        }
    )
    rows = [
        (name, item["scored"], item["chosen"], f"{100 * item['chosen'] / max(item['scored'], 1):.1f}%")
        for name, item in record["sources"].items()
    ]
    if len(record["budgets"]) > 1:
        firsts = ", ".join(f"{count:,} for {budget}" for budget, count in record["budgets"].items())
        console.facts({"first ranks": firsts})
    if record["chosen"] < max(record["budgets"].values()):
        console.warn(
            f"the caps of selection.per_source leave {record['chosen']:,} of the {max(record['budgets'].values()):,} "
            f"asked for"
        )
    console.table(("source", "scored", "chosen", "share"), rows)
    if record["k"] == 0:
        console.warn("all features are equal: there is no subspace, every score is 0, and the first samples were taken")
    report = storage.join(folder, "report.html")
    made = {"report": storage.redact(report)} if storage.exists(report) else {}
    console.facts(
        {
            **made,
            "manifest": f"{storage.redact(folder)}/manifest",
            "rejects": f"{storage.redact(folder)}/rejects.parquet",
        }
    )
    output = storage.redact(folder).rpartition("/runs/")[0]
    console.note(
        f"  next: 'scalselect export {output} --to llava --out DIR' writes it for a trainer (others: --to '?'); run "
        f"the same command"
    )
    console.note(
        "        again when the corpus has grown, or with another selection.budget: nothing is extracted twice"
    )
