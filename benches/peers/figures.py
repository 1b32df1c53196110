"""What of results.json is shown."""

Life = dict


def is_undisturbed(life: Life) -> bool:
    """Others had at most a tenth of the CPUs meanwhile."""
    return life["others_share"] <= 0.1


def shown(facts: dict) -> list[Life]:
    """The starts that nobody disturbed, if there are three at least."""
    lives = facts.get("lives", [])
    undisturbed = [life for life in lives if is_undisturbed(life)]
    return undisturbed if len(undisturbed) >= 3 else lives


def startups_ms(facts: dict) -> list[float]:
    return [life["startup_ms"] for life in shown(facts)]


def replacements_ms(facts: dict) -> list[float]:
    return [ms for life in shown(facts) for ms in life.get("replacement_ms", [])]


def memory_kib(facts: dict, key: str) -> list[float]:
    return [life["memory_kib"][key] for life in shown(facts)]
