from raysys.store.storage import Storage
from raysys.sweeps.requests import ADD, PAUSE, STOP, Requests


def test_a_pause_is_for_the_sweep_that_runs_and_added_trials_stay(tmp_path):
    storage = Storage(str(tmp_path))
    shell = Requests(storage, "sweeps/one")
    shell.ask(STOP)
    shell.ask(ADD, trials=3)
    sweep = Requests(storage, "sweeps/one")
    sweep.begin()
    assert (sweep.asked(), sweep.added()) == (None, 3)
    shell.ask(PAUSE)
    shell.ask(ADD, trials=4)
    assert (sweep.asked(), sweep.added()) == (PAUSE, 7)
    shell.ask(STOP)
    shell.ask(PAUSE)
    assert sweep.asked() == STOP
    later = Requests(storage, "sweeps/one")
    later.begin()
    assert (later.asked(), later.added()) == (None, 7)
