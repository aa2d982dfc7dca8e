"""Package metadata. detectron2 is not on PyPI, so tools/install_detectron2.py installs it."""

from pathlib import Path

from setuptools import setup

# Only lower bounds, so that an environment that already has torch and detectron2 keeps them. The versions that
# were tested together are in constraints.txt.
REQUIREMENTS = [
    "torch>=2.6",  # the first version whose weights_only loading is safe
    "torchvision>=0.21",
    "numpy>=1.23",
    "Pillow>=9.1",
    "fvcore>=0.1.5",
    "pycocotools>=2.0.2",
    "opencv-python>=4.5",
    "matplotlib>=3.5",
    "Jinja2>=3.0",
    "tqdm>=4.60",
    "PyYAML>=5.4",
    "safetensors>=0.4",
    "protobuf>=4.22",  # the first with message_factory.GetMessageClass
    "scipy>=1.9",
]
# What detectron2 imports. Its own list cannot be used because it pins tools such as black.
DETECTRON2_REQUIREMENTS = [
    "iopath>=0.1.7",
    "omegaconf>=2.1",
    "hydra-core>=1.1",
    "yacs>=0.1.8",
    "cloudpickle",
    "tabulate>=0.10",
    "termcolor>=1.1",
    "packaging",
    "tensorboard>=2.9",
]
# For evaluation on LVIS and Cityscapes, and for faster evaluation on COCO.
DATA_REQUIREMENTS = [
    "lvis>=0.5.3",
    "cityscapesscripts>=2.2",
    "faster-coco-eval>=1.6",
    "shapely>=2",
]
# Libraries that build real networks of other projects for `make test-libraries`.
LIBRARIES_REQUIREMENTS = ["timm>=1", "transformers>=4.40", "lightly>=1.5"]
# Photographs for the demo where Debian's packages are not available.
DEMO_REQUIREMENTS = ["scikit-image>=0.20", "scikit-learn>=1.2"]
# For the site of docs/ (`make docs`).
DOCS_REQUIREMENTS = ["mkdocs>=1.6,<2", "mkdocs-material>=9.5", "mkdocstrings[python]>=0.26"]

# Console commands: the name, and the module of transfer/programs/ that tools/X.py runs too.
COMMANDS = {
    "moco-benchmark": "benchmark",
    "moco-compare": "compare_inits",
    "moco-compare-runs": "compare_runs",
    "moco-convert": "convert_to_d2",
    "moco-demo": "demo",
    "moco-linear-eval": "linear_eval",
    "moco-predict": "predict",
    "moco-prepare-data": "prepare_data",
    "moco-pretrain": "pretrain",
    "moco-reproduce": "reproduce",
    "moco-train": "train_net",
    "moco-visualize": "visualize",
}

setup(
    name="moco-detection-transfer",
    version="0.1.0",
    description="MoCo pre-training, detectron2 weights, and Mask R-CNN transfer, end to end",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    keywords=[
        "self-supervised learning",
        "contrastive learning",
        "MoCo",
        "object detection",
        "transfer learning",
        "detectron2",
        "Mask R-CNN",
    ],
    classifiers=[
        "Development Status :: 4 - Beta",
        "Environment :: Console",
        "Intended Audience :: Science/Research",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3 :: Only",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Topic :: Scientific/Engineering :: Image Recognition",
    ],
    python_requires=">=3.10",
    packages=[
        "pretrain",
        "pretrain.configs",
        "pretrain.benchmark",
        "pretrain.common",
        "pretrain.data",
        "pretrain.model",
        "pretrain.tensor_files",
        "pretrain.train",
        "transfer",
        "transfer.benchmark",
        "transfer.config",
        "transfer.convert",
        "transfer.convert.program",
        "transfer.convert.vit",
        "transfer.data",
        "transfer.data.coco",
        "transfer.compare",
        "transfer.demo",
        "transfer.linear",
        "transfer.metrics",
        "transfer.models",
        "transfer.predict",
        "transfer.prepare",
        "transfer.prepare.demo",
        "transfer.prepare.sets",
        "transfer.programs",
        "transfer.report",
        "transfer.reproduce",
        "transfer.reproduce.jobs",
        "transfer.reproduce.page",
        "transfer.reproduce.plan",
        "transfer.reproduce.results",
        "transfer.train",
        "transfer.visualize",
    ],
    # configs/ is at the top of the repository and inside an installed package; pretrain/installed.py finds it.
    package_dir={"pretrain.configs": "configs"},
    package_data={
        "pretrain.configs": ["*/*.yaml"],
        "transfer.report": ["templates/*"],
        "transfer.prepare.demo": ["data/*.json"],
        "transfer.reproduce.plan": ["*.yaml"],
    },
    entry_points={
        "console_scripts": [
            *(f"{name} = transfer.programs.{module}:program" for name, module in COMMANDS.items()),
            "moco-install-detectron2 = transfer.install_detectron2:program",
        ]
    },
    install_requires=REQUIREMENTS + DETECTRON2_REQUIREMENTS,
    extras_require={
        "demo": DEMO_REQUIREMENTS,
        "data": DATA_REQUIREMENTS,
        "libraries": LIBRARIES_REQUIREMENTS,
        "slurm": ["submitit>=1.5"],
        "docs": DOCS_REQUIREMENTS,
        "dev": [
            "pytest>=7",
            "pytest-xdist>=3.7",
            "ruff>=0.5",
            "mypy>=1.8",
            "types-PyYAML",
            "submitit>=1.5",
            "webdataset>=0.2",  # tests: shards as other programs write and read them
            *DEMO_REQUIREMENTS,
            *DATA_REQUIREMENTS,
            *DOCS_REQUIREMENTS,
        ],
    },
)
