"""FID's network against what torch-fidelity 0.4.0 computes with the same weights, and files that are none of its."""

from pathlib import Path

import pytest
import torch

from unified.evaluation.inception import WEIGHTS, Inception, feature_statistics, resize_as_tensorflow


def drawn_weights() -> dict[str, torch.Tensor]:
    """Weights that keep activations in range, drawn in the order of the names."""
    generator, weights = torch.Generator().manual_seed(0), {}
    for name, tensor in sorted(Inception().state_dict().items()):
        if "num_batches" in name:
            continue
        drawn = torch.randn(tensor.shape, generator=generator)
        if tensor.ndim > 1:
            weights[name] = drawn * (2 / tensor[0].numel()) ** 0.5
        else:
            weights[name] = drawn.abs() * 0.2 + 0.9 if name.endswith(("weight", "var")) else 0.1 * drawn
    return weights


@pytest.fixture(scope="module")
def weights_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As torch-fidelity and pytorch-fid store theirs, with a classifier nobody asks for here."""
    path = tmp_path_factory.mktemp("inception") / WEIGHTS[0]
    torch.save(drawn_weights() | {"fc.weight": torch.zeros(1008, 2048), "fc.bias": torch.zeros(1008)}, path)
    return path


def test_features_are_torch_fidelitys(weights_file: Path) -> None:
    images = (torch.arange(2 * 16 * 16 * 3) % 251).to(torch.uint8).view(2, 16, 16, 3)
    features = Inception.load(str(weights_file))(images)
    assert features.shape == (2, 2048)
    expected = torch.tensor([[2.22416043, 0.0, 0.18234001, 0.46913394], [2.19251680, 0.0, 0.18130259, 0.52180523]])
    torch.testing.assert_close(features[:, :4], expected, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(features.mean(dim=1), torch.tensor([0.65467072, 0.64893448]), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(features[:, -1], torch.tensor([1.46832204, 1.47739649]), atol=1e-4, rtol=1e-4)


def test_weights_are_found_in_the_cache(weights_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(ValueError, match="has neither weights-inception.* give --inception FILE"):
        Inception.load()
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / WEIGHTS[1]).symlink_to(weights_file)
    assert not Inception.load().training


def test_other_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    with pytest.raises(ValueError, match="are not a file"):
        Inception.load(str(path))
    path.write_text("no weights")
    with pytest.raises(ValueError, match="holds no weights"):
        Inception.load(str(path))
    torch.save({"Conv2d_1a_3x3.conv.weight": torch.zeros(1)}, path)
    with pytest.raises(ValueError, match="tensors are missing or of another shape"):
        Inception.load(str(path))


def test_tensorflow_resizes_from_the_corner() -> None:
    ramp = torch.arange(4.0).view(1, 1, 1, 4).expand(1, 3, 4, 4)
    doubled = resize_as_tensorflow(ramp, 8)[0, 0, 0]
    assert doubled.tolist() == [0, 0.5, 1, 1.5, 2, 2.5, 3, 3]
    assert torch.equal(resize_as_tensorflow(ramp, 4), ramp)


def test_statistics_need_two_pictures() -> None:
    features = torch.tensor([[0.0, 1.0], [2.0, 3.0]])
    mean, covariance = feature_statistics(features)
    assert mean.tolist() == [1, 2] and covariance.tolist() == [[2, 2], [2, 2]] and mean.dtype == torch.float64
    with pytest.raises(ValueError, match="1 pictures have no covariance"):
        feature_statistics(features[:1])
