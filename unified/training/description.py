"""What a trainer leaves beside its weights: which base an adapter has, and the model card."""

from pathlib import Path

from unified.checkpoints.adapters import is_adapter, name_base, read_base_record
from unified.checkpoints.model_card import write_card
from unified.training.run_record import RunRecord


class Description:
    """Describes the folders of a run of `model`, whose weights are those of `checkpoint` or an adapter of it.

    `chat_fingerprint` is its configuration's.
    """

    def __init__(self, record: RunRecord, model: str, checkpoint: Path, chat_fingerprint: str) -> None:
        self.record, self.checkpoint, self.chat_fingerprint = record, checkpoint, chat_fingerprint
        start = read_base_record(Path(model)) if is_adapter(model) else None
        self.made_with: list[str] = (start or {}).get("made_with", [])
        self.digest: str | None = None  # of the base; takes a pass over its weights

    def __call__(self, folder: Path) -> None:
        if is_adapter(folder):
            self.digest = name_base(folder, self.checkpoint, self.chat_fingerprint, self.made_with, self.digest)
        write_card(folder, [self.checkpoint], self.record.kept())
