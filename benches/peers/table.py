"""Writes the table results.md from results.json."""

import json
from collections.abc import Callable
from pathlib import Path
from statistics import median

from figures import is_undisturbed, memory_kib, replacements_ms, shown, startups_ms
from peers import HANG_TIMEOUT, HERE

Facts = dict
Cell = Callable[[str, Facts], str]


def figure(value: float) -> str:
    if value == 0:
        return "0"
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 1 else f"{value:.2g}"


def mib(kib: float) -> str:
    return figure(kib / 1024)


def startup(_: str, facts: Facts) -> str:
    return figure(median(startups_ms(facts)))


def replacement(_: str, facts: Facts) -> str:
    if facts.get("not_replaced"):
        return "not replaced"
    return figure(median(replacements_ms(facts)))


def memory(*keys: str) -> Cell:
    def cell(_: str, facts: Facts) -> str:
        return " / ".join(mib(median(memory_kib(facts, key))) for key in keys)

    return cell


def idle(key: str, what: str) -> Cell:
    def cell(_: str, facts: Facts) -> str:
        return figure(round(facts[key][what], 2))

    return cell


def hang(_: str, facts: Facts) -> str:
    return "no" if facts["hang_s"] is None else f"after {facts['hang_s']:.1f} s"


def watched(_: str, facts: Facts) -> str:
    return "" if facts["hang_s"] is None else figure(round(facts["idle_watched"]["wakeups_per_s"], 2))


def status(value: int | None) -> str:
    if value is None:
        return "still there"
    return f"exit {value}" if value >= 0 else f"signal {-value}"


def most_common(values: list) -> str:
    counted = sorted({(-values.count(value), value) for value in values})
    return ", ".join(value if len(counted) == 1 else f"{value} ({-count} times)" for count, value in counted)


def term(_: str, facts: Facts) -> str:
    return most_common([status(life["term"]["status"]) for life in shown(facts) if "term" in life])


def left_by_term(_: str, facts: Facts) -> str:
    return most_common([str(life["term"]["workers"]) for life in shown(facts) if "term" in life])


def left_by_kill(_: str, facts: Facts) -> str:
    return " / ".join(str(sample["workers"]) for sample in facts["orphans"])


def crash_loop(fate: str) -> Cell:
    def cell(name: str, facts: Facts) -> str:
        if fate not in facts:
            return "has no such workers"
        found = facts[fate]
        starts = f"{found['starts']} start{'s' if found['starts'] != 1 else ''}"
        if found["status"] is None:
            return f"goes on, {starts}"
        left = f", {found['left']} left behind" if found.get("left") else ""
        return f"{status(found['status'])} after {starts}{left}"

    return cell


def roll(key: str) -> Cell:
    def cell(_: str, facts: Facts) -> str:
        if key not in facts:
            return "cannot"
        requests = facts[key]["requests"]
        lost = sum(requests.values()) - requests.get("answered", 0)
        ended = ", and it ended" if facts[key]["ended"] else ""
        return f"{lost:,} of {sum(requests.values()):,}{ended}"

    return cell


def replaced(key: str) -> Cell:
    def cell(_: str, facts: Facts) -> str:
        return str(facts[key]["replaced"]) if key in facts else ""

    return cell


ROWS: list[tuple[str, Cell]] = [
    ("four workers up, ms", startup),
    ("worker replaced after kill -9, ms", replacement),
    ("idle parent: wakeups per s", idle("idle", "wakeups_per_s")),
    ("idle parent: CPU, µs per s", idle("idle", "cpu_us_per_s")),
    ("parent: PSS / private, MiB", memory("parent_pss", "parent_private")),
    ("worker: PSS / private, MiB", memory("worker_pss", "worker_private")),
    ("all processes: PSS, MiB", memory("all_pss")),
    (f"hung worker replaced, timeout of {HANG_TIMEOUT} s", hang),
    ("idle parent with that timeout: wakeups per s", watched),
    ("TERM to the parent", term),
    ("workers left 3 s later", left_by_term),
    ("workers left 3 / 20 s after kill -9 of the parent", left_by_kill),
    ("workers that cannot start, for 6 s", crash_loop("broken")),
    ("workers that die after 0.1 s, for 6 s", crash_loop("dies")),
    ("HUP after HUP: requests lost", roll("roll_patient")),
    ("HUP after HUP: workers replaced", replaced("roll_patient")),
    ("HUP every 250 ms: requests lost", roll("roll_impatient")),
    ("HUP every 250 ms: workers replaced", replaced("roll_impatient")),
]


def version(name: str, about: dict) -> str:
    return f"{name} {about['versions'][name.split(',')[0].lower()]}"


def table(results: dict) -> str:
    peers, about = results["peers"], results["about"]
    lines = [["", *(version(name, about) for name in peers)], ["---"] * (len(peers) + 1)]
    for title, cell in ROWS:
        lines.append([title, *(cell_or_none(cell, name, facts) for name, facts in peers.items())])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def cell_or_none(cell: Cell, name: str, facts: Facts) -> str:
    """Returns the cell, or "not measured" if the sample failed or the supervisor could not start."""
    try:
        return cell(name, facts)
    except (KeyError, ValueError):
        return "not measured"


def conditions(results: dict) -> str:
    about = results["about"]
    rustc = about["rustc"].split(" (")[0]
    machine = f"{about['cpus']} CPUs, Linux {about['kernel']}, Python {about['python']}, {rustc}"
    counts = [len(shown(facts)) for facts in results["peers"].values()]
    lives = f"{min(counts)} to {max(counts)}" if min(counts) < max(counts) else counts[0]
    left_out = sum(len(facts.get("lives", [])) for facts in results["peers"].values()) - sum(counts)
    disturbed = [life for facts in results["peers"].values() for life in shown(facts) if not is_undisturbed(life)]
    text = f"""{about["date"]}: {machine}. Start-up times and memory are medians
of {lives} starts, and replacement times are medians of up to two replacements per start. Of the starts during which other
work took more than a tenth of the machine's CPU time, {left_out} are left out, and {len(disturbed)} are not, because
too few would remain."""
    if about["failures"]:
        text += "\nFailed samples: " + "; ".join(failure.split(", see")[0] for failure in about["failures"]) + "."
    return text


def main() -> None:
    results = json.loads((HERE / "results.json").read_text())
    text = f"""<!-- Written by benches/peers/run. benches/README.md explains the table. -->

{table(results)}

{conditions(results)}
"""
    Path(HERE / "results.md").write_text(text)
    print(HERE / "results.md")


if __name__ == "__main__":
    main()
