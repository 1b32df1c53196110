"""Selects the values of results.json that the table and the pictures show."""

Life = dict


def is_undisturbed(life: Life) -> bool:
    """Returns whether other work used at most a tenth of the CPU time during this start."""
    return life["others_share"] <= 0.1


def shown(facts: dict) -> list[Life]:
    """Returns the undisturbed starts, or all starts if fewer than three are undisturbed."""
    lives = facts.get("lives", [])
    undisturbed = [life for life in lives if is_undisturbed(life)]
    return undisturbed if len(undisturbed) >= 3 else lives


def startups_ms(facts: dict) -> list[float]:
    return [life["startup_ms"] for life in shown(facts)]


def replacements_ms(facts: dict) -> list[float]:
    return [ms for life in shown(facts) for ms in life.get("replacement_ms", [])]


def memory_kib(facts: dict, key: str) -> list[float]:
    return [life["memory_kib"][key] for life in shown(facts)]
