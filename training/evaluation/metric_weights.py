"""The weights of the metrics: local files that one TOML file names, with their checksums. Nothing is downloaded."""

from __future__ import annotations

import hashlib
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ...lavi_core.registry import Registry
from .run_folder import sha256_of


class Unavailable(Exception):
    """A metric cannot be had as things are; the message says what would make it so."""


class Inapplicable(Unavailable):
    """The run has no picture that the metric is meant for."""


@dataclass(frozen=True)
class Role:
    """what: the published thing that plays it. layout: what the path is."""

    what: str
    layout: str


HUB_FOLDER = "its Hugging Face folder (config, preprocessor or tokenizer files, model.safetensors)"
ROLES: Registry[Role] = Registry(
    "role",
    {
        "clip-b32": Role("openai/clip-vit-base-patch32", HUB_FOLDER),
        "clip-l14": Role("openai/clip-vit-large-patch14", HUB_FOLDER),
        "aesthetic-v1": Role("sa_0_4_vit_l_14_linear.pth of LAION-AI/aesthetic-predictor", "the file"),
        "aesthetic-v2": Role("sac+logos+ava1-l14-linearMSE.pth of improved-aesthetic-predictor", "the file"),
        "inception": Role("weights-inception-2015-12-05-6726825d.pth of torch-fidelity", "the file"),
        "blip-vqa": Role("Salesforce/blip-vqa-base", HUB_FOLDER),
        "detector": Role("a DETR or OWL-ViT of transformers, such as facebook/detr-resnet-50", HUB_FOLDER),
        "spacy": Role("spaCy's en_core_web_sm", "the folder with its config.cfg"),
    },
)


@dataclass(frozen=True)
class Weights:
    """source: the TOML file, None where none was given. paths, sums: by role."""

    source: Path | None = None
    paths: Mapping[str, Path] = field(default_factory=dict)
    sums: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def read(cls, path: str | Path | None) -> Weights:
        """A table a role, as in ``[clip-b32]``, ``path = "..."`` (relative paths from the file's folder) and
        ``sha256 = "..."``. Raises ValueError for unknown roles and keys, and for a table without a checksum."""
        if path is None:
            return cls()
        path = Path(path)
        if not path.is_file():
            raise ValueError(f"there is no file of weights {path}")
        try:
            tables = tomllib.loads(path.read_text(encoding="utf-8"))
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise ValueError(f"{path} is not readable as TOML ({error})") from None
        for role, table in tables.items():
            ROLES[role]
            known = isinstance(table, dict) and set(table) <= {"path", "sha256"} and "path" in table
            if not known or not all(isinstance(value, str) for value in table.values()):
                raise ValueError(f"{path} [{role}] must hold path and sha256, both texts, not {table!r}")
        paths = {role: path.parent / table["path"] for role, table in tables.items()}
        return cls(path, paths, {role: table.get("sha256", "") for role, table in tables.items()})

    def has(self, role: str) -> bool:
        return role in self.paths and self.paths[role].exists()

    def get(self, role: str) -> Path:
        """The path that plays ``role``, its checksum right. Raises Unavailable where it is not there, ValueError where
        it is another thing than the file says."""
        if not self.has(role):
            row = ROLES[role]
            place = (
                f"put {row.layout} at {self.paths[role]}" if role in self.paths else f"name {row.layout} as [{role}]"
            )
            where = "" if role in self.paths else f" in {self.source or 'a TOML file and give it with --weights'}"
            raise Unavailable(f"{role} ({row.what}) is missing: {place}{where}")
        found, wanted = checksum(self.paths[role]), self.sums[role]
        if found != wanted:
            stated = f"{self.source} says {wanted}" if wanted else f"{self.source} gives none"
            raise ValueError(f"{self.paths[role]} ({role}) has sha256 {found}, {stated}: write down the one you trust")
        return self.paths[role]


def checksum(path: Path) -> str:
    """sha256 of a file; of a folder, that of the lines ``<sha256>  <path>`` of its files in the order of their paths:
    ``find -L . -type f -printf '%P\\n' | LC_ALL=C sort | xargs -d '\\n' sha256sum | sha256sum``."""
    if path.is_file():
        return sha256_of(path)
    files = sorted((file for file in path.rglob("*") if file.is_file()), key=lambda f: f.relative_to(path).as_posix())
    lines = "".join(f"{sha256_of(file)}  {file.relative_to(path).as_posix()}\n" for file in files)
    return hashlib.sha256(lines.encode()).hexdigest()
