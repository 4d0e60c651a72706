import numpy as np
import pytest
import torch
from torch.nn import functional as F

from raysys.errors import DataError
from raysys.models import pursuit


def world(n_rows=200, dim=24, n_atoms=96, n_active=4, seed=0):
    draw = torch.Generator().manual_seed(seed)
    dictionary = F.normalize(torch.randn(n_atoms, dim, generator=draw), dim=1)
    atoms = torch.stack([torch.randperm(n_atoms, generator=draw)[:n_active] for _ in range(n_rows)])
    values = torch.randn(n_rows, n_active, generator=draw)
    values += values.sign()
    return F.embedding_bag(atoms, dictionary, per_sample_weights=values, mode="sum"), dictionary


def slow_pursuit(x, dictionary, n_active):
    """Refit by lstsq after every choice: the definition."""
    chosen = []
    left = x
    for _ in range(n_active):
        scores = np.abs(dictionary @ left)
        scores[chosen] = -1
        chosen.append(int(scores.argmax()))
        basis = dictionary[chosen].T
        values, *_ = np.linalg.lstsq(basis, x, rcond=None)
        left = x - basis @ values
    return chosen, values


def test_pursuit_is_its_definition():
    x, dictionary = world()
    codes = pursuit.matching_pursuit(x, dictionary, dictionary @ dictionary.T, 6)
    for row in range(40):
        atoms, values = slow_pursuit(
            x[row].numpy().astype(np.float64), dictionary.numpy().astype(np.float64), 6
        )
        if atoms != codes.atoms[row].tolist():  # a tie at float32 precision
            continue
        np.testing.assert_allclose(codes.values[row].numpy(), values, atol=2e-3)
    assert (codes.atoms.sort(dim=1).values.diff(dim=1) > 0).all()


def test_the_better_of_two_is_never_worse():
    x, dictionary = world()
    gram = dictionary @ dictionary.T
    proposal = (x @ dictionary.T).abs().topk(4, dim=1).indices
    best = pursuit.best_codes(x, dictionary, gram, 4, proposal)
    greedy = pursuit.matching_pursuit(x, dictionary, gram, 4)
    other = pursuit.SparseCodes(proposal, pursuit.least_squares(x, proposal, dictionary))
    errors = [
        (x - pursuit.reconstruct(codes, dictionary)).norm(dim=1) for codes in (best, greedy, other)
    ]
    assert (errors[0] <= torch.minimum(errors[1], errors[2]) + 1e-5).all()


def test_alternating_finds_a_better_dictionary():
    x, _ = world(n_rows=600, n_atoms=48)
    dictionary = F.normalize(x[:48].clone(), dim=1)
    cosines = []
    for _ in range(6):
        codes = pursuit.matching_pursuit(x, dictionary, dictionary @ dictionary.T, 4)
        cosines.append(float(F.cosine_similarity(x, pursuit.reconstruct(codes, dictionary)).mean()))
        dictionary = pursuit.update_dictionary(x, codes, dictionary)
        torch.testing.assert_close(dictionary.norm(dim=1), torch.ones(48))
    assert cosines[-1] > cosines[0] + 0.02


def test_truncation_fits_again():
    x, dictionary = world()
    codes = pursuit.matching_pursuit(x, dictionary, dictionary @ dictionary.T, 8)
    short = codes.truncated(4, x, dictionary)
    direct = pursuit.matching_pursuit(x, dictionary, dictionary @ dictionary.T, 4)
    torch.testing.assert_close(short.atoms, direct.atoms)
    torch.testing.assert_close(short.values, direct.values, atol=1e-3, rtol=1e-3)


def test_a_bad_row_is_named():
    x, _ = world()
    x[7] = 0
    with pytest.raises(DataError, match="row 7"):
        pursuit.check_rows(x)
