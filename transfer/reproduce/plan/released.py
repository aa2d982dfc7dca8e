"""The released networks, read from `released.yaml`: where their files are, and what was published of them."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml

from pretrain.common.configs import nearest
from pretrain.common.errors import UserError, label
from pretrain.common.files import file_digest

FILE = Path(__file__).with_name("released.yaml")
ALL = "all-released"  # names every network
COMPARABLE = "P"  # the protocol of our configs
# detectron2's keys of a network's shape, in MODEL.RESNETS, and their values in a ResNet-50
RESNET50 = {
    "DEPTH": 50, "NUM_GROUPS": 1, "WIDTH_PER_GROUP": 64, "STEM_OUT_CHANNELS": 64, "RES2_OUT_CHANNELS": 256,
}  # fmt: skip
# The same in MODEL.VIT, and their values in a ViT-B
VIT_B = {"PATCH_SIZE": 16, "WIDTH": 768, "DEPTH": 12, "HEADS": 12, "MLP_RATIO": 4.0}
FLAGS = ("--heads", "--branch", "--resample-patch")
_DIGEST = re.compile(r"(md5|sha256) [0-9a-f]{6,64}")


@dataclass(frozen=True)
class Quote:
    """A published result of fine-tuning.

    Attributes:
        config: this project's config for the same detector and schedule.
        protocol: P if the number may be shown next to ours, else a key of `Registry.protocols` that says why not.
        of: metric -> number.
        source: where it was read.
        trials: number of runs that it is the mean of; 1 if the source does not say.
    """

    config: str
    protocol: str
    of: dict[str, float]
    source: str
    trials: int = 1


@dataclass(frozen=True)
class Released:
    """A released checkpoint.

    Attributes:
        name: its key in the file.
        url: address of the file, or of its page on Google Drive; empty if `missing` says why there is none.
        digest: "md5 b251726a" or "sha256 ...": the first characters, as published; may be empty.
        kind: the layout that the converter recognises it as.
        source: where the address, the digest and the licence were read.
        epochs: of pre-training; None if not stated.
        network: shape, as `RESNET50` or `VIT_B`; for a ViT that of the converted network.
        flags: of tools/convert_to_d2.py, which the file needs: FLAG, VALUE, ..., of `FLAGS`.
        numbers: published results.
    """

    name: str
    url: str
    digest: str
    licence: str
    note: str = ""
    title: str = ""
    kind: str = ""
    source: str = ""
    missing: str = ""
    epochs: int | None = None
    network: dict[str, float] = field(default_factory=lambda: dict(RESNET50))
    flags: tuple[str, ...] = ()
    numbers: tuple[Quote, ...] = ()

    def without_address(self, words: str) -> str:
        """Return why the network cannot be downloaded, and what to do; empty if it can. `words` asked for it."""
        if self.url:
            return ""
        return f"{words}: {self.missing}; download it by hand and give --init {self.name}=FILE"

    def refuse_other(self, path: Path) -> None:
        """Raise `UserError` unless the user's file is the released one, as far as its digest is known."""
        kind, _, wanted = self.digest.partition(" ")
        if wanted and not (found := file_digest(path, kind)).startswith(wanted):
            raise UserError(
                f"--init {self.name}={path}: this is not the released file: its {kind} is {found}, but should begin "
                f"with {wanted}; choose another name for a checkpoint of your own"
            )

    @property
    def is_vit(self) -> bool:
        """Whether it is a ViT, and not a ResNet."""
        return "WIDTH" in self.network

    @property
    def shape(self) -> str:
        """The network's shape in words."""
        if self.is_vit:
            return vit_shape(self.network)
        # Imported only here: they load PyTorch, which a list of the networks does not need.
        from pretrain.model.encoders import ARCHITECTURES
        from transfer.convert.architecture import described, recorded

        record = recorded(ARCHITECTURES[f"resnet{self.network['DEPTH']}"]) | {
            "groups": self.network["NUM_GROUPS"],
            "width_per_group": self.network["WIDTH_PER_GROUP"],
            "stem_channels": self.network["STEM_OUT_CHANNELS"],
            "out_channels": self.network["RES2_OUT_CHANNELS"],
        }
        return described(record | {"width": record["out_channels"] / (256 if record["bottleneck"] else 64)})


def vit_shape(network: Mapping[str, float]) -> str:
    """Return a ViT's shape in words, from values of the keys of `VIT_B`."""
    heads = network["HEADS"]
    return (
        f"ViT, width {network['WIDTH']}, {network['DEPTH']} blocks of {heads} head{'s' if heads > 1 else ''}, MLPs of "
        f"{network['WIDTH'] * network['MLP_RATIO']:g}"
    )


@dataclass(frozen=True)
class Registry:
    """Everything in `released.yaml`.

    Attributes:
        networks: name -> network.
        aliases: further name -> name.
        protocols: the letter of a protocol -> what it is.
    """

    networks: dict[str, Released] = field(default_factory=dict)
    aliases: dict[str, str] = field(default_factory=dict)
    protocols: dict[str, str] = field(default_factory=dict)

    @property
    def names(self) -> list[str]:
        """All names, aliases first."""
        return [*self.aliases, *self.networks]

    def get(self, name: str) -> Released | None:
        """Return a network by its name or an alias; None if there is none."""
        return self.networks.get(self.aliases.get(name, name))


def read(path: Path = FILE) -> Registry:
    """Read and check the networks that come with this project.

    Raises `UserError` naming the entry for an unknown or missing key, protocol or alias, and for a wrong value.
    """
    tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    _check_keys(f"{path}", tree, known=("aliases", "protocols", "networks"))
    found = {}
    for name, entry in tree["networks"].items():
        where = f"{path}: {label(name)}"
        _check_keys(where, entry, known=_names(Released, "name"))
        quotes = tuple(_quote(where, each, tree["protocols"]) for each in entry.get("numbers", ()))
        changed = entry.get("network", {})
        network = (VIT_B if "WIDTH" in changed else RESNET50) | changed
        filled = {"url": "", "digest": "", **entry, "network": network, "numbers": quotes}
        _check(where, filled)
        filled["flags"] = _flags(where, entry.get("flags", []))
        found[name] = Released(name, **filled)
    for alias, name in tree["aliases"].items():
        if name not in found or alias in found:
            raise UserError(
                f"{path}: aliases: {label(alias)}: {label(name)} must be another network of this file"
            )
    return Registry(found, dict(tree["aliases"]), dict(tree["protocols"]))


def _names(kind: type, *left_out: str) -> tuple[str, ...]:
    return tuple(each.name for each in fields(kind) if each.name not in left_out)


def _check_keys(where: str, entry: Any, *, known: tuple[str, ...]) -> None:
    if not isinstance(entry, dict):
        raise UserError(f"{where}: {label(entry)} is not a mapping")
    for key in entry:
        if key not in known:
            raise UserError(f"{where}: unknown key {label(key)}{nearest(str(key), known)}")


def _check(where: str, entry: Mapping[str, Any]) -> None:
    """Check the values of one network."""
    for key in ("title", "kind", "licence", "source"):
        if not isinstance(entry.get(key), str) or not entry[key]:
            raise UserError(f"{where}: {key} is missing")
    if bool(entry["url"]) == bool(entry.get("missing")):
        raise UserError(f"{where}: give either url or missing, which says why there is none")
    if entry["url"] and not entry["url"].startswith(("https://", "pypi:")):
        raise UserError(f"{where}: url {label(entry['url'])} does not begin with https://")
    if entry["digest"] and not _DIGEST.fullmatch(entry["digest"]):
        raise UserError(
            f"{where}: digest {label(entry['digest'])}: write md5 or sha256, and at least 6 hex digits"
        )
    _check_keys(
        f"{where}: network", entry["network"], known=tuple(VIT_B if "WIDTH" in entry["network"] else RESNET50)
    )
    protocols = [(quote.config, quote.protocol) for quote in entry["numbers"]]
    if len(set(protocols)) < len(protocols):
        raise UserError(f"{where}: numbers: give one result for each config and protocol")


def _flags(where: str, words: Any) -> tuple[str, ...]:
    texts = isinstance(words, list) and all(isinstance(word, str) for word in words)
    if not texts or len(words) % 2 or not set(words[::2]) <= set(FLAGS):
        raise UserError(
            f"{where}: flags {label(words)}: write FLAG, VALUE, ... as strings; flags are {', '.join(FLAGS)}"
        )
    return tuple(words)


def _quote(where: str, entry: Any, protocols: Mapping[str, str]) -> Quote:
    _check_keys(f"{where}: numbers", entry, known=_names(Quote))
    for key in ("config", "protocol", "of", "source"):
        if not entry.get(key):
            raise UserError(f"{where}: numbers: {key} is missing")
    if entry["protocol"] not in protocols:
        raise UserError(
            f"{where}: numbers: protocol {label(entry['protocol'])} is not explained in `protocols`"
        )
    return Quote(**entry)
