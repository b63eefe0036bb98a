"""Write what has been trained into the package: float16 safetensors and a standard diffusers folder."""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from fromfew.io.files import replacing
from fromfew.pretrain import stages

WEIGHTS = Path(__file__).parent.parent / "weights"
DEFAULTS = {"guidance": 3.0, "steps": 20, "sampler": "dpm++", "size": 128, "templates": "plain"}
"""How the embedded base is used unless somebody says otherwise."""


def ship(folder: Path) -> None:
    """Write every finished stage of ``folder`` into the package's weights."""
    ready = [name for name in stages.STAGES if (folder / name / "state.safetensors").exists()]
    if "denoiser" in ready:
        base, fresh = WEIGHTS / "base", WEIGHTS / "base.new"
        shutil.rmtree(fresh, ignore_errors=True)
        stages.assemble(folder, fresh)
        (fresh / "fromfew.json").write_text(json.dumps(DEFAULTS, indent=2) + "\n")
        shutil.rmtree(base, ignore_errors=True)
        fresh.rename(base)
    if "eye" in ready:
        stages.write_eye(folder, WEIGHTS / "eye.safetensors")
    for name in ("judge", "pair", "face"):
        if name in ready:
            stage: Any = stages.find_stage(name, folder, "cpu")
            model = stages.finished(stage, folder)
            _write(model["face"] if name == "face" else model, WEIGHTS / "evaluators", name, stage.config())
    sys.stderr.write(f"shipped {', '.join(ready)} to {WEIGHTS}\n")


def _write(model: Any, folder: Path, name: str, config: dict[str, object]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    tensors: dict[str, Tensor] = {k: v.detach().half().contiguous().clone() for k, v in model.state_dict().items()}
    with replacing(folder / f"{name}.safetensors") as new:
        save_file(tensors, new, metadata={"config": json.dumps(config)})
