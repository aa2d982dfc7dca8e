"""Checkpoints as people have them: wrapped inside their names, in parts, with other channels, dead, by other tools."""

import json
import pickle
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torchvision.models.feature_extraction import create_feature_extractor

from pretrain.common.errors import UserError
from tests.support.checkpoints import small_network, torchvision_network
from tests.support.layouts import detectron2_names, network, sequential_names, under
from transfer.convert.convert import convert
from transfer.convert.preprocessing import MSRA
from transfer.convert.program.report import describe
from transfer.convert.recognise import read_source
from transfer.convert.tensor_names import unwrapped
from transfer.convert.verify import load_backbone
from transfer.convert.weights_file import read_weights

QUERY, KEY = network(1, "resnet18"), network(2, "resnet18")
NAMES = [n for n in QUERY if not n.endswith("num_batches_tracked")]
WRAPPERS = (
    "_orig_mod", "_checkpoint_wrapped_module", "_fsdp_wrapped_module", "_forward_module", "_fpw_module", "module",
)  # fmt: skip


def _trunk(net: nn.Module) -> dict[str, torch.Tensor]:
    return {n: t for n, t in net.state_dict().items() if not n.startswith("fc.")}


def saved(path: Path, contents: Any) -> Path:
    torch.save(contents, path)
    return path


def refusal(path: Path, **options: Any) -> str:
    with pytest.raises(UserError) as error:
        read_source(path, **options)
    assert "\n" not in str(error.value)
    return str(error.value)


def wrapped(state: dict[str, torch.Tensor], wrapper: str, depth: int) -> dict[str, torch.Tensor]:
    """Insert a wrapper after `depth` components of every name that has as many modules."""
    found = {}
    for name, tensor in state.items():
        tokens = name.split(".")
        found[".".join([*tokens[:depth], wrapper, *tokens[depth:]] if depth < len(tokens) else tokens)] = (
            tensor
        )
    return found


@pytest.mark.parametrize("wrapper", WRAPPERS)
@pytest.mark.parametrize("depth", [0, 1, 2, 3])
def test_wrappers_at_any_depth_change_nothing(tmp_path: Path, wrapper: str, depth: int) -> None:
    plain = read_source(saved(tmp_path / "a.pth", QUERY))
    found = read_source(saved(tmp_path / "b.pth", {"state_dict": wrapped(QUERY, wrapper, depth)}))
    assert found.backbone.keys() == plain.backbone.keys()
    assert all(torch.equal(found.backbone[name], QUERY[name]) for name in NAMES)
    assert found.dropped == plain.dropped


@pytest.mark.parametrize("wrapper", WRAPPERS)
@pytest.mark.parametrize("depth", [0, 2])
def test_the_query_encoder_is_found_through_wrappers(tmp_path: Path, wrapper: str, depth: int) -> None:
    networks = [wrapped(state, wrapper, depth) for state in (KEY, QUERY)]
    state = under("module.encoder_k.", networks[0]) | under("module.encoder_q.", networks[1])
    source = read_source(saved(tmp_path / "a.pth", {"state_dict": state}))
    assert source.kind == "moco" and source.branch.startswith("module.encoder_q")
    assert all(torch.equal(source.backbone[name], QUERY[name]) for name in NAMES)
    branch = "encoder_k"
    assert torch.equal(read_source(tmp_path / "a.pth", branch=branch).backbone["bn1.bias"], KEY["bn1.bias"])


def test_wrappers_of_several_kinds_together(tmp_path: Path) -> None:
    state = {
        f"_forward_module.encoder_q._fsdp_wrapped_module.{name}": tensor
        for name, tensor in wrapped(wrapped(QUERY, "_checkpoint_wrapped_module", 2), "_orig_mod", 1).items()
    }
    source = read_source(saved(tmp_path / "a.pth", state))
    assert (source.kind, source.branch) == ("moco", "encoder_q")
    assert all(torch.equal(source.backbone[name], QUERY[name]) for name in NAMES)


def test_names_that_pytorch_itself_makes(tmp_path: Path) -> None:
    """Activation checkpointing of a block, DataParallel around a stage."""
    net = small_network("resnet18")
    expected = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    net.layer2[0] = checkpoint_wrapper(net.layer2[0])
    net.layer3 = nn.DataParallel(net.layer3)
    # FSDP's state dicts are gathered by these names; the wrapper's own state_dict() leaves its name out.
    state = {name: tensor.detach() for name, tensor in (*net.named_parameters(), *net.named_buffers())}
    assert "layer2.0._checkpoint_wrapped_module.conv1.weight" in state
    assert "layer3.module.0.conv1.weight" in state
    source = read_source(saved(tmp_path / "a.pth", state))
    assert len(source.backbone) == len(NAMES)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in source.backbone.items())


def test_sequential_names_are_unwrapped_too(tmp_path: Path) -> None:
    state = wrapped(sequential_names(QUERY), "module", 1)
    source = read_source(saved(tmp_path / "a.pth", under("backbone.", state)))
    assert all(torch.equal(source.backbone[name], QUERY[name]) for name in NAMES)


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_two_names_that_become_one_are_both_named(tmp_path: Path, wrapper: str) -> None:
    twice = {f"layer1.{wrapper}.0.conv1.weight": QUERY["layer1.0.conv1.weight"]}
    message = refusal(saved(tmp_path / "a.pth", QUERY | twice))
    assert "layer1.0.conv1.weight and layer1." + wrapper + ".0.conv1.weight" in message


def test_a_submodule_called_module_is_left_alone() -> None:
    names = [
        "head.module.weight", "projector.0.module.weight", "projector.0.weight", "module.encoder.module.proj.weight",
        "encoder_q.module.layer1.0.conv1.weight", "orig_mod.x", "my_orig_mod.x", "submodule.layer1.weight",
    ]  # fmt: skip
    tensors = {name: torch.zeros(1) for name in names}
    assert list(unwrapped(Path("a"), tensors)) == names


def test_every_way_to_name_a_checkpoint_in_parts_gives_the_same_file(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    tensors = {name: QUERY[name] for name in NAMES}
    whole = tmp_path / "whole.safetensors"
    save_file(tensors, whole)
    parts = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    late = [name for name in NAMES if name.startswith(("layer4", "conv1"))]
    save_file({n: t for n, t in tensors.items() if n not in late}, folder / parts[0])
    save_file({n: tensors[n] for n in late}, folder / parts[1])
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {n: parts[n in late] for n in NAMES}}))
    expected = read_source(whole).backbone
    digests = set()
    for path in (folder, index, folder / parts[0], folder / parts[1]):
        source = read_source(path)
        assert all(torch.equal(source.backbone[name], tensor) for name, tensor in expected.items())
        digests.add(source.digest)
    assert len(digests) == 1
    assert "safetensors in 2 parts" in describe(folder)[0]
    (folder / parts[1]).unlink()
    assert f"is part 1 of 2 of a checkpoint, but {parts[1]} is missing" in refusal(folder / parts[0])


@pytest.mark.parametrize(
    ("channels", "advice"),
    [(1, "repeat(1, 3, 1, 1)"), (2, "pre-train on 3"), (4, "[r, g, b]"), (13, "[r, g, b]")],
)
def test_other_numbers_of_input_channels_are_named(tmp_path: Path, channels: int, advice: str) -> None:
    state = QUERY | {"conv1.weight": torch.rand(8, channels, 7, 7)}
    message = refusal(saved(tmp_path / "a.pth", state))
    assert f"conv1.weight takes {channels} input channel" in message and "detection images have 3" in message
    assert advice in message
    moco = under("module.encoder_q.", state) | under("module.encoder_k.", state)
    assert "input channel" in refusal(saved(tmp_path / "b.pth", {"state_dict": moco}))


def test_a_grey_stem_converts_as_the_message_advises(tmp_path: Path) -> None:
    state = QUERY | {"conv1.weight": torch.rand(8, 1, 7, 7)}
    assert "(conv1.weight.repeat(1, 3, 1, 1) / 3)" in refusal(saved(tmp_path / "a.pth", state))
    grey = torch.rand(1, 1, 32, 32)
    wide = state["conv1.weight"].repeat(1, 3, 1, 1) / 3
    assert read_source(saved(tmp_path / "a.pth", state | {"conv1.weight": wide})).architecture.depth == 18
    pair = (
        nn.functional.conv2d(grey, state["conv1.weight"]),
        nn.functional.conv2d(grey.repeat(1, 3, 1, 1), wide),
    )
    assert torch.allclose(*pair, atol=1e-5)


def converted_refusal(path: Path, state: dict[str, torch.Tensor]) -> str:
    with pytest.raises(UserError) as error:
        convert(saved(path, state), path.with_suffix(".pkl"))
    assert "\n" not in str(error.value) and "differ" not in str(error.value)
    assert not path.with_suffix(".pkl").exists()
    return str(error.value)


NARROW = _trunk(small_network())


def test_tensors_that_are_not_finite_are_counted(tmp_path: Path) -> None:
    first, second = NARROW["layer1.0.conv1.weight"].clone(), NARROW["layer2.0.bn1.bias"].clone()
    first.view(-1)[:7], second[0] = torch.nan, torch.inf
    bad = {"layer1.0.conv1.weight": first, "layer2.0.bn1.bias": second}
    message = converted_refusal(tmp_path / "a.pth", NARROW | bad)
    assert "tensor layer1.0.conv1.weight holds NaN or infinity (7 of 64 numbers), as does 1 other" in message


def test_zeros_are_named(tmp_path: Path) -> None:
    zeros = {name: torch.zeros_like(tensor) for name, tensor in NARROW.items() if tensor.ndim == 4}
    assert "tensor conv1.weight holds only zeros, as do 53 of 53 conv" in converted_refusal(
        tmp_path / "a.pth", NARROW | zeros
    )
    one = NARROW | {"layer2.1.conv2.weight": zeros["layer2.1.conv2.weight"]}  # a residual branch may be zero
    convert(saved(tmp_path / "b.pth", one), tmp_path / "b.pkl")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"bn1.weight": 0.0, "bn1.bias": 0.0}, "dead: its features at res2 are zero"),
        ({"bn1.weight": 0.0, "bn1.bias": -1.0}, "dead: its features at res2 are zero"),
        (
            {"layer4.2.bn3.weight": 1e38, "layer4.2.bn3.running_var": 1e-30},
            "overflows with its running statistics",
        ),
    ],
)
def test_dead_features_are_named(tmp_path: Path, change: dict[str, float], words: str) -> None:
    state = dict(NARROW) | {name: torch.full_like(NARROW[name], value) for name, value in change.items()}
    if words.startswith("dead"):  # without shifts of its own, so that a silent stem silences the first stage
        state |= {n: torch.zeros_like(t) for n, t in NARROW.items() if n.endswith(("bias", "running_mean"))}
        state |= {n: t for n, t in ((n, torch.full_like(NARROW[n], v)) for n, v in change.items())}
    assert words in converted_refusal(tmp_path / "a.pth", state)


@pytest.mark.parametrize("silent", ["every norm", "the stem"])
def test_features_that_do_not_depend_on_the_image_are_named(tmp_path: Path, silent: str) -> None:
    """Behind a silent stem they still differ at the borders, because of the padding."""
    names = [n for n, t in NARROW.items() if t.ndim == 1 and n.endswith("weight")]
    names = names if silent == "every norm" else ["bn1.weight"]
    state = NARROW | {n: torch.zeros_like(NARROW[n]) for n in names}
    message = converted_refusal(tmp_path / "a.pth", state)
    assert "dead: its features at res2 are the same for every image" in message


def by_another_tool(path: Path, model: Any, **entries: Any) -> Path:
    path.write_bytes(pickle.dumps({"model": model, **entries} if entries.get("flat") is None else model))
    return path


@pytest.mark.parametrize("prefix", ["", "backbone.", "backbone.bottom_up."])
@pytest.mark.parametrize("entries", [{}, {"__author__": "x"}, {"flat": True}, {"matching_heuristics": False}])
@pytest.mark.parametrize("tensors", [False, True])
def test_detectron2_names_are_converted_with_and_without_their_labels(
    tmp_path: Path, prefix: str, entries: dict[str, Any], tensors: bool
) -> None:
    arrays = {f"{prefix}{name}": array for name, array in detectron2_names(QUERY).items()}
    model = {n: torch.from_numpy(a) for n, a in arrays.items()} if tensors else arrays
    source = read_source(by_another_tool(tmp_path / "a.pkl", model, **entries))
    assert source.kind == "detectron2"
    assert all(torch.equal(source.backbone[name], QUERY[name]) for name in NAMES)
    assert source.input_origin.startswith(
        "assumed, since the file does not state it (to change it: --channel-order"
    )


def test_a_pickle_with_torchvisions_names_must_be_converted_first(tmp_path: Path) -> None:
    path = by_another_tool(tmp_path / "a.pkl", {name: QUERY[name].numpy() for name in NAMES})
    with pytest.raises(UserError, match=r"a\.pkl: convert it first: python tools/convert_to_d2\.py"):
        read_weights(path)


def test_parameters_in_a_plain_pickle_share_their_storage(tmp_path: Path) -> None:
    state = dict(nn.Sequential(small_network("resnet18")).state_dict(keep_vars=True))
    path = tmp_path / "a.pkl"
    path.write_bytes(pickle.dumps({"model": state}))
    assert all(torch.equal(t, state[f"0.{n}"]) for n, t in read_source(path).backbone.items())


def test_merged_norms_need_a_word_and_compute_as_detectron2s_frozen_ones(tmp_path: Path) -> None:
    """The truth is torchvision's network whose batch norms have mean 0 and variance 1, up to BN's epsilon."""
    net = torchvision_network("resnet18").eval()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.zero_()
            module.running_var.fill_(1 - module.eps)
    arrays = {n: a for n, a in detectron2_names(_trunk(net)).items() if "running" not in n}
    path = by_another_tool(tmp_path / "a.pkl", arrays, __author__="x")
    assert "--merged-norm" in refusal(path)
    assert read_source(path, merged_norm=True).input == MSRA
    convert(path, tmp_path / "b.pkl", merged_norm=True, verify=False)
    backbone, _ = load_backbone(tmp_path / "b.pkl")
    batch = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        actual = backbone.eval()(batch)["res5"]
        expected = create_feature_extractor(net, {"layer4": "res5"})(batch)["res5"]
    assert numpy.allclose(actual, expected, atol=1e-4 * float(expected.abs().max()))
