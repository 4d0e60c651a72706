import numpy as np
import torch
from torch.nn import functional as F

from raysys.compressor import pursuit


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


def test_exchange_is_never_worse_than_rounding():
    x, dictionary = world()
    gram = dictionary @ dictionary.T
    codes = pursuit.by_magnitude(pursuit.matching_pursuit(x, dictionary, gram, 6))
    assert (codes.values.abs().diff(dim=1) <= 0).all()
    steps = np.linspace(0.2, 2.2, 8, dtype=np.float32)
    codebook = np.tile(np.concatenate([steps, -steps]), (6, 1))
    found = pursuit.exchange(x, codes, dictionary, gram, codebook)
    rms = codes.values.square().mean(dim=1, keepdim=True).sqrt()
    book = torch.from_numpy(codebook[0])
    rounded = book[(codes.values / rms)[:, :, None].sub(book).abs().argmin(dim=2)] * rms
    plain = pursuit.SparseCodes(codes.atoms, rounded)
    errors = [(x - pursuit.reconstruct(c, dictionary)).norm(dim=1) for c in (found, plain)]
    assert (errors[0] <= errors[1] + 1e-5).all()
    assert errors[0].mean() < 0.9 * errors[1].mean()
    assert (found.atoms.sort(dim=1).values.diff(dim=1) > 0).all()
    ratio = found.values / found.values[:, :1]  # steps times one scale per row
    allowed = (book[None] / book[:, None]).reshape(-1)
    gap = (ratio[:, :, None] - allowed).abs().amin(dim=2) / ratio.abs()
    assert float(gap.max()) < 1e-4


def test_exchange_leaves_zero_rows_alone():
    x, dictionary = world(n_rows=3)
    codes = pursuit.SparseCodes(torch.arange(4).repeat(3, 1), torch.zeros(3, 4))
    codebook = np.ones((4, 16), dtype=np.float32)
    found = pursuit.exchange(x, codes, dictionary, dictionary @ dictionary.T, codebook)
    assert not found.values.any()
