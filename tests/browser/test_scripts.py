"""Our own JavaScript: how much of it there is."""

from tests.builders import ROOT

LIMIT = 30_000  # bytes, comments included; nothing is minified


def test_our_own_scripts_stay_small():
    sizes = {path.name: path.stat().st_size for path in (ROOT / "static" / "js").glob("*.js")}
    assert {"heed.js", "task.js", "ranking.js"} <= set(sizes)
    assert sum(sizes.values()) <= LIMIT, sizes
