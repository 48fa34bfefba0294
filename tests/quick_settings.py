"""Settings that keep each attack to a few seconds; a new attack adds a row."""

QUICK = {
    "span": {},
    "sequential": {"guesses": 2},
    "sparse_frames": {"attempts": 1, "most_steps": 2},
    "matching": {"iterations": 2},
    "hessian_free": {"iterations": 2, "directions": 4},
}
