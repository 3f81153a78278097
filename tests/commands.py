"""The `unified` command in this process."""

import torch
from typer.testing import CliRunner, Result

from unified import UnifiedForCausalLM, UnifiedProcessor
from unified.cli.main import app


def run(*arguments: object, stdin: str = "") -> Result:
    """Outcome of `unified ARGUMENTS`."""
    return CliRunner().invoke(app, [str(argument) for argument in arguments], input=stdin)


def error_of(*arguments: object, stdin: str = "") -> str:
    """The error line of a failing command; asserts that it is one line and the exit status 2."""
    result = run(*arguments, stdin=stdin)
    assert result.exit_code == 2, result.output
    lines = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and "Traceback" not in result.stderr, result.stderr
    return lines[0]


def logits(model: UnifiedForCausalLM, processor: UnifiedProcessor) -> torch.Tensor:
    chat = processor.encode_chat(
        [{"role": "user", "content": "Draw"}, {"role": "assistant", "content": [{"type": "image"}]}], [[1, 2, 3, 4, 5]]
    )
    with torch.no_grad():
        return model(torch.tensor([chat.input_ids])).logits
