"""The registry of released networks: its facts, its checks, and the page of the docs that lists it."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from torchvision.models import ResNet50_Weights

from pretrain.common.configs import find_config
from pretrain.common.errors import UserError
from transfer.config.load import read_config
from transfer.convert.layouts import LAYOUTS
from transfer.convert.vit.kinds import KINDS
from transfer.reproduce.jobs.fetch import direct
from transfer.reproduce.plan import released, tables

REGISTRY = released.read()
PAGE = Path(__file__).resolve().parents[4] / "docs/released.md"
VIT, VIT_T = "transfer/coco_ViTB_SFP_100ep.yaml", "transfer/coco_ViTT_SFP_640.yaml"
VOC, FPN, C4 = "transfer/voc_R50_C4_24k.yaml", "transfer/coco_R50_FPN.yaml", "transfer/coco_R50_C4_1x.yaml"

# By hand from the projects' own pages: network, config, protocol -> box AP, and mask AP on COCO.
PUBLISHED = {
    ("moco_v1_200ep", VOC, "P"): (55.9,), ("moco_v2_200ep", VOC, "P"): (57.0,), ("moco_v2_800ep", VOC, "P"): (57.4,),
    ("moco_v2_200ep", C4, "P"): (38.9, 34.1), ("moco_v2_800ep", C4, "P"): (39.3, 34.3),
    ("moco_v2_200ep", FPN, "H"): (39.8, 36.1), ("moco_v2_800ep", FPN, "H"): (40.4, 36.4),
    ("densecl_200ep", VOC, "P"): (58.7,), ("pixpro_100ep", VOC, "P"): (58.8,), ("pixpro_400ep", VOC, "P"): (60.2,),
    ("pixpro_100ep", C4, "P"): (40.0, 34.8), ("pixpro_400ep", C4, "P"): (40.5, 35.3),
    ("pixpro_100ep", FPN, "H"): (40.8, 36.8), ("insloc_C4_200ep", C4, "P"): (39.5, 34.5),
    ("insloc_C4_400ep", C4, "P"): (39.8, 34.7), ("insloc_FPN_200ep", FPN, "F"): (41.4, 37.1),
    ("insloc_FPN_400ep", FPN, "F"): (42.0, 37.6), ("soco_C4_100ep", C4, "P"): (40.4, 34.9),
    ("soco_C4_400ep", C4, "P"): (40.9, 35.3), ("soco_FPN_100ep", FPN, "F"): (42.3, 37.6),
    ("soco_FPN_400ep", FPN, "F"): (43.0, 38.2), ("soco_FPN_star_400ep", FPN, "F"): (43.2, 38.4),
    ("twist_850ep", VOC, "D"): (58.1,), ("twist_850ep", FPN, "H"): (41.9, 37.9),
    ("mmselfsup_byol_200ep", FPN, "H"): (40.9, 36.8), ("mmselfsup_swav_200ep", FPN, "H"): (40.2, 36.3),
    ("mmselfsup_simsiam_200ep", FPN, "H"): (38.8, 34.9), ("mmselfsup_simclr_200ep", FPN, "H"): (38.7, 34.9),
    ("mae_ViTB", VIT, "P"): (51.6, 45.9), ("maelite_moco_v3_ViTT", VIT_T, "P"): (39.7, 35.1),
    ("maelite_mae_ViTT", VIT_T, "P"): (39.9, 35.4), ("maelite_deit_ViTT", VIT_T, "P"): (40.4, 35.5),
}  # fmt: skip


def test_the_numbers_are_those_of_the_projects() -> None:
    known = {
        (name, quote.config, quote.protocol): tuple(
            quote.of[metric] for metric in ("bbox.AP", "segm.AP") if metric in quote.of
        )
        for name, network in REGISTRY.networks.items()
        for quote in network.numbers
    }
    assert {key: known.get(key) for key in PUBLISHED} == PUBLISHED
    without = (
        "dino_R50",
        "moco_v3_R50_300ep",
        "swav_800ep",
        "moco_v3_ViTB_300ep",
        "mae_ViTL",
        "deit_ViTB",
    )  # none are published for these very weights
    assert not any(REGISTRY.networks[name].numbers for name in without)


def test_comparable_numbers_agree_with_the_papers_tables() -> None:
    seen = 0
    for table in tables.read().tables.values():
        for row in (row for row in table.rows if len(table.columns) == 1 and not table.columns[0].overrides):
            network = row.init.file or row.init.released
            if not isinstance(network, tables.Released):
                continue
            for quote in network.numbers:
                if (quote.config, quote.protocol) == (table.columns[0].config, released.COMPARABLE):
                    assert quote.of == dict(zip(table.metrics, row.paper, strict=True))
                    seen += 1
    assert seen >= 6


def test_every_entry_is_complete() -> None:
    assert REGISTRY.get("imagenet") is REGISTRY.networks["msra_R50"] and REGISTRY.get("nothing") is None
    book = tables.read()
    for name, network in REGISTRY.networks.items():
        assert (
            network.kind in ({*KINDS, "unknown"} if network.is_vit else LAYOUTS)
            and network.source
            and network.licence
        ), name
        assert direct(network.url).startswith(("https://", "pypi:")) or network.missing, name
        assert "drive" not in network.url or direct(network.url) != network.url, name
        for quote in network.numbers:
            assert find_config(quote.config)
            columns = [c for table in book.tables.values() for c in table.columns if c.config == quote.config]
            assert any(set(quote.of) <= set(column.metrics) for column in columns), (name, quote)
            assert all(20 < number < 100 for number in quote.of.values())
    for weights, name in ((ResNet50_Weights.IMAGENET1K_V1, "v1"), (ResNet50_Weights.IMAGENET1K_V2, "v2")):
        network = REGISTRY.networks[f"torchvision_R50_{name}"]
        assert network.url == weights.url and network.digest.split()[1] in network.url


# By hand from each project's code (moco-v3: vits.py; dino, ibot: vision_transformer.py; mae: models_mae.py; deit:
# models.py; MAE-Lite: models_vit.py; dinov2: hub and models): width, blocks, heads.
VITS = {
    "moco_v3_ViTS_300ep": (384, 12, 12), "moco_v3_ViTB_300ep": (768, 12, 12), "dino_ViTS": (384, 12, 6),
    "dino_ViTB": (768, 12, 12), "ibot_ViTS": (384, 12, 6), "ibot_ViTB": (768, 12, 12), "mae_ViTB": (768, 12, 12),
    "mae_ViTL": (1024, 24, 16), "dinov2_ViTS": (384, 12, 6), "dinov2_ViTB": (768, 12, 12), "deit_ViTT": (192, 12, 3),
    "deit_ViTS": (384, 12, 6), "deit_ViTB": (768, 12, 12), "maelite_moco_v3_ViTT": (192, 12, 12),
    "maelite_mae_ViTT": (192, 12, 12), "maelite_deit_ViTT": (192, 12, 12),
}  # fmt: skip


def test_the_shapes_of_vits_are_those_of_the_projects() -> None:
    vits = {name: network for name, network in REGISTRY.networks.items() if network.is_vit}
    assert {
        name: tuple(each.network[key] for key in ("WIDTH", "DEPTH", "HEADS")) for name, each in vits.items()
    } == VITS
    assert all((each.network["PATCH_SIZE"], each.network["MLP_RATIO"]) == (16, 4.0) for each in vits.values())
    # DINOv2's patches have 14 pixels; MAE-Lite's heads are not those of ViT-T elsewhere.
    assert {name.split("_")[0] for name, each in vits.items() if each.flags} == {"dinov2", "maelite"}
    assert REGISTRY.networks["dino_ViTS"].shape == "ViT, width 384, 12 blocks of 6 heads, MLPs of 1536"
    defaults = read_config(VIT, ()).MODEL.VIT
    assert {key: defaults[key] for key in released.VIT_B} == released.VIT_B


GOOD = {"title": "a", "url": "https://a/b", "kind": "moco", "licence": "MIT", "source": "README"}
QUOTE = {"config": FPN, "protocol": "P", "of": {"bbox.AP": 40.0}, "source": "README"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"licens": "MIT"}, "a: unknown key licens; did you mean licence?"),
        ({"licence": ""}, "a: licence is missing"),
        ({"url": "ftp://a"}, "does not begin with https://"),
        ({"url": ""}, "give either url or missing"),
        ({"digest": "md5 12"}, "at least 6 hex digits"),
        ({"network": {"WIDE": 2}}, "a: network: unknown key WIDE"),
        ({"network": {"WIDTH": 2, "NUM_GROUPS": 1}}, "a: network: unknown key NUM_GROUPS"),
        (
            {"flags": ["--head", "2"]},
            "a: flags ['--head', '2']: write FLAG, VALUE, ... as strings; flags are --heads",
        ),
        ({"flags": ["--heads", 2]}, "write FLAG, VALUE, ... as strings"),
        ({"numbers": [QUOTE, QUOTE]}, "one result for each config and protocol"),
        ({"numbers": [QUOTE | {"protocol": "Q"}]}, "protocol Q is not explained"),
        ({"numbers": [QUOTE | {"AP": 4}]}, "a: numbers: unknown key AP"),
        ({"numbers": [{"config": FPN}]}, "a: numbers: protocol is missing"),
    ],
)
def test_a_wrong_entry_is_named(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    tree = {"aliases": {"b": "a"}, "protocols": {"P": "ours"}, "networks": {"a": GOOD | {"numbers": [QUOTE]}}}
    file = tmp_path / "released.yaml"
    file.write_text(yaml.safe_dump(tree))
    assert released.read(file).get("b").url == "https://a/b"  # type: ignore[union-attr]
    tree["networks"]["a"] |= change  # type: ignore[operator]
    file.write_text(yaml.safe_dump(tree))
    with pytest.raises(UserError) as error:
        released.read(file)
    assert message in str(error.value) and "\n" not in str(error.value)
    file.write_text(yaml.safe_dump(tree | {"networks": {"a": GOOD}, "aliases": {"b": "c"}}))
    with pytest.raises(UserError, match="aliases: b: c must be another network"):
        released.read(file)


def listed() -> list[str]:
    """The lines of the page's tables, from the file: ResNets, then ViTs."""
    lines = []
    for name, network in sorted(REGISTRY.networks.items(), key=lambda each: each[1].is_vit):
        cells = [network.shape.removeprefix("ViT, ").split(", MLPs")[0]] if network.is_vit else []
        for config in ((VIT, VIT_T),) if network.is_vit else ((VOC,), (C4,), (FPN,)):
            quotes = [quote for quote in network.numbers if quote.config in config]
            metrics = ("bbox.AP",) if VOC in config else ("bbox.AP", "segm.AP")
            cells.append("; ".join(
                f"{quote.protocol} {' / '.join(str(quote.of[metric]) for metric in metrics)}" for quote in quotes
            ) or "-")  # fmt: skip
        how = "by name" if network.url else f"`{name}=FILE`"
        digest = network.digest.split()[0] if network.digest else "-"
        lines.append(
            f"| `{name}` | {network.title} | `{network.kind}` | {network.licence} | {how} | {digest} | "
            f"{' | '.join(cells)} |"
        )
    return lines


def test_the_page_lists_every_network() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert [line for line in text.splitlines() if line.startswith("| `")] == listed()
    for letter, meaning in REGISTRY.protocols.items():
        assert f"- **{letter}**: {meaning}" in text
