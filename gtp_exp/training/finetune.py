"""Fine-tune a loaded model on tokenised rows, going on from the last whole epoch after an interruption."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from gtp_exp.distributed import ALONE, Processes
from gtp_exp.model.loading import LoadedModel
from gtp_exp.model.packing import packing_obstacle
from gtp_exp.model.sharding import is_sharded
from gtp_exp.training.batches import Collate, RowOrder, TermsDataset, TrainingRows
from gtp_exp.training.config import Optimizer, TrainConfig, micro_batch_size
from gtp_exp.training.hooks import NO_HOOKS, Hooks
from gtp_exp.training.resume import SCRATCH, drop_unfinished, resumable

log = logging.getLogger(__name__)

if TYPE_CHECKING:  # they import half of transformers, which a job that finds its stages cached does without
    from transformers import TrainingArguments


def finetune(
    loaded: LoadedModel,
    rows: TrainingRows,
    config: TrainConfig,
    directory: Path,
    *,
    seed: int,
    label: str,
    hooks: Hooks = NO_HOOKS,
    processes: Processes = ALONE,
) -> None:
    """Train `loaded` in place; write the training curve to `history.jsonl` in `directory`.

    label: for the progress bar. The rows of a pass lie end to end where the model allows it, without padding.
    Passes of other sizes and several processes change nothing but rounding (and the masks of dropout): every
    step sees the same rows. After a kill the run goes on from the last epoch, but with
    `hooks.on_epoch_end` it starts over. What it goes on from stays until
    `forget_epochs`.
    """
    # Half of transformers comes along, for seconds that a job whose stages are in the cache need not spend.
    from transformers.trainer_callback import PrinterCallback

    from gtp_exp.training.trainer import Progress, SealCheckpoints, WeightedTrainer

    scratch = directory / SCRATCH
    resumes = hooks.on_epoch_end is None
    if not resumes and processes.main:
        shutil.rmtree(scratch, ignore_errors=True)
    n_rows, pad_id = len(rows.examples), loaded.tokenizer.pad_token_id
    trainer = WeightedTrainer(
        model=loaded.model,
        args=_arguments(loaded, config, scratch, n_rows, seed, processes.size, save=resumes),
        train_dataset=TermsDataset(rows, config.loss, pad_id),
        data_collator=Collate(pad_id, packed=_may_pack(loaded, rows, processes)),
        callbacks=[Progress(label, hooks), SealCheckpoints(scratch, processes)],
    )
    together = trainer.args.per_device_train_batch_size * processes.size  # rows of one pass of all processes
    trainer.order = RowOrder(n_rows, together if processes.size > 1 else 1, seed)
    trainer.remove_callback(PrinterCallback)
    start = processes.broadcast(resumable(scratch) if processes.main else None)
    try:
        trainer.train(resume_from_checkpoint=start)
    except BaseException:
        if processes.main:
            drop_unfinished(scratch)  # on a full disk it takes the room that the run's record needs
        raise
    loaded.model.eval()
    history = [entry for entry in trainer.state.log_history if "loss" in entry]
    if processes.main:
        (directory / "history.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in history))


def _may_pack(loaded: LoadedModel, rows: TrainingRows, processes: Processes) -> bool:
    """Say whether rows may lie end to end; else log why they are padded."""
    asked = processes.main or is_sharded(loaded.model)  # of shared weights every process needs the others'
    reason = processes.broadcast(packing_obstacle(loaded.model, rows.examples) if asked else None)
    if reason is not None:
        log.info("training pads its rows to the longest of a pass, for they cannot be packed: %s", reason)
    return reason is None


def _arguments(
    loaded: LoadedModel,
    config: TrainConfig,
    scratch: Path,
    n_rows: int,
    seed: int,
    processes: int,
    *,
    save: bool,
) -> TrainingArguments:
    """Return the settings of transformers.Trainer that mean what `config` says.

    processes: their number. save: whether every epoch leaves a checkpoint to go on from.
    """
    from transformers import TrainingArguments

    device = next(loaded.model.parameters()).device
    micro_batch = micro_batch_size(config, processes)
    epochs = config.epochs_of(n_rows)
    optimizer: dict[str, Any] = (
        {} if config.optimizer is Optimizer.ADAMW_TORCH else {"optim": config.optimizer.value}
    )
    arguments = TrainingArguments(
        output_dir=str(scratch),
        num_train_epochs=epochs,
        learning_rate=config.learning_rate,
        lr_scheduler_type=config.schedule.value,
        warmup_steps=int(config.warmup_ratio * epochs * config.steps_per_epoch(n_rows)),
        weight_decay=config.weight_decay,
        max_grad_norm=config.max_grad_norm,
        per_device_train_batch_size=micro_batch,
        gradient_accumulation_steps=config.batch_size // (micro_batch * processes),
        bf16=loaded.dtype == torch.bfloat16,
        use_cpu=device.type == "cpu",
        seed=seed,
        data_seed=seed,
        logging_steps=1,
        logging_nan_inf_filter=False,
        save_strategy="epoch" if save else "no",
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_pin_memory=device.type == "cuda",
        ddp_find_unused_parameters=False,
        activation_checkpointing=config.gradient_checkpointing,
        # The other way needs inputs with a gradient, which the embeddings of a frozen model have not.
        activation_checkpointing_kwargs={"use_reentrant": False},
        **optimizer,
    )
    # One device per process: with more, Trainer would multiply the batch size without a word.
    arguments._n_gpu = min(1, arguments.n_gpu)
    return arguments


def save_tuned(loaded: LoadedModel, directory: Path) -> None:
    """Write the adapter (or the whole model) to `directory`, in the form that `from_pretrained` reads.

    The tokenizer is beside it, with the chat template that was trained with. An adapter names its base by hub
    id and commit, or a local base by its whole path, so that it loads from any working directory.
    """
    for adapter in getattr(loaded.model, "peft_config", {}).values():
        base = Path(adapter.base_model_name_or_path)
        if base.is_dir():
            adapter.base_model_name_or_path = str(base.resolve())
        else:
            adapter.revision = getattr(loaded.model.config, "_commit_hash", None)
    loaded.tokenizer.save_pretrained(directory)
    loaded.model.save_pretrained(directory, safe_serialization=True)
    (directory / "README.md").unlink(missing_ok=True)  # PEFT's empty model card
