"""A model by name, with weights, and with the preparation that it was trained for."""

import difflib
import importlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from forethought.errors import ModelError
from forethought.loading import built, library, load_model, result_of, said, transform_of, unknown_model

Prepare = Callable[[Any], Tensor]


@dataclass(frozen=True)
class Ready:
    """A model that can be run on files.

    Attributes:
        name: In full, with its source.
        model: In evaluation mode.
        weights: Where they come from, in words.
        prepare: From a picture, or samples of sound, to the model's input; None where nothing says.
        prepared: The same in words.
        kind: "pictures" or "sounds", where the model says; else None.
        rate: Samples of sound a second that it expects; None where nothing says.
    """

    name: str
    model: nn.Module
    weights: str
    prepare: Prepare | None
    prepared: str
    kind: str | None = None
    rate: int | None = None


def make_ready(name: str, weights: str = "default", transform: str | None = None, download: bool = False) -> Ready:
    """Build a model with its weights.

    Args:
        name: NAME, torchvision:NAME, timm:NAME, transformers:NAME or folder, package.module:function or
            file.py:function. A NAME alone is torchvision's, or else timm's.
        weights: "default", "random", the name of others that torchvision has, or a file of a state dict. A function
            gives a model with its own: then "default" leaves them.
        transform: The preparation, where it is not to be the model's own: the name of another model of a library, or a
            function that returns it.
        download: Whether weights may be fetched.

    Raises:
        ModelError: there is no such model, it has no such weights, or they are not on this machine.
        MissingExtraError: a library is not installed.
    """
    name = full_name(name)
    source, _, rest = name.partition(":")
    file = weights if Path(weights).suffix in (".safetensors", ".pt", ".pth", ".bin") else None
    wanted = "random" if file else weights
    if source == "torchvision":
        ready = _torchvision(name, rest, wanted, download)
    elif source == "timm":
        ready = _timm(name, rest, wanted, download)
    elif source == "transformers":
        ready = _transformers(name, rest, wanted, download)
    else:
        if wanted not in ("default", "random"):
            raise ModelError(
                f"Cannot give '{name}' the weights '{weights}': expected a file, or no --weights, as a function gives "
                "a model with its own. --weights model.safetensors"
            )
        ready = Ready(name, load_model(name).eval(), "weights as the function gives them", None, "")
    if file is not None:
        _load_into(ready.model, file)
        ready = _but(ready, weights=f"weights from {file}")
    if transform is not None:
        prepare = _asked(transform)
        ready = _but(ready, prepare=prepare, prepared=words(prepare))
    return ready


def full_name(name: str) -> str:
    """Say which library a bare name is of.

    Raises:
        ModelError: none knows it; the message says what is close.
    """
    if ":" in name:
        return name
    known: list[str] = []
    for source in ("torchvision", "timm"):
        if importlib.util.find_spec(source) is None:
            continue
        names = (
            library("torchvision").models.list_models() if source == "torchvision" else library("timm").list_models()
        )
        if name in names or (source == "timm" and name.split(".")[0] in names):
            return f"{source}:{name}"
        known += [f"{source}:{one}" for one in names]
    if not known:
        library("torchvision")  # says what to install
    bare = {one.split(":")[1]: one for one in reversed(known)}
    close = [bare[one] for one in difflib.get_close_matches(name.lower(), bare, n=3, cutoff=0.5)]
    fix = f"Did you mean {', '.join(close)}?" if close else "A model of your own: --model file.py:function"
    raise ModelError(
        f"Cannot load '{name}': expected a model that torchvision or timm knows, got none of this name. {fix}"
    )


def is_function(name: str) -> bool:
    """Say whether a full name is that of a function, and not of a model of a library."""
    return name.partition(":")[0] not in ("torchvision", "timm", "transformers")


def words(prepare: Any) -> str:
    """Describe a preparation in one line, as it describes itself."""
    return " ".join(repr(prepare).replace("InterpolationMode.", "").split())


def _but(ready: Ready, **changes: Any) -> Ready:
    return Ready(**{**vars(ready), **changes})


def _asked(transform: str) -> Prepare:
    source = transform.partition(":")[0] if ":" in transform else ""
    if source in ("torchvision", "timm") or not source:
        found = transform_of(full_name(transform))
        assert found is not None
        return found
    made = result_of(transform, is_data=True)
    if not callable(made):
        raise ModelError(
            f"Cannot prepare pictures by '{transform}': expected a function that returns the transform, got "
            f"{type(made).__name__}. def transform(): return torchvision.transforms.ToTensor()"
        )
    prepare: Prepare = made
    return prepare


def _torchvision(name: str, rest: str, weights: str, download: bool) -> Ready:
    models = library("torchvision").models
    if rest not in models.list_models():
        raise unknown_model("torchvision", rest, models.list_models())
    if weights == "random":
        return Ready(name, load_model(name), _random(), transform_of(name), words(transform_of(name)), "pictures")
    known = models.get_model_weights(rest)
    if weights != "default" and weights not in known.__members__:
        raise ModelError(
            f"Cannot give '{name}' the weights '{weights}': expected default, random, a file, or one of "
            f"{', '.join(known.__members__)}. --weights {next(iter(known.__members__))}"
        )
    chosen = known.DEFAULT if weights == "default" else known[weights]
    file = Path(torch.hub.get_dir()) / "checkpoints" / os.path.basename(chosen.url)
    if not file.is_file():
        if not download:
            raise _absent(name, str(file))
        built(f"{name} (fetching {chosen.url})", lambda: torch.hub.load_state_dict_from_url(
            chosen.url, progress=True, check_hash=True, weights_only=True
        ))  # fmt: skip
    _checked(file)  # torchvision reads it again, and would run what a pickle holds
    model = built(name, lambda: models.get_model(rest, weights=chosen)).eval()
    prepare = chosen.transforms()
    return Ready(name, model, f"trained weights {chosen}", prepare, words(prepare), "pictures")


def _timm(name: str, rest: str, weights: str, download: bool) -> Ready:
    timm = library("timm")
    prepare = transform_of(name)
    if weights == "random":
        return Ready(name, load_model(name), _random(), prepare, words(prepare), "pictures")
    if weights != "default":
        raise ModelError(
            f"Cannot give '{name}' the weights '{weights}': expected default, random or a file. Other weights have "
            f"names of their own: timm:{rest.split('.')[0]}.TAG"
        )
    config = timm.get_pretrained_cfg(rest, allow_unregistered=True)
    if config is None or not (config.hf_hub_id or config.url):
        raise ModelError(f"Cannot load '{name}': expected trained weights, got a model without any. --weights random")
    hub = importlib.import_module("huggingface_hub")
    where = None
    if config.hf_hub_id:
        repository = config.hf_hub_id if config.hf_hub_id != "timm/" else f"timm/{config.architecture}.{config.tag}"
        found = hub.try_to_load_from_cache(repository, "model.safetensors")
        where = found if isinstance(found, str) else None
        if where is None and download:
            where = built(
                f"{name} (fetching {repository})", lambda: hub.hf_hub_download(repository, "model.safetensors")
            )
    if where is None:
        raise _absent(name, f"model.safetensors of '{config.hf_hub_id or config.url}'")
    overlay = {"file": where}
    model = built(name, lambda: timm.create_model(rest, pretrained=True, pretrained_cfg_overlay=overlay)).eval()
    return Ready(name, model, f"trained weights of {config.hf_hub_id}", prepare, words(prepare), "pictures")


def _transformers(name: str, rest: str, weights: str, download: bool) -> Ready:
    """Build a classifier of Hugging Face's; the layers that its checkpoint does not have are left to be trained."""
    auto = library("transformers")
    options = {"local_files_only": not download}

    def fetched(kind: Any, **more: Any) -> Any:
        try:
            return kind.from_pretrained(rest, **options, **more)
        except (OSError, ValueError) as err:
            if not download and not Path(rest).is_dir():
                raise _absent(name, f"a folder, or a cached model '{rest}'") from err
            raise ModelError(
                f"Cannot load '{name}': expected a whole model of Hugging Face's in it, got {said(err)}. Save one with "
                "model.save_pretrained and processor.save_pretrained"
            ) from err

    config = fetched(auto.AutoConfig)
    is_sound = type(config) in auto.AutoModelForAudioClassification._model_mapping.keys()  # noqa: SIM118
    kind = auto.AutoModelForAudioClassification if is_sound else auto.AutoModelForImageClassification
    processor = fetched(auto.AutoFeatureExtractor if is_sound else auto.AutoImageProcessor)
    if weights == "random":
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = built(name, lambda: kind.from_config(config)).eval()
        told = _random()
    elif weights == "default":
        model, report = fetched(kind, output_loading_info=True, use_safetensors=True)
        missing = set(report["missing_keys"])
        if missing:
            for key, parameter in model.named_parameters():
                parameter.requires_grad_(key in missing)
        told = f"trained weights of {rest}"
        told += f", which lack {len(missing)} tensors: these are left to be trained" if missing else ""
        model = model.eval()
    else:
        raise ModelError(f"Cannot give '{name}' the weights '{weights}': expected default, random or a file.")
    rate = getattr(processor, "sampling_rate", None) if is_sound else None
    prepare = Processed(processor, "sounds" if is_sound else "pictures", rate)
    about = f"{type(processor).__name__} {processor.to_json_string()}"
    return Ready(name, model, told, prepare, " ".join(about.split()), prepare.kind, rate)


@dataclass(frozen=True)
class Processed:
    """Applies a processor of Hugging Face's to one sample."""

    processor: Any
    kind: str
    rate: int | None

    def __call__(self, sample: Any) -> Tensor:
        options = {"sampling_rate": self.rate} if self.kind == "sounds" else {}
        made = self.processor(sample, return_tensors="pt", **options)
        first: Tensor = made[self.processor.model_input_names[0]][0]
        return first


def _random() -> str:
    return "random weights (seed 0): features mean little until there are trained ones"


def _absent(name: str, file: str) -> ModelError:
    return ModelError(
        f"Cannot load the trained weights of '{name}': expected {file} on this machine, got none, and nothing is "
        "fetched unless you say so. Add --download, or --weights FILE, or --weights random to try things out"
    )


def _checked(file: Path | str) -> dict[str, Any]:
    """Read a file of weights without running anything that it holds."""
    try:
        if Path(file).suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(file)
        found = torch.load(file, map_location="cpu", weights_only=True)
    except FileNotFoundError as err:
        raise ModelError(f"Cannot load weights: expected a file, got no '{file}'. Check the path") from err
    except Exception as err:
        raise ModelError(
            f"Cannot load weights from '{file}': expected tensors by name, got {said(err)}. Save them with "
            "safetensors.torch.save_file(model.state_dict(), 'model.safetensors')"
        ) from err
    for key in ("state_dict", "model"):
        if isinstance(found, dict) and isinstance(found.get(key), dict):
            found = found[key]
    if not isinstance(found, dict) or not all(isinstance(value, Tensor) for value in found.values()):
        raise ModelError(f"Cannot load weights from '{file}': expected tensors by name, got {type(found).__name__}.")
    return found


def _load_into(model: nn.Module, file: str) -> None:
    state = _checked(file)
    try:
        model.load_state_dict(state)
    except RuntimeError as err:
        words_of = " ".join(str(err).split())
        raise ModelError(
            f"Cannot give {type(model).__name__} the weights in '{file}': expected a tensor for each of its own, got "
            f"{words_of[:300]}. Name a function that builds the model they are of: --model file.py:function"
        ) from err
