"""Sparse recovery against other solvers, optimality conditions and theory."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.fft import dctn
from scipy.optimize import linprog
from sklearn.linear_model import orthogonal_mp
from torch import Tensor
from torch.utils.data import TensorDataset

from edgekit.compress.options import TrainOptions
from edgekit.errors import UserError
from edgekit.sensing.acquisition import Sensor
from edgekit.sensing.bases import basis, known_bases
from edgekit.sensing.phase import SuccessRate, crossing, donoho_tanner, statistical_dimension, success_rate
from edgekit.sensing.pursuit import omp
from edgekit.sensing.recovery import basis_pursuit, fista, fista_continuation, ista
from edgekit.sensing.unrolled import Lista, UnrolledRecovery, image_sensor, psnr, shrink, train_recovery
from edgekit.sensing.weights import decode_sparse, encode_sparse, entropy_bound_bits, rows_for


def problem(rows: int, size: int, nonzeros: int, *, count: int = 4, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """A `[m, n]` Gaussian, k-sparse s `[B, n]` and y = A s `[B, m]`, float64."""
    generator = np.random.default_rng(seed)
    matrix = generator.standard_normal((rows, size)) / np.sqrt(rows)
    codes = np.zeros((count, size))
    for code in codes:
        code[generator.permutation(size)[:nonzeros]] = generator.standard_normal(nonzeros)
    return torch.from_numpy(matrix), torch.from_numpy(codes), torch.from_numpy(codes @ matrix.T)


@pytest.mark.parametrize(("name", "shape"), [("dct", (8, 4)), ("haar", (16,)), ("db4", (32,)), ("sym2", (8, 8))])
def test_bases_are_orthonormal(name: str, shape: tuple[int, ...]) -> None:
    """ΨᵀΨ = I: the l2 norm of the coefficients is the signal's."""
    atoms = basis(name, shape)
    np.testing.assert_allclose(atoms.T @ atoms, np.eye(len(atoms)), atol=1e-10)


def test_the_dct_is_scipys() -> None:
    """Coefficients Ψᵀx equal scipy's orthonormal n-dimensional DCT-II."""
    x = np.random.default_rng(0).standard_normal((8, 6))
    np.testing.assert_allclose(basis("dct", (8, 6)).T @ x.ravel(), dctn(x, norm="ortho").ravel(), atol=1e-12)


def test_a_step_is_sparse_in_haar() -> None:
    """A signal constant but for one jump has one coefficient a scale: 1 + log2(n) at most of 64."""
    step = np.where(np.arange(64) < 21, -1.0, 2.0)
    coefficients = basis("haar", (64,)).T @ step
    assert np.count_nonzero(np.abs(coefficients) > 1e-9) <= 7


def test_bad_bases() -> None:
    """An unknown name, an odd length for wavelets, and one too large."""
    with pytest.raises(UserError, match="did you mean 'haar'"):
        basis("har", (8,))
    with pytest.raises(UserError, match="even number"):
        basis("haar", (7,))
    with pytest.raises(UserError, match="4096"):
        basis("dct", (128, 128))
    assert {"identity", "dct", "haar", "db4"} <= set(known_bases())


def test_ista_and_fista_reach_the_minimum_of_the_lasso() -> None:
    """The optimality conditions: |Dᵀ(y − D s)| ≤ λ, with λ·sign(s) where s is not 0."""
    matrix, _, y = problem(20, 40, 4)
    penalty = 0.05
    for solve, steps in ((ista, 20000), (fista, 4000)):
        found = solve(matrix, y, penalty=penalty, iterations=steps, tolerance=1e-12)
        slope = (y - found.coefficients @ matrix.T) @ matrix
        assert float(slope.abs().max()) <= penalty * (1 + 1e-6)
        inside = found.coefficients.abs() > 1e-6
        assert int(inside.sum()) > 4
        torch.testing.assert_close(
            slope[inside], penalty * found.coefficients[inside].sign(), atol=1e-6 * penalty, rtol=1e-4
        )


def test_fista_is_faster_than_ista() -> None:
    """After as many steps FISTA's objective is nearer to the minimum: O(1/k²) against O(1/k)."""
    matrix, _, y = problem(30, 100, 8)

    def objective(s: Tensor) -> Tensor:
        return 0.5 * ((y - s @ matrix.T) ** 2).sum(1) + 0.01 * s.abs().sum(1)

    least = objective(fista(matrix, y, penalty=0.01, iterations=5000, tolerance=0).coefficients)
    slow = objective(ista(matrix, y, penalty=0.01, iterations=100, tolerance=0).coefficients) - least
    fast = objective(fista(matrix, y, penalty=0.01, iterations=100, tolerance=0).coefficients) - least
    assert bool((fast < 0.5 * slow).all())


def test_basis_pursuit_is_the_linear_program() -> None:
    """The l1 norm scipy's HiGHS finds: exactly where a sparse vector is found, and never less; elsewhere a first-order
    method comes near, and `converged` does not claim more."""
    for nonzeros in (4, 16):
        matrix, codes, y = problem(20, 40, nonzeros, count=3)
        found = basis_pursuit(matrix, y, iterations=4000, tolerance=1e-10)
        assert float(found.residual.max()) < 1e-8
        both = np.hstack([matrix.numpy(), -matrix.numpy()])
        for row in range(3):
            least = linprog(np.ones(80), A_eq=both, b_eq=y[row].numpy(), method="highs").fun
            exact = nonzeros == 4 or bool(found.converged[row])
            reached = float(found.coefficients[row].abs().sum())
            assert reached == pytest.approx(least, rel=1e-6 if exact else 1e-3)
            assert reached >= least * (1 - 1e-6)
        if nonzeros == 4:
            torch.testing.assert_close(found.coefficients, codes, atol=1e-6, rtol=1e-6)


def test_omp_is_sklearns() -> None:
    """The same coefficients as scikit-learn's orthogonal_mp, which wants atoms of norm 1."""
    matrix, _, y = problem(20, 50, 5, count=6)
    matrix = matrix / matrix.norm(dim=0)
    found = omp(matrix, y, sparsity=3, tolerance=0.0)
    theirs = orthogonal_mp(matrix.numpy(), y.numpy().T, n_nonzero_coefs=3)
    np.testing.assert_allclose(found.coefficients.numpy(), theirs.T, atol=1e-9)
    assert not bool(found.converged.any())


def test_every_solver_finds_an_easy_sparse_vector() -> None:
    """Well below the phase transition all give the vector back; columns need not have norm 1."""
    matrix, codes, y = problem(50, 100, 5)
    scaled = matrix * torch.linspace(0.5, 2.0, 100)
    for dictionary, measured in ((matrix, y), (scaled, codes @ scaled.T)):
        for coefficients in (
            basis_pursuit(dictionary, measured).coefficients,
            fista_continuation(dictionary, measured, stages=16).coefficients,
            omp(dictionary, measured, sparsity=10).coefficients,
        ):
            error = (coefficients - codes).norm(dim=1) / codes.norm(dim=1)
            assert float(error.max()) < 1e-3


def test_a_dictionary_for_each_row_is_row_by_row() -> None:
    """Batched with matrices of their own, problems have the answers they have alone."""
    parts = [problem(20, 40, 3, count=1, seed=seed) for seed in range(3)]
    dictionaries, y = torch.stack([p[0] for p in parts]), torch.cat([p[2] for p in parts])
    for solve in (
        lambda d, m: basis_pursuit(d, m).coefficients,
        lambda d, m: fista(d, m, penalty=0.01, iterations=3000).coefficients,
        lambda d, m: omp(d, m, sparsity=4).coefficients,
    ):
        together = solve(dictionaries, y)
        for row in range(3):
            alone = solve(dictionaries[row], y[row : row + 1])[0]
            torch.testing.assert_close(together[row], alone, atol=1e-4, rtol=1e-3)


def test_measurements_that_are_all_zero() -> None:
    """Zero in, zero out, and no division by it."""
    matrix, _, _ = problem(10, 20, 2)
    y = torch.zeros(2, 10, dtype=torch.float64)
    for found in (basis_pursuit(matrix, y), omp(matrix, y, sparsity=3), fista_continuation(matrix, y)):
        assert torch.equal(found.coefficients, torch.zeros(2, 20, dtype=torch.float64))
        assert torch.equal(found.residual, torch.zeros(2, dtype=torch.float64))


@pytest.mark.parametrize(
    ("matrix", "y", "message"),
    [
        (torch.randn(8, 16), torch.full((1, 8), float("nan")), "8 values of the measurements are not finite"),
        (torch.full((8, 16), float("inf")), torch.zeros(1, 8), "dictionary are not finite"),
        (torch.randn(16, 16), torch.zeros(1, 16), "16 measurements of 16 numbers"),
        (torch.randn(8, 16), torch.zeros(8), "shape"),
        (torch.randn(8, 16), torch.zeros(1, 8, dtype=torch.float64), "one float type"),
        (torch.randn(3, 8, 16), torch.zeros(2, 8), "3 dictionaries for 2 rows"),
    ],
)
def test_bad_measurements(matrix: Tensor, y: Tensor, message: str) -> None:
    """Every solver refuses them with the same words."""
    for solve in (
        lambda: basis_pursuit(matrix, y),
        lambda: fista(matrix, y, penalty=0.1),
        lambda: omp(matrix, y, sparsity=2),
    ):
        with pytest.raises(UserError, match=message):
            solve()


def test_bad_parameters() -> None:
    """A penalty that is none, a sparsity no m measurements can tell."""
    matrix, _, y = problem(8, 16, 2)
    with pytest.raises(UserError, match="penalty"):
        ista(matrix, y, penalty=0.0)
    with pytest.raises(UserError, match="sparsity 9 with 8"):
        omp(matrix, y, sparsity=9)


@pytest.mark.parametrize("delta", [0.05, 0.2, 0.5, 0.8, 0.95])
def test_the_curve_is_the_minimax_formula(delta: float) -> None:
    """Amelunxen et al.'s statistical dimension gives Donoho, Maleki and Montanari's ρ(δ) (PNAS 2009, eq. 2), which was
    derived another way: max over z of (1 − (2/δ) g(z)) / (1 + z² − 2 g(z)), g(z) = (1 + z²)Φ(−z) − zφ(z)."""
    from scipy.stats import norm

    z = np.linspace(1e-3, 6, 60001)
    g = (1 + z**2) * norm.cdf(-z) - z * norm.pdf(z)
    expected = ((1 - 2 / delta * g) / (1 + z**2 - 2 * g)).max()
    assert donoho_tanner(delta) == pytest.approx(expected, abs=1e-6)  # the grid's own error is (1e-4)²


def test_the_curve_at_its_ends() -> None:
    """No nonzeros need no measurements, all nonzeros all; ρ grows with δ; outside there is no curve."""
    assert statistical_dimension(0.0) == 0.0
    assert statistical_dimension(1.0) == 1.0
    values = [donoho_tanner(d) for d in (0.01, 0.1, 0.3, 0.6, 0.9, 0.99)]
    assert values == sorted(values)
    assert values[-1] > 0.85
    for bad in (0.0, 1.0, -1.0):
        with pytest.raises(UserError):
            donoho_tanner(bad)
    with pytest.raises(UserError):
        statistical_dimension(1.5)


def test_recovery_succeeds_below_the_curve_and_fails_above() -> None:
    """At δ = 0.5, n = 100: half the curve's k is always solved, one and a half times it never."""
    edge = donoho_tanner(0.5) * 50

    def solve(matrix: Tensor, y: Tensor) -> Tensor:
        return basis_pursuit(matrix, y, iterations=2000).coefficients

    below, above = (
        success_rate(solve, size=100, rows=50, nonzeros=round(share * edge), trials=10, seed=0, matrices=2)
        for share in (0.5, 1.5)
    )
    assert (below.rate, above.rate) == (1.0, 0.0)
    assert (below.trials, below.rho) == (10, round(0.5 * edge) / 50)


@settings(max_examples=15, deadline=None)
@given(middle=st.floats(0.25, 0.6), slope=st.floats(20, 200))
def test_the_crossing_of_a_logistic_is_found(middle: float, slope: float) -> None:
    """Rates of an exact logistic curve cross 50 % where it does, up to rounding to whole trials."""
    rates = [
        SuccessRate(
            rows=1000,
            size=2000,
            nonzeros=k,
            solved=round(10_000 / (1 + np.exp(slope * (k / 1000 - middle)))),
            trials=10_000,
        )
        for k in range(150, 701, 25)
    ]
    assert crossing(rates) == pytest.approx(middle, abs=2e-3)


def test_no_crossing_without_both_sides() -> None:
    """Rates that are all high, or none at all, give no number."""
    high = SuccessRate(rows=10, size=20, nonzeros=2, solved=9, trials=10)
    assert crossing([high, high]) is None
    assert crossing([]) is None


def test_lista_begins_as_ista() -> None:
    """Untrained, its layers are ISTA's steps exactly (Gregor and LeCun 2010, eq. 5)."""
    matrix, _, y = problem(20, 40, 4)
    network = Lista(matrix, iterations=7, penalty=0.05).double()
    with torch.no_grad():  # made in float32
        bound = float(torch.linalg.matrix_norm(matrix, ord=2)) ** 2
        network.encode.weight.copy_(matrix.T / bound)
        network.mutual.weight.copy_(torch.eye(40) - matrix.T @ matrix / bound)
        network.thresholds.fill_(0.05 / bound)
    torch.testing.assert_close(
        network(y), ista(matrix, y, penalty=0.05, iterations=7, tolerance=0).coefficients, atol=1e-10, rtol=1e-8
    )


def test_training_makes_lista_better_than_ista(tmp_path: Path) -> None:
    """With as many steps, the trained network is far nearer to unseen codes; thresholds stay non-negative."""
    matrix, codes, _ = problem(16, 32, 3, count=2200)
    sensor = Sensor(matrix.float(), (32,), None)
    network = Lista(matrix.float(), iterations=5, penalty=0.05)
    data, unseen = codes[:2000].float(), codes[2000:].float()
    with torch.no_grad():
        before = float(((network(sensor(unseen)) - unseen) ** 2).mean())
    options = TrainOptions(epochs=6, batch_size=100, learning_rate=5e-3, weight_decay=0.0, threads=1)
    train_recovery(network, sensor, TensorDataset(data), options, seed=0, work_dir=tmp_path)
    with torch.no_grad():
        after = float(((network(sensor(unseen)) - unseen) ** 2).mean())
    assert after < 0.6 * before
    assert float(network.thresholds.min()) >= 0


def test_shrinking_by_relus_is_soft_thresholding() -> None:
    """relu(x − t) − relu(−x − t) = sign(x)·max(|x| − t, 0)."""
    x = torch.linspace(-2, 2, 41)
    torch.testing.assert_close(shrink(x, torch.tensor(0.7)), x.sign() * (x.abs() - 0.7).clamp_min(0))


def test_unrolled_recovery_of_images(tmp_path: Path) -> None:
    """Trained on small images it beats the linear estimate on unseen ones, at another size, and keeps A as it is."""
    generator = torch.Generator().manual_seed(0)

    def blocky(count: int, side: int) -> Tensor:
        """Flat patches with sharp edges: far from Gaussian, which is where linear recovery is the best there is."""
        small = torch.rand(count, 1, side // 4, side // 4, generator=generator).round()
        images = torch.nn.functional.interpolate(small, scale_factor=4)
        offsets = torch.randint(0, 4, (count, 2), generator=generator).tolist()
        return torch.stack([image.roll(offset, (1, 2)) for image, offset in zip(images, offsets, strict=True)])

    images, unseen = blocky(300, 16), blocky(10, 32)
    sensor = image_sensor(0.25, block=8)
    model = UnrolledRecovery(sensor, stages=2, channels=8)
    options = TrainOptions(epochs=8, batch_size=30, learning_rate=5e-3, weight_decay=0.0, threads=1)
    train_recovery(model, sensor, TensorDataset(images), options, seed=0, work_dir=tmp_path)
    linear = UnrolledRecovery(sensor, stages=0)
    train_recovery_start(linear, sensor, images)
    with torch.no_grad():
        measured = sensor(unseen)
        assert measured.shape == (10, 16, 4, 4)
        assert psnr(model(measured), unseen) > psnr(linear(measured), unseen) + 0.5
    for stage in model.stages:
        assert torch.equal(stage.measure.weight.reshape(16, 64), sensor.matrix)  # type: ignore[union-attr,operator]


def train_recovery_start(model: UnrolledRecovery, sensor: Sensor, images: Tensor) -> None:
    from edgekit.sensing.linear import linear_estimate

    model.start.set_estimate(*linear_estimate(sensor, TensorDataset(images), 0, labelled=False))


def test_unrolled_recovery_needs_blocks() -> None:
    """A sensor of whole signals is refused; so is a dictionary that is not wide."""
    with pytest.raises(UserError, match="blocks"):
        UnrolledRecovery(Sensor(torch.zeros(4, 16), (1, 4, 4), None))
    with pytest.raises(UserError, match="16 measurements of 16"):
        Lista(torch.zeros(16, 16))


def test_psnr() -> None:
    """10 log10(peak²/mse), infinite where equal."""
    x = torch.zeros(2, 3)
    assert psnr(x, x) == float("inf")
    assert psnr(x + 0.1, x) == pytest.approx(20.0, abs=1e-5)
    assert psnr(x + 0.1, x, peak=10.0) == pytest.approx(40.0, abs=1e-5)


def sparse_weights(size: int, nonzeros: int, *, seed: int = 0) -> np.ndarray:
    """Weights as magnitude pruning leaves them: none below a threshold in absolute value."""
    generator = np.random.default_rng(seed)
    weights = np.zeros(size, np.float32)
    weights[generator.permutation(size)[:nonzeros]] = generator.standard_normal(nonzeros) + np.sign(
        generator.standard_normal(nonzeros)
    )
    return weights


@pytest.mark.parametrize("method", ["omp", "l1"])
def test_sparse_weights_come_back(method: str) -> None:
    """Projections at the Donoho-Tanner curve's m, times 1.4, give the weights back; far below it, blocks are told
    to be unsolved."""
    weights = sparse_weights(1000, 50).reshape(20, 50)
    rows = rows_for(20, 256, margin=1.4)  # 12.8 nonzeros a block of 256 on average, 20 in the fullest
    decoded = decode_sparse(encode_sparse(weights, rows=rows, block=256, seed=1), nonzeros=20, method=method)
    assert (decoded.unsolved, decoded.blocks) == (0, 4)
    np.testing.assert_allclose(decoded.weights, weights, atol=1e-4)
    few = decode_sparse(encode_sparse(weights, rows=16, block=256, seed=1), nonzeros=14, method=method)
    assert few.unsolved == 4


def test_codes_add() -> None:
    """The sum of two codes decodes to the sum of the tensors; codes of other seeds do not add."""
    first, second = sparse_weights(512, 10, seed=1), sparse_weights(512, 10, seed=2)
    codes = [encode_sparse(w, rows=100, block=512, seed=3) for w in (first, second)]
    total = decode_sparse(codes[0] + codes[1], nonzeros=25)
    assert total.unsolved == 0
    np.testing.assert_allclose(total.weights, first + second, atol=1e-4)
    with pytest.raises(UserError, match="do not add"):
        codes[0] + encode_sparse(second, rows=100, block=512, seed=4)


def test_projections_cost_more_than_entropy_coding() -> None:
    """m/k values of 16 bits against 16 bits and a position: the bound is lower at every density."""
    for density in (0.01, 0.05, 0.1, 0.2):
        nonzeros = round(4096 * density)
        assert rows_for(nonzeros, 4096, margin=1.0) * 16 > 1.5 * entropy_bound_bits(4096, nonzeros, value_bits=16)


def test_the_entropy_bound() -> None:
    """n bits for half of n positions; nothing for none; errors for more nonzeros than weights."""
    assert entropy_bound_bits(64, 32, value_bits=0) == pytest.approx(64)
    assert entropy_bound_bits(64, 0, value_bits=8) == 0
    assert entropy_bound_bits(64, 64, value_bits=8) == 512
    with pytest.raises(UserError):
        entropy_bound_bits(4, 5, value_bits=8)
    with pytest.raises(UserError, match="too many"):
        rows_for(200, 256)
    with pytest.raises(UserError, match="not finite"):
        encode_sparse(np.array([np.nan, 0.0]), rows=1, block=2, seed=0)
