"""A plausible record of a sweep, as `<run>/sweeps/<id>/sweep.json` holds it."""

from __future__ import annotations

import itertools

import numpy as np

LEAD = "recall@20^0.2"


def sweep_record(*, n_trials=24, objectives=((LEAD, "max"),), finalists=True, seed=3):
    """Trials of every state: 0 the defaults, one failed, some pruned, one reused."""
    rng = np.random.default_rng(seed)
    trials = [_trial(number, objectives, rng) for number in range(n_trials)]
    done = [t for t in trials if t["objectives"]]
    sign = {name: 1 if direction == "max" else -1 for name, direction in objectives}
    lead = objectives[0][0]
    best = max(done, key=lambda t: sign[lead] * t["objectives"][lead])["number"]
    several = len(objectives) > 1
    front = [t["number"] for t in done if not any(_beats(o, t, sign) for o in done)]
    return {
        "sweep_id": "ab12cd34",
        "name": "first sweep",
        "state": "finished",
        "started": 1_796_000_000,
        "updated": 1_796_000_900,
        "profiles_id": "75dface976478ff5",
        "code_version": "0.1.0+a898e7b",
        "seed": 0,
        "sampler": "nsga2" if several else "tpe",
        "objectives": [{"name": name, "direction": way} for name, way in objectives],
        "stop_on": None if several else lead,
        "space": {
            "optim.lr": {"low": 0.005, "high": 0.05, "log": True},
            "compressor.n_active": [16, 32, 64],
            "autoencoder.consume_loss": ["cosine", "likelihood"],
            "autoencoder.dropout": {
                "values": [0.3, 0.5],
                "if": {"autoencoder.consume_loss": ["likelihood"]},
            },
        },
        "defaults": {
            "optim.lr": 0.02,
            "compressor.n_active": 32,
            "autoencoder.consume_loss": "cosine",
            "autoencoder.dropout": 0.5,
        },
        "budget": {"trials": n_trials, "seconds": None, "worker_seconds": None},
        "settings": {
            "optim": {"lr": 0.02, "epochs": 40},
            "compressor": {"n_active": 32},
            "autoencoder": {"consume_loss": "cosine", "dropout": 0.5},
        },
        "trials": trials,
        "best": best,
        "front": front,
        "importance": {"optim.lr": 0.62, "compressor.n_active": 0.27, "autoencoder.dropout": 0.11},
        "hypervolume": _hypervolume(n_trials, rng) if several else None,
        "finalists": _finalists(best, lead, rng) if finalists else None,
        "totals": {
            "seconds": 880.0,
            "training_seconds": 801.5,
            "worker_seconds": 801.5,
            "overhead_share": 0.089,
            "peak_bytes": 1_230_000_000,
        },
    }


def _trial(number, objectives, rng):
    lr = float(np.round(np.exp(rng.uniform(np.log(0.005), np.log(0.05))), 5))
    n_active = int(rng.choice([16, 32, 64]))
    loss = str(rng.choice(["cosine", "likelihood"]))
    values = {
        "optim.lr": lr,
        "compressor.n_active": n_active,
        "autoencoder.consume_loss": loss,
        **({"autoencoder.dropout": float(rng.choice([0.3, 0.5]))} if loss == "likelihood" else {}),
    }
    state = {3: "failed", 5: "pruned", 8: "pruned", 11: "pruned", 2: "reused"}.get(
        number, "complete"
    )
    top = 0.1 - 0.008 * abs(np.log(lr / 0.02)) + 0.0001 * n_active + float(rng.normal(0, 0.001))
    metrics = {LEAD: float(top), "nll": 1.1 - float(top), "bytes": 2.0 * n_active + 2}
    epochs = 4 if state == "pruned" else 12
    history = [[e, float(top * (1 - 0.3 * np.exp(-e / 3)))] for e in range(1, epochs + 1)]
    failed = state == "failed"
    return {
        "number": number,
        "digest": f"{number:08x}",
        "values": values if number else {},
        "state": state,
        "objectives": {} if failed else {name: metrics[name] for name, _ in objectives},
        "metrics": {} if failed else metrics,
        "epochs": 0 if failed else epochs,
        "history": [] if failed else history,
        "seconds": 30.0 + number,
        "training_seconds": 28.0 + number,
        "worker_seconds": 28.0 + number,
        "peak_bytes": 1_100_000_000 + number,
        "rows_per_s": 2000.5,
        "build_ids": {},
        "error": "ConfigError: <b>no</b> loss is finite & $x" if failed else None,
    }


def _beats(one, other, sign):
    gaps = [sign[k] * (one["objectives"][k] - other["objectives"][k]) for k in sign]
    return all(gap >= 0 for gap in gaps) and any(gap > 0 for gap in gaps)


def _hypervolume(n_trials, rng):
    found, random = (np.maximum.accumulate(rng.uniform(0, top, n_trials)) for top in (1.0, 0.8))
    return {"reference": [0.0, 200.0], "found": found.tolist(), "random": random.tolist()}


def _finalists(best, lead, rng):
    numbers = list(dict.fromkeys([0, best, 7, 9]))
    settings = []
    for number in numbers:
        by_seed = (0.095 + 0.004 * (number == best) + rng.normal(0, 0.0005, 3)).tolist()
        settings.append(
            {"number": number, "values": {}, "by_seed": by_seed, "mean": float(np.mean(by_seed))}
        )
    mean = {s["number"]: s["mean"] for s in settings}
    comparisons = [
        {
            "first": one,
            "second": two,
            "difference": mean[one] - mean[two],
            "ci_low": mean[one] - mean[two] - 0.002,
            "ci_high": mean[one] - mean[two] + 0.002,
            "p_value": 0.01 if best in (one, two) else 0.8,
        }
        for two, one in itertools.combinations(numbers, 2)
    ]
    return {
        "metric": lead,
        "seeds": [0, 1, 2],
        "replicates": 1000,
        "users": 4466,
        "settings": settings,
        "comparisons": comparisons,
        "verdict": f"trial {best} is better than the defaults",
    }
