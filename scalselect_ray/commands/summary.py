"""What people read at the end of a run."""

from scalselect_ray.console import Console
from scalselect_ray.io import storage
from scalselect_ray.store.layout import Output
from scalselect_ray.store.record import RunRecord

_SHOWN = 5  # files with lost rows


def summarise(console: Console, record: RunRecord, output: Output) -> None:
    """Says what a run found, where it was written, and what to do next."""
    folder, change = output.run(record.run_id), record.change
    rejected = sum(record.rejected.values())
    reasons = ", ".join(f"{count:,} {reason}" for reason, count in record.rejected.items())
    kept = f", and {record.text_only_kept:,} text-only" if record.text_only_kept else ""
    facts = {
        "chosen": f"{record.chosen:,} of {record.scored:,} scored samples{kept}",
        "subspace": f"k = {record.k} of {record.dim} directions hold {100 * record.energy_captured:.1f}% of the energy",
        "rejected": f"{rejected:,}" + (f" ({reasons})" if reasons else ""),
    }
    if record.filtered_out:
        facts["filtered out"] = ", ".join(f"{count:,} rows of {name}" for name, count in record.filtered_out.items())
    if change:
        facts["since last"] = f"{change.kept:,} kept, {change.entered:,} entered, {change.left:,} left"
    if change and (angles := change.principal_angles_degrees):
        facts["turned by"] = f"{angles.mean:.2f} degrees on average, {angles.largest:.2f} at most"
    facts["work"] = f"{record.slices.extracted:,} of {record.slices.total:,} slices extracted in this run"
    console.note("")
    console.facts(facts)
    if len(record.budgets) > 1:
        firsts = ", ".join(f"{count:,} for {budget}" for budget, count in record.budgets.items())
        console.facts({"first ranks": firsts})
    asked = max(record.budgets.values())
    if record.chosen < asked:
        console.warn(f"the caps of selection.per_source leave {record.chosen:,} of the {asked:,} asked for")
    rows = [
        (name, item.scored, item.chosen, f"{100 * item.chosen / max(item.scored, 1):.1f}%")
        for name, item in record.sources.items()
    ]
    console.table(("source", "scored", "chosen", "share"), rows)
    if record.k == 0:
        console.warn("all features are equal: there is no subspace, every score is 0, and the first samples were taken")
    for lost in record.lost[:_SHOWN]:
        console.warn(str(lost))
    if len(record.lost) > _SHOWN:
        console.warn(f"rows of {len(record.lost) - _SHOWN:,} more files are lost: 'lost' in {folder.record}")
    report = {"report": folder.report} if storage.exists(folder.report) else {}
    written = {"manifest": folder.table("manifest"), "rejects": folder.rejects}
    console.facts({**report, **written})
    console.note(
        f"  next: 'scalselect export {output.uri} --to llava --out DIR' writes it for a trainer (others: "
        "--to '?'); run the same command"
    )
    console.note(
        "        again when the corpus has grown, or with another selection.budget: nothing is extracted twice"
    )
